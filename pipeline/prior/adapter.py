"""The adapter of LaVR (arXiv 2601.14674, "CUT3R Adapter"): from the tokens of a scene encoder to latent frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class SceneAdapter(nn.Module):
    """Each group of tokens goes through an MLP; spatial queries then ask all of its tokens, and become latents.

    The paper prints the order of the parts, not their sizes: depths, widths and how many latents a query gives are
    inferred.

    tokens: their width d. channels: of the latents, C. grid: of the queries; layers, heads: of their transformer.
    cell: a query gives cell x cell latents. The latents are zero before any training.

    The tokens of all scenes share one large part, beside which scenes hardly differ. So each channel is centred and
    scaled first, by the fixed `centre` and `spread`, which `measure` takes from a few scenes (inferred).
    """

    centre: Tensor  # d
    spread: Tensor  # d

    def __init__(
        self, tokens: int, channels: int, grid: tuple[int, int], *, layers: int = 2, heads: int = 6, cell: int = 2
    ):
        super().__init__()
        self.cell, self.heads = cell, heads
        self.register_buffer("centre", torch.zeros(tokens))
        self.register_buffer("spread", torch.ones(tokens))
        self.mlp = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.queries = nn.Parameter(torch.randn(1, tokens, *grid) * 0.02)
        self.layers = nn.ModuleList(
            [
                nn.TransformerDecoderLayer(tokens, heads, 4 * tokens, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(layers)
            ]
        )
        self.norm = nn.LayerNorm(tokens)
        self.out = nn.Linear(tokens, channels * cell**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def measure(self, tokens: Float[Tensor, "N G s d"]) -> None:
        """Centre and scale each channel by these scenes from now on."""
        self.centre.copy_(tokens.mean((0, 1, 2)))
        self.spread.copy_(tokens.std((0, 1, 2)).clamp(min=1e-6))

    def forward(self, tokens: Float[Tensor, "B G s d"], size: tuple[int, int]) -> Float[Tensor, "B C G h w"]:
        """tokens: of every k-th state, one group a latent frame. size: h w of the latents, multiples of `cell`.

        For another grid than the trained one the queries are interpolated (inferred). Raises ValueError for a size that
        is no multiple.
        """
        if size[0] % self.cell or size[1] % self.cell:
            raise ValueError(f"latents of {size} are no multiples of {self.cell}")
        batch, groups = tokens.shape[:2]
        grid = (size[0] // self.cell, size[1] // self.cell)
        queries = self.queries
        if tuple(queries.shape[-2:]) != grid:
            queries = F.interpolate(queries, grid, mode="bilinear", align_corners=False)
        memory = self.mlp(rearrange((tokens - self.centre) / self.spread, "b g s d -> (b g) s d"))
        x = rearrange(queries, "1 d h w -> 1 (h w) d").expand(len(memory), -1, -1)
        for layer in self.layers:
            x = layer(x, memory)
        shape = {"b": batch, "g": groups, "h": grid[0], "p": self.cell, "q": self.cell}
        return rearrange(self.out(self.norm(x)), "(b g) (h w) (c p q) -> b c g (h p) (w q)", **shape)
