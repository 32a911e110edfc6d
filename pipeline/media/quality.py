"""PSNR and SSIM over a part of the pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.stop import check

FEWEST_PIXELS = 200  # of which a mean change is taken


def psnr(
    a: Float[Tensor, "T C H W"], b: Float[Tensor, "T C H W"], mask: Bool[Tensor, "T 1 H W"] | None = None
) -> float:
    """Peak signal-to-noise ratio in dB of two videos in [0, 1], over the pixels where mask is True (None: all).

    inf if they are equal there. Raises `InputError` if the shapes differ or the mask is empty.
    """
    mask = checked(a, b, mask)
    error = (a.double() - b.double()).square().mean(dim=1, keepdim=True)
    mean = error[mask].mean().item()
    return math.inf if mean == 0 else -10 * math.log10(mean)


def ssim(
    a: Float[Tensor, "T C H W"], b: Float[Tensor, "T C H W"], mask: Bool[Tensor, "T 1 H W"] | None = None
) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11, sigma 1.5) of two videos in [0, 1], at most 1.

    Per channel and frame, averaged over the pixels where mask is True. The window's statistics are taken on masked
    pixels alone (and inside the picture alone), so that what stands in the holes cannot change the figure.
    Raises `InputError` if the shapes differ or the mask is empty.
    """
    mask = checked(a, b, mask)
    total, count = 0.0, 0
    for x, y, m in zip(a.float(), b.float(), mask.float(), strict=True):  # frame by frame: five blurs each
        check()
        weight = _blur(m).clamp_min(1e-12)

        def local(values: Tensor, m: Tensor = m, weight: Tensor = weight) -> Tensor:
            return _blur(values * m) / weight

        mean_x, mean_y = local(x), local(y)
        var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
        cov = local(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        structure = (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)
        known = m.expand_as(x) > 0
        total += (luminance * structure)[known].sum().item()
        count += int(known.sum())
    return total / count


def pixels_under(video: Float[Tensor, "T 3 H W"]) -> np.ndarray:
    """T H W 3 uint8."""
    return (video.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _blur(frame: Float[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    planes = frame.detach().cpu().numpy()
    blurred = [cv2.sepFilter2D(part, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT) for part in planes]
    return torch.from_numpy(np.stack(blurred)).to(frame)


def checked(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    if a.shape != b.shape:
        raise InputError(f"The two videos must have one shape; they have {tuple(a.shape)} and {tuple(b.shape)}.")
    shape = (a.shape[0], 1, *a.shape[2:])
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=a.device)
    if mask.shape != shape:
        raise InputError(f"The mask must have the shape {shape}; it has {tuple(mask.shape)}.")
    if not mask.any():
        raise InputError("The mask is empty: there is no pixel to compare the videos on.")
    return mask.bool()
