"""All that is known of the target video before a model is asked, in one value."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath, stands_still
from pipeline.known.measurement import Measurement


@dataclass(frozen=True, eq=False)
class Known:
    """What every method is given. T frames at the size h w at which the model works.

    measurement: what the target cameras see of the clip; where other frames were asked, with what they saw.
    clip: T 3 h w, the clip itself, RGB in [0, 1].
    z: T h w, its distance along the optical axis from the filming camera; nan where it must not be used.
    source, target: the cameras that filmed the clip, and those that are wanted, in pixels of h w.
    place: T h w, where something new is to stand, as the target cameras see it; None if nothing new is wanted.
    truth: T 3 h w, the clean target video where somebody has it, as evaluations do; None for none.
    """

    measurement: Measurement
    clip: Float[Tensor, "T 3 h w"]
    z: Float[Tensor, "T h w"]
    source: CameraPath
    target: CameraPath
    place: Bool[Tensor, "T h w"] | None = None
    truth: Float[Tensor, "T 3 h w"] | None = None

    @property
    def still(self) -> bool:
        """Whether the target camera is the one that filmed the clip, throughout."""
        return stands_still(self.source, self.target)

    @property
    def clean(self) -> Float[Tensor, "T 3 h w"] | None:
        """The clean target video: the truth, or the clip itself where the camera stands still; None if unknown."""
        return self.truth if self.truth is not None or not self.still else self.clip

    def __reduce__(self) -> tuple[Callable[[bytes], Known], tuple[bytes]]:
        # as plain bytes: between processes torch would send tensors through shared memory, which containers keep small
        return _unpacked, (pickle.dumps(vars(self)),)


def _unpacked(packed: bytes) -> Known:
    given: dict[str, Any] = pickle.loads(packed)
    return Known(**given)
