"""Texture: of what is painted, the model says the colours and the model's inpainter says the detail.

A small video model knows better than its inpainter what belongs into a hole, and covers it with blotches where it
should be smooth. Ours, for the nano models; the papers leave the model's paint as it is.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.stop import checked


def take_texture(
    raw: Float[Tensor, "T 3 h w"], filled: Float[Tensor, "T 3 h w"], holes: Bool[Tensor, "T 1 h w"], blur: float
) -> Float[Tensor, "T 3 h w"]:
    """The raw result in [0, 1] with the filling's detail in its holes; all else stays bit-identical.

    In a hole it is the filling, plus how the result differs from it, blurred over the hole alone. filled: in [0, 1].
    blur: standard deviation in pixels; what is finer is the filling's.
    """
    result = raw.clone()
    for t in checked(holes.flatten(1).any(1).nonzero()[:, 0].tolist()):
        hole = holes[t, 0].numpy().astype(np.float32)
        smooth = lambda part: cv2.GaussianBlur(part, (0, 0), blur, borderType=cv2.BORDER_REFLECT_101)
        share = smooth(hole)
        for channel, own, other in zip(result[t], raw[t], filled[t], strict=True):
            change = smooth((own - other).numpy() * hole) / np.maximum(share, 1e-6)
            channel[holes[t, 0]] = (other + torch.from_numpy(change))[holes[t, 0]].clamp(0, 1)
    return result
