"""The heads of CUT3R: dense ones in the manner of DPT (arXiv 2103.13413) and that of the pose, with published names.

The facts are those of github.com/CUT3R/CUT3R (`src/dust3r/heads/`, `src/croco/models/dpt_block.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.scene.layers import Mlp, ModulatedBlock, Rotation

POSE_NUMBERS = 7  # a translation and a quaternion
_COLOUR_EDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Prediction:
    """What CUT3R says of B views at H W, in its own unit of length.

    points_own: in the view's own camera, OpenCV axes; points_first: in the camera of the first frame.
    confidence_own, confidence_first: of these, at least 1, 1 + exp of the network's answer.
    colour: in [0, 1].
    first_from_cam: the camera, OpenCV axes, rigid.
    """

    points_own: Float[Tensor, "B H W 3"]
    confidence_own: Float[Tensor, "B H W"]
    points_first: Float[Tensor, "B H W 3"]
    confidence_first: Float[Tensor, "B H W"]
    colour: Float[Tensor, "B H W 3"]
    first_from_cam: Float[Tensor, "B 4 4"]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _conv3(inside: int, out: int, *, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=bias)


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = _conv3(width, width), _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class Fusion(nn.Module):
    """The coarser map and, but at the coarsest level, a finer one, at twice the size of the coarser.

    The coarsest level has the weights for a finer map, too, and does not use them.
    """

    def __init__(self, width: int):
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = Residual(width), Residual(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        x = x if finer is None else x + self.resConfUnit1(finer)
        return self.out_conv(_double(self.resConfUnit2(x)))


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _double(x)


class Scratch(nn.Module):
    """The levels brought to one width, and fused. `layer_rn` are the same four layers under second names."""

    def __init__(self, widths: Sequence[int], width: int):
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (_conv3(w, width, bias=False) for w in widths)
        self.layer_rn = nn.ModuleList([self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn])
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (Fusion(width) for _ in range(4))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, second, third, fourth = (layer(x) for layer, x in zip(self.layer_rn, maps, strict=True))
        x = self.refinenet4(fourth)[..., : third.shape[-2], : third.shape[-1]]
        return self.refinenet1(self.refinenet2(self.refinenet3(x, third), second), first)


class DenseHead(nn.Module):
    """From tokens of four depths to a picture of `channels`.

    inside: the widths of the tokens; widths: of the maps made of them, at 4, 2, 1 and 1/2 times the grid; width: after
    that. The last convolution is half as wide.
    """

    def __init__(self, channels: int, inside: Sequence[int], widths: Sequence[int], width: int):
        super().__init__()
        one, two, three, four = (nn.Conv2d(i, w, 1) for i, w in zip(inside, widths, strict=True))
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(one, nn.ConvTranspose2d(widths[0], widths[0], 4, 4)),
                nn.Sequential(two, nn.ConvTranspose2d(widths[1], widths[1], 2, 2)),
                nn.Sequential(three),
                nn.Sequential(four, _conv3(widths[3], widths[3], stride=2)),
            ]
        )
        self.scratch = Scratch(widths, width)
        half = width // 2
        self.head = nn.Sequential(
            _conv3(width, half), Double(), _conv3(half, half), nn.ReLU(), nn.Conv2d(half, channels, 1)
        )

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, "B channels H W"]:
        """layers: B n c each, n = grid. The picture is 16 times as large as the grid."""
        maps = [rearrange(x, "b (h w) c -> b c h w", h=grid[0]) for x in layers]
        return self.head(self.scratch([to(x) for to, x in zip(self.act_postprocess, maps, strict=True)]))


class PoseHead(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = Mlp(width, POSE_NUMBERS)

    def forward(self, token: Float[Tensor, "B C"]) -> Float[Tensor, "B 7"]:
        return self.mlp(token)


class Heads(nn.Module):
    """All heads of CUT3R, its `downstream_head`.

    encoder, decoder: widths of the tokens; heads: of the attention; widths, width: of `DenseHead`.
    """

    def __init__(self, encoder: int, decoder: int, heads: int, widths: Sequence[int], width: int):
        super().__init__()
        dense = lambda channels: DenseHead(channels, [encoder, decoder, decoder, decoder], widths, width)
        self.dpt_self = dense(4)
        self.final_transform = nn.ModuleList([ModulatedBlock(decoder, heads) for _ in range(2)])
        self.dpt_cross = dense(4)
        self.dpt_rgb = dense(3)
        self.pose_head = PoseHead(decoder)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int], by: Rotation) -> Prediction:
        """layers: four, the last one with the pose token before the others. by: the rotation of the others."""
        *below, last = layers
        pose, tokens = last[:, 0], last[:, 1:]
        moved = tokens
        for block in self.final_transform:
            moved = block(moved, pose, by)
        own = self.dpt_self([*below, tokens], grid).permute(0, 2, 3, 1)
        first = self.dpt_cross([*below, moved], grid).permute(0, 2, 3, 1)
        colour = self.dpt_rgb([*below, tokens], grid).permute(0, 2, 3, 1)
        return Prediction(
            points_own=lengthened(own[..., :3]),
            confidence_own=1 + own[..., 3].exp(),
            points_first=lengthened(first[..., :3]),
            confidence_first=1 + first[..., 3].exp(),
            colour=colour.sigmoid() * (1 - 2 * _COLOUR_EDGE) + _COLOUR_EDGE,
            first_from_cam=pose_matrix(self.pose_head(pose)),
        )


def lengthened(x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Vectors with the same direction, whose length l becomes exp(l) - 1: the "exp" mode of DUSt3R."""
    length = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=1e-8) * torch.expm1(length)


def pose_matrix(numbers: Float[Tensor, "B 7"]) -> Float[Tensor, "B 4 4"]:
    """A rigid matrix of a lengthened translation and of a quaternion with the real part first, of any length."""
    w, x, y, z = F.normalize(numbers[:, 3:].float(), dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix = torch.eye(4, device=numbers.device).repeat(len(numbers), 1, 1)
    matrix[:, :3, :3] = torch.stack([torch.stack(row, -1) for row in rows], -2)
    matrix[:, :3, 3] = lengthened(numbers[:, :3].float())
    return matrix
