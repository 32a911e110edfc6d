"""Clips longer than the model's: windows of latent frames, blended at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.method.sampler import Velocity

WindowVelocity = Callable[[Tensor, float, slice], Tensor]


def windows(frames: int, length: int, overlap: int) -> tuple[slice, ...]:
    """Windows of `length` latent frames that cover `frames` of them, evenly spread, as few as share `overlap` or more.

    A clip that is not longer than a window is one window of its own length. Raises ValueError unless
    1 <= overlap < length.
    """
    if frames < 1 or not 1 <= overlap < length:
        raise ValueError(f"{frames} frames in windows of {length} that share {overlap}")
    if frames <= length:
        return (slice(0, frames),)
    count = math.ceil((frames - overlap) / (length - overlap))
    starts = [i * (frames - length) // (count - 1) for i in range(count)]
    return tuple(slice(start, start + length) for start in starts)


def window_weights(spans: Sequence[slice]) -> Float[Tensor, "N t"]:
    """How much each of the windows counts for each latent frame: linear ramps over what neighbours share; sums are one.

    A ramp begins at 0: the first latent of a window is the one that a causal VAE makes of a single frame at the start
    of a clip, which it is not in the middle of one, so there it is seen but not answered for.
    """
    weights = torch.zeros(len(spans), spans[-1].stop)
    for span, weight in zip(spans, weights, strict=True):
        weight[span] = 1.0
    at = torch.arange(spans[-1].stop)
    for (i, before), after in zip(enumerate(spans), spans[1:], strict=False):
        rising = ((at - after.start) / (before.stop - after.start)).clamp(0, 1)
        weights[i] *= 1 - rising
        weights[i + 1] *= rising
    return weights / weights.sum(0)


def windowed(velocity: WindowVelocity, spans: Sequence[slice]) -> Velocity:
    """The velocity of a clip longer than the model's, blended from overlapping windows at each step.

    velocity(z_t[:, span], sigma, span) -> v of that shape; one window after another, so that memory is that of one.
    MultiDiffusion (arXiv 2302.08113), along time: temporal co-denoising (Gen-L-Video, arXiv 2305.18264). The state, its
    noise and data consistency are the whole clip's, so windows agree on what they share from the first step on.
    """
    if len(spans) == 1:
        return lambda z, sigma: velocity(z, sigma, spans[0])
    weights = window_weights(spans)

    def blended(z: Float[Tensor, "C t h w"], sigma: float) -> Float[Tensor, "C t h w"]:
        v = torch.zeros_like(z)
        for span, weight in zip(spans, weights.to(z), strict=True):
            v[:, span] += weight[span, None, None] * velocity(z[:, span], sigma, span)
        return v

    return blended
