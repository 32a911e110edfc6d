"""From a mask over pixels to a mask over latents: how much of each latent value does the measurement determine?

InverseCrafter (arXiv 2512.05672), section 3: a continuous mask for every channel, h = 1 - phi(|E(x) - E(m * x)|)
(Eq. 5), where phi normalises to [0, 1]; and the resized binary mask that others use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

LATENT_MASKS = ("training-free", "reference", "binary")

GREY = 0.5  # zero in the model's [-1, 1]: what m * x leaves in place of an unknown pixel
TAU = 0.3  # the difference, in spreads of its channel, at which a latent value counts as about half known
MIN_SPREAD = 0.1  # of a normalised latent; a channel that hardly moves in a clip must not turn rounding into holes


@dataclass(frozen=True, eq=False)
class LatentMask:
    """h: C t h w in [0, 1], 1 = known, float32."""

    h: Float[Tensor, "C t h w"]


Phi = Callable[[Tensor, Tensor], Tensor]


def _wiener(d: Tensor, spread: Tensor) -> Tensor:
    return d.square() / (d.square() + (TAU * spread).square())


def _exp(d: Tensor, spread: Tensor) -> Tensor:
    return 1 - torch.exp(-d / (TAU * spread))


def _tanh(d: Tensor, spread: Tensor) -> Tensor:
    return torch.tanh(d / (TAU * spread))


def _minmax(d: Tensor, spread: Tensor) -> Tensor:
    low, high = d.amin(dim=(1, 2, 3), keepdim=True), d.amax(dim=(1, 2, 3), keepdim=True)
    return (d - low) / (high - low).clamp_min(torch.finfo(d.dtype).tiny)


# phi(d, spread) -> [0, 1], with d = |E(x) - E(m * x)| "C t h w" and spread "C 1 1 1" the standard deviation of each
# channel. The paper leaves phi open. `wiener` is the default: with the prior's variance s^2 and an error d of the
# measurement, 1 - phi is the weight of the best linear estimate. It is flat at 0, so the faint trace that a hole leaves
# far away (the VAE attends over whole frames) does not loosen known latents, as the slopes of `exp` and `tanh` do;
# and it looks at each latent alone, where `minmax` makes the largest difference of a clip the unit of all others.
PHI: dict[str, Phi] = {"wiener": _wiener, "exp": _exp, "tanh": _tanh, "minmax": _minmax}


def binary_mask(mask: Bool[Tensor, "T 1 H W"], channels: int, *, temporal: int = 4, spatial: int = 8) -> LatentMask:
    """The mask resized to the latent grid: nearest in space (the centre of each cell), AND over a temporal group.

    mask: True = observed; T = temporal n + 1, the first frame being a group of its own, H and W multiples of `spatial`.
    channels: of the latent; all get the same. The baseline of the paper's section 3.
    """
    groups = _by_latent_frame(mask.float(), temporal)
    size = (mask.shape[-2] // spatial, mask.shape[-1] // spatial)
    near = F.interpolate(rearrange(groups, "t g 1 H W -> t g H W"), size=size, mode="nearest-exact")
    known = near.amin(dim=1)
    return LatentMask(known.expand(channels, *known.shape).contiguous())


def difference_mask(
    encode: Callable[[Tensor], Tensor],
    video: Float[Tensor, "T 3 H W"],
    mask: Bool[Tensor, "T 1 H W"],
    *,
    phi: str = "wiener",
    gate: bool = True,
) -> LatentMask:
    """h = 1 - phi(|E(x) - E(m * x)|), Eq. 5: a latent is known as far as hiding the unknown pixels leaves it in place.

    encode: pixels in [0, 1] -> normalised latents "C t h w" (two calls). video: the clean target ("reference"), or the
    source clip when only that is known ("training-free"); in [0, 1]. mask: True = observed in the *target*.
    phi: a name of `PHI`.

    gate: also set h = 0 where the pixels under a latent (its 8x8 block, its group of frames) are *all* unknown. The
    difference is small there wherever x happens to be near grey in one of the channels, which says nothing about the
    target: with unit-variance latents about a quarter of the values of a hole would pass for known. gate=False is the
    formula of the paper alone.
    """
    z = encode(video)
    d = (z - encode(torch.where(mask, video, GREY))).abs()
    spread = z.std(dim=(1, 2, 3), keepdim=True).clamp_min(MIN_SPREAD)
    h = 1 - PHI[phi](d, spread)
    if gate:
        h = torch.where(_any_known(mask, z.shape[1:]).to(h.device), h, 0.0)
    return LatentMask(h)


def _by_latent_frame(mask: Tensor, group: int) -> Float[Tensor, "t g 1 H W"]:
    """The frames under each latent frame; the first latent frame has a single one, here repeated."""
    return rearrange(torch.cat([mask[:1].expand(group - 1, -1, -1, -1), mask]), "(t g) 1 H W -> t g 1 H W", g=group)


def _any_known(mask: Tensor, grid: torch.Size) -> Bool[Tensor, "t h w"]:
    t, h, w = grid
    group = (len(mask) - 1) // (t - 1) if t > 1 else 1
    blocks = rearrange(_by_latent_frame(mask, group), "t g 1 (h a) (w b) -> t h w (g a b)", h=h, w=w)
    return blocks.any(dim=-1)
