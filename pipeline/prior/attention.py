"""Self-attention of a Wan block in which the noisy tokens see those of the context, and the context never sees them.

In place of the attention processor of the stock block (diffusers, `WanAttnProcessor`), with the same arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Seen = tuple[Tensor, Tensor]  # keys and values of a block: B n heads c each, the keys turned by their positions


def turned(x: Float[Tensor, "B n heads c"], by: tuple[Tensor, Tensor]) -> Float[Tensor, "B n heads c"]:
    """Queries or keys, turned by cosines and sines "1 n 1 c" of Wan's rotary embedding: pairs of neighbours."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = by[0][..., 0::2], by[1][..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).type_as(x)


class Recording:
    """The block's own attention, which also keeps its keys and values. seen: these, after a pass.

    backend: the kernel, by its name in diffusers; None for the default.
    """

    def __init__(self, backend: Any = None) -> None:
        self.backend = backend
        self.seen: Seen | None = None

    def __call__(self, attn: Any, x: Tensor, _: None, __: None, by: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = projected(attn, x, by)
        self.seen = key, value
        return attended(attn, query, key, value, self.backend)


class Seeing:
    """The block's attention over its own tokens and, behind them, those that a `Recording` has seen.

    backend: as of `Recording`.
    """

    def __init__(self, seen: Seen, backend: Any = None) -> None:
        self.seen, self.backend = seen, backend

    def __call__(self, attn: Any, x: Tensor, _: None, __: None, by: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = projected(attn, x, by)
        key, value = (torch.cat([own, other], 1) for own, other in zip((key, value), self.seen, strict=True))
        return attended(attn, query, key, value, self.backend)


def projected(attn: Any, x: Float[Tensor, "B n d"], by: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a WanAttention, B n heads c each, the first two normalised and turned."""
    split = lambda y: y.unflatten(2, (attn.heads, -1))
    query, key = split(attn.norm_q(attn.to_q(x))), split(attn.norm_k(attn.to_k(x)))
    return turned(query, by), turned(key, by), split(attn.to_v(x))


def attended(attn: Any, query: Tensor, key: Tensor, value: Tensor, backend: Any) -> Float[Tensor, "B n d"]:
    """What the queries find, projected out. backend: as of `Recording`."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    found = dispatch_attention_fn(query, key, value, backend=backend)
    return attn.to_out[1](attn.to_out[0](found.flatten(2, 3).type_as(query)))
