"""The object to be replaced, in every frame of a clip: masks that the user gives, and the frames in between found.

Masks of this module are True (1) where the object is; `measurement` has the other polarity. An object is followed
either by optical flow with what comes with the app (`propagate`), or by SAM 2 (`track_with_sam2`).
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.masks.flow import propagate
from pipeline.masks.sam2 import sam2_at_hand, track_with_sam2
from pipeline.masks.shape import Painted, fill_holes


def follower() -> str:
    """What `follow` uses on this machine, in words."""
    return "optical flow" if sam2_at_hand() is None else "SAM 2"


def follow(
    frames: Float[Tensor, "T 3 H W"], painted: Painted
) -> Generator[tuple[int, int], None, Bool[Tensor, "T H W"]]:
    """The painted object through a clip, by SAM 2 if its weights are in the hub's cache, else as `propagate` does.

    Nothing is downloaded: `python -m pipeline models --download sam2-hiera-tiny` brings the weights. What surrounds
    itself in a frame that was not painted is filled.
    """
    if len(painted) == len(frames):
        return torch.stack([painted[t] for t in range(len(frames))]).to(frames.device)
    model = sam2_at_hand()
    found = yield from (propagate(frames, painted) if model is None else track_with_sam2(frames, painted, model))
    given = torch.tensor([t in painted for t in range(len(found))]).view(-1, 1, 1)
    return torch.where(given, found, fill_holes(found))
