"""A small network that fills the holes of a picture in one pass, for a prior too small to do it by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.depth.network import Attention, Block, waves

STRIDE = 16  # of the coarsest level: pictures are padded to its multiples


class Inpainter(nn.Module, PyTorchModelHubMixin):
    """Corrects what `known.fill.fill_unknown` has put into the holes: a U-Net with attention over the picture.

    channels: at strides 2, 4, 8, 16. attentions: layers of attention at stride 16. Frames are filled one by one.
    """

    def __init__(self, channels: Sequence[int] = (40, 80, 128, 192), attentions: int = 3, heads: int = 4):
        super().__init__()
        pairs = list(pairwise(channels))
        self.stem = nn.Conv2d(4, channels[0], 4, 2, 1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairs)
        self.down_blocks = nn.ModuleList(Block(c) for c in channels)
        self.places = nn.Linear(10, channels[-1])
        self.attentions = nn.Sequential(*(Attention(channels[-1], heads) for _ in range(attentions)))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up_blocks = nn.ModuleList(Block(a) for a, _ in pairs)
        last = nn.Conv2d(channels[0], 12, 3, padding=1)
        self.head = nn.Sequential(nn.SiLU(), last)
        for parameter in last.parameters():  # begins as the smooth filling
            nn.init.zeros_(parameter)

    def forward(self, filled: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Pictures whose holes are filled; what is known (mask True) is untouched.

        filled: in [0, 1], the holes filled smoothly. The result may leave [0, 1] in the holes.
        """
        height, width = filled.shape[-2:]
        x = torch.cat([2 * filled - 1, 1 - mask.to(filled)], 1)
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        x = self.down_blocks[0](self.stem(x.contiguous(memory_format=torch.channels_last)))
        skips = []
        for down, block in zip(self.downs, self.down_blocks[1:], strict=True):
            skips.append(x)
            x = block(down(x))
        h, w = x.shape[-2:]
        tokens = self.attentions(x.flatten(2).mT + self.places(waves(h, w, x)).to(x))
        x = tokens.mT.unflatten(2, (h, w)).contiguous(memory_format=torch.channels_last)
        for up, block, skip in zip(reversed(self.ups), reversed(self.up_blocks), reversed(skips), strict=True):
            x = block(skip + F.interpolate(up(x), scale_factor=2, mode="nearest"))
        change = F.pixel_shuffle(self.head(x), 2)[..., :height, :width]
        return torch.where(mask, filled, filled + change)
