"""The classifier that checks replacements: which colour and which shape does the thing in a box have?

It sees what a replacement leaves: the region that was painted, in a few frames. Nothing of the pipeline is used. It is
trained by `pipeline.training.judge`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.world.objects import SHAPES, short_name
from pipeline.world.textures import COLOURS

SIDE, VIEWS = 48, 4  # pixels of a cut-out; frames that are looked at
NAMES = tuple(COLOURS)
SMALLEST = 0.004  # share of the picture below which an object is not asked for


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = layer(F.silu(norm(y)))
        return x + y


class Classifier(nn.Module, PyTorchModelHubMixin):
    """Colour and shape of an object, from cut-outs of a few frames. About 1.2 M parameters."""

    def __init__(self, width: int = 40):
        super().__init__()
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in channels[1:])
        self.blocks = nn.ModuleList(_Block(b) for b in channels[1:])
        self.colour = nn.Linear(2 * channels[-1], len(NAMES))
        self.shape = nn.Linear(2 * channels[-1], len(SHAPES))

    def forward(self, cut_outs: Float[Tensor, "B V 3 S S"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
        """Logits of `NAMES` and of `objects.SHAPES`; cut-outs in [0, 1], see `cut_outs`."""
        x = cut_outs.flatten(0, 1) * 2 - 1
        for layer, norm, block in zip(self.layers, self.norms, self.blocks, strict=True):
            x = block(F.max_pool2d(F.silu(norm(layer(x))), 2))
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1).unflatten(0, cut_outs.shape[:2]).mean(1)
        return self.colour(x), self.shape(x)


def cut_outs(frames: Float[Tensor, "T 3 H W"], hidden: Bool[Tensor, "T H W"]) -> Float[Tensor, "V 3 S S"]:
    """The square around what is hidden, in the `VIEWS` frames that have most of it, `SIDE` pixels wide."""
    size = hidden.flatten(1).sum(1)
    views = []
    for t in size.topk(min(VIEWS, len(frames))).indices.sort().values.tolist():
        rows, columns = hidden[t].any(1).nonzero(), hidden[t].any(0).nonzero()
        if not len(rows):
            rows, columns = torch.arange(frames.shape[-2])[:, None], torch.arange(frames.shape[-1])[:, None]
        top, bottom, left, right = (int(v) for v in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
        side = max(bottom - top, right - left)
        # what is outside of the picture repeats its border
        grown = F.pad(frames[t : t + 1], (side, side, side, side), mode="replicate")
        y, x = (top + bottom - side) // 2 + side, (left + right - side) // 2 + side
        view = grown[..., y : y + side, x : x + side]
        views.append(F.interpolate(view, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0])
    views += views[-1:] * (VIEWS - len(views))
    return torch.stack(views).clamp(0, 1)


def labels(name: str) -> tuple[int, int] | None:
    """Numbers of colour and shape of an object's name; None for an object of several parts."""
    words = short_name(name).split()
    return (NAMES.index(words[-2]), SHAPES.index(words[-1])) if words[-1] in SHAPES else None
