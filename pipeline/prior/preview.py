"""Latents to colours, for previews."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline.prior.settings import LatentRgb

# Of Wan 2.1's VAE: the mean of its latents, by which it is known, and the linear map from its normalised latents to RGB
# in [-1, 1], one row a channel and then the bias (ComfyUI, comfy/latent_formats.py, class Wan21).
WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_RGB = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip


def fit_latent_rgb(z: Float[Tensor, "C t h w"], video: Float[Tensor, "T 3 H W"]) -> LatentRgb:
    """The linear map from latents to the mean colour of the pixels under them, by (lightly damped) least squares."""
    channels, t, h, w = z.shape
    group = (len(video) - 1) // (t - 1) if t > 1 else 1
    small = F.adaptive_avg_pool2d(video, (h, w))
    small = torch.cat([small[:1].expand(group - 1, -1, -1, -1), small])
    colour = rearrange(small, "(t g) r h w -> g (t h w) r", g=group).mean(0)
    latent = rearrange(z, "c t h w -> (t h w) c")
    mean_latent, mean_colour = latent.mean(0), colour.mean(0)
    centred = (latent - mean_latent).double()
    gram = centred.T @ centred
    damping = 1e-3 * gram.diagonal().mean() + 1e-12
    right = centred.T @ (colour - mean_colour).double()
    weight = torch.linalg.solve(gram + damping * torch.eye(channels, device=z.device), right).float()
    return LatentRgb(weight, mean_colour - mean_latent @ weight)
