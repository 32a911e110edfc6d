"""A time for each token: how Wan 2.2 TI2V-5B is shown what is known.

It has no inpainting channels. What is known stands among the noisy latents as it is, with the time 0, while the rest
has the time of the noise level (diffusers, WanImageToVideoPipeline with expand_timesteps; the image-to-video of the
Wan team's own program). It was trained on whole first frames; here the tokens of the first frame count that are known
and border on nothing unknown, whose latents the unknown would have reached. The rest is left to data consistency.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def clean_cells(known: Bool[Tensor, "1 H W"], multiple: int, cell: int) -> Float[Tensor, "1 h w"]:
    """Which latents of the first frame are shown as they are: 1, else 0. multiple, cell: pixels of token and latent."""
    unknown = F.max_pool2d((~known)[None].float(), multiple)
    unknown = F.max_pool2d(unknown, 3, 1, 1)[0]
    return (1 - unknown).repeat_interleave(multiple // cell, 1).repeat_interleave(multiple // cell, 2)


def channels_of(
    clean: Float[Tensor, "1 h w"], first: Float[Tensor, "C 1 h w"], frames: int
) -> Float[Tensor, "1+C t h w"]:
    """What `Conditions.channels` are for such a model: where it is clean, and the latents there. frames: t."""
    channels = torch.cat([clean[:, None], first * clean])
    return F.pad(channels, (0, 0, 0, 0, 0, frames - 1))


def shown(
    z_t: Float[Tensor, "C t h w"], channels: Float[Tensor, "1+C t h w"], time: float, patch: tuple[int, int, int]
) -> tuple[Float[Tensor, "C t h w"], Float[Tensor, "1 N"]]:
    """What the transformer sees, and the time of each of its tokens. time: of the noisy ones; patch: of its config."""
    clean = channels[:1]
    times = (1 - clean[0, :: patch[0], :: patch[1], :: patch[2]]) * time
    return torch.where(clean > 0, channels[1:], z_t), times.flatten()[None]


def towards(
    v: Float[Tensor, "C t h w"], z_t: Float[Tensor, "C t h w"], channels: Float[Tensor, "1+C t h w"], sigma: float
) -> Float[Tensor, "C t h w"]:
    """The velocity, which leads to the known latents where they are clean: z_t - sigma v are these."""
    return torch.where(channels[:1] > 0, (z_t - channels[1:]) / sigma, v)
