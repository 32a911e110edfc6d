"""The depth network of our own: small, and steady over time."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

_STRIDE = 32  # of the network's coarsest level


class _Norm(nn.Module):
    """Scales the channels of each pixel to unit root mean square: nothing leaks between pixels or frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x) * self.weight.to(x)


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class _InTime(nn.Module):
    """Each frame takes from its neighbours on both sides, and the ends from themselves; begins as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.mix = nn.Conv2d(3 * channels, channels, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.silu(self.norm(x)).unflatten(0, (-1, frames))
        before = torch.cat([y[:, :1], y[:, :-1]], 1)
        after = torch.cat([y[:, 1:], y[:, -1:]], 1)
        return x + self.mix(torch.cat([before, y, after], 2).flatten(0, 1))


class _Attention(nn.Module):
    """All places of all frames see one another. No place in time is marked, so a clip that stands still stays still."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        last = nn.Linear(3 * channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), last)
        for linear in (self.out, last):  # begins as the identity
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(attended, "b h n c -> b n (h c)"))
        return x + self.mlp(self.norm_mlp(x))


class DepthNet(nn.Module, PyTorchModelHubMixin):
    """Relative log depth of a whole clip: a U-Net over space with mixing over time, 3 to 4 M parameters.

    The levels have strides 2 to 32; the three coarse ones mix neighbouring frames, the two coarsest attend over the
    whole clip. The picture's own outlines place the depth's: each fine pixel is a learned mixture of the 3x3 half-size
    predictions around it, as RAFT (arXiv 2003.12039) does for flow.

    `pixels`: height times width of the pictures it was trained on; larger ones are best shrunk to that first.
    `attentions`: how many layers of attention there are at the level before the coarsest, on the way up.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (24, 40, 80, 128, 192),
        heads: int = 4,
        pixels: int = 64 * 96,
        attentions: int = 0,
    ):
        super().__init__()
        self.pixels = pixels
        pairs = list(pairwise(channels))
        self.stem = nn.Conv2d(5, channels[0], 3, stride=2, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.down_blocks = nn.ModuleList(_Block(b) for _, b in pairs)
        self.down_times = nn.ModuleList(_InTime(b) for _, b in pairs[1:])
        self.places = nn.Linear(10, channels[-1])
        self.attentions = nn.ModuleList(_Attention(channels[-1], heads) for _ in range(2))
        if attentions:
            self.fine_places = nn.Linear(10, channels[-2])
            nn.init.zeros_(self.fine_places.weight)
            nn.init.zeros_(self.fine_places.bias)
        self.fine_attentions = nn.ModuleList(_Attention(channels[-2], heads) for _ in range(attentions))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up_blocks = nn.ModuleList(_Block(a) for a, _ in pairs)
        self.up_times = nn.ModuleList(_InTime(a) for a, _ in pairs[2:])
        self.head = nn.Sequential(_Norm(channels[0]), nn.Conv2d(channels[0], 1 + 36, 3, padding=1))

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T H W"]:
        """Log depth up to one additive constant per clip, of frames in [0, 1]. Any T >= 1, H and W."""
        batch, count, _, height, width = frames.shape
        # one brightness and contrast for the clip: per frame it would flicker
        mean, std = frames.mean((1, 2, 3, 4), keepdim=True), frames.std((1, 2, 3, 4), keepdim=True)
        x = ((frames - mean) / (std + 0.05)).flatten(0, 1)
        x = torch.cat([x, _places(height, width, x).expand(len(x), -1, -1, -1)], 1)
        x = F.pad(x, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))

        skips = []
        for level, (down, block) in enumerate(zip(self.downs, self.down_blocks, strict=True)):
            skips.append(x)
            x = block(down(x))
            if level >= 1:
                x = self.down_times[level - 1](x, count)
        x = _attend(x, count, self.places, self.attentions)
        for level in reversed(range(len(self.ups))):
            x = skips[level] + F.interpolate(self.ups[level](x), scale_factor=2, mode="nearest")
            x = self.up_blocks[level](x)
            if level == len(self.ups) - 1 and self.fine_attentions:
                x = _attend(x, count, self.fine_places, self.fine_attentions)
            if level >= 2:
                x = self.up_times[level - 2](x, count)

        with torch.autocast(x.device.type, enabled=False):  # depths far from 0 would be coarse in bfloat16
            out = self.head(x.float())
        coarse, weights = out[:, :1], out[:, 1:].unflatten(1, (9, 4)).softmax(1)
        around = F.unfold(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, coarse.shape[-2:])
        fine = F.pixel_shuffle((around[:, :, None] * weights).sum(1), 2)
        log_z = fine[:, 0, :height, :width].unflatten(0, (batch, count))
        # the constant is nobody's: left free, it drifts away in training
        return log_z - log_z.mean((1, 2, 3), keepdim=True)


def _attend(x: Tensor, frames: int, places: nn.Linear, attentions: nn.ModuleList) -> Tensor:
    """Layers of attention over all places of the `frames` of each clip, of features (B frames) C h w."""
    h, w = x.shape[-2:]
    where = _places(h, w, x)[0].flatten(1).T
    waves = [f(math.pi * n * where) for n in (1, 2) for f in (torch.sin, torch.cos)]
    tokens = rearrange(x, "(b t) c h w -> b t (h w) c", t=frames) + places(torch.cat([where, *waves], 1))
    tokens = tokens.flatten(1, 2)
    for attention in attentions:
        tokens = attention(tokens)
    return rearrange(tokens, "b (t h w) c -> (b t) c h w", t=frames, h=h).contiguous(memory_format=torch.channels_last)


def _places(height: int, width: int, like: Tensor) -> Float[Tensor, "1 2 H W"]:
    """Row and column of the pixel centres in [-1, 1]."""
    y = (torch.arange(height, device=like.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=like.device) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None].to(like.dtype)
