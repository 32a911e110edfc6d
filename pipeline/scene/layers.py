"""The transformer layers of CroCo, DUSt3R and CUT3R, under the names of their published tensors.

The facts are those of github.com/CUT3R/CUT3R (`src/dust3r/blocks.py`, `src/croco/models/pos_embed.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

BASE = 100.0  # of the rotary embedding, "RoPE100"
EPS = 1e-6  # of every layer norm

Rotation = tuple[Tensor, Tensor]  # cosine and sine of the angles, B 1 n c


def norm(width: int) -> nn.LayerNorm:
    """A layer norm with the epsilon of the published models."""
    return nn.LayerNorm(width, eps=EPS)


def rotation(positions: Int[Tensor, "B n 2"], channels: int) -> Rotation:
    """The angles of the two-dimensional rotary embedding for heads that are so many channels wide, a multiple of 4.

    positions: row and column of each token. The first half of the channels turns with the row, the second with the
    column. The angles are computed from the positions and not looked up, so that any position is right: CUT3R puts
    the pose token at -1, which its own fallback looks up beyond its table.
    """
    half = channels // 2
    frequencies = BASE ** (-torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, :, None].float() * frequencies  # B 1 n 2 half/2
    angles = torch.cat([angles, angles], -1).flatten(-2)
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B heads n c"], by: Rotation | None) -> Float[Tensor, "B heads n c"]:
    """Queries or keys turned by their positions; None leaves them as they are. Computed in float32."""
    if by is None:
        return x
    a, b, c, d = x.float().chunk(4, -1)  # of the row: a, b; of the column: c, d
    cos, sin = by
    return (x.float() * cos + torch.cat([-b, a, -d, c], -1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, by_q: Rotation | None, by_k: Rotation | None) -> Tensor:
    """Attention with several heads: B n C each in, B n C out."""
    q, k, v = (rearrange(x, "b n (h c) -> b h n c", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(rotate(q, by_q), rotate(k, by_k), v), "b h n c -> b n (h c)")


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, by: Rotation | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(attend(q, k, v, self.heads, by, by))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, by_x: Rotation | None, by_y: Rotation | None) -> Tensor:
        return self.proj(attend(self.projq(x), self.projk(y), self.projv(y), self.heads, by_x, by_y))


class Mlp(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = SelfAttention(width, heads), Mlp(width)

    def forward(self, x: Tensor, by: Rotation | None) -> Tensor:
        x = x + self.attn(self.norm1(x), by)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Self-attention, attention to another set of tokens, which it leaves alone, and an MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (norm(width) for _ in range(4))
        self.attn, self.cross_attn = SelfAttention(width, heads), CrossAttention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, y: Tensor, by_x: Rotation | None = None, by_y: Rotation | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), by_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), by_x, by_y)
        return x + self.mlp(self.norm3(x))


class ModulatedNorm(nn.Module):
    """A layer norm whose result is shifted and scaled by what one token says."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, by: Float[Tensor, "B C"]) -> Tensor:
        shift, scale = self.mlp(by)[:, None].chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class ModulatedBlock(nn.Module):
    """An encoder block with modulated norms."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = ModulatedNorm(width), ModulatedNorm(width)
        self.attn, self.mlp = SelfAttention(width, heads), Mlp(width)

    def forward(self, x: Tensor, token: Float[Tensor, "B C"], by: Rotation | None) -> Tensor:
        x = x + self.attn(self.norm1(x, token), by)
        return x + self.mlp(self.norm2(x, token))
