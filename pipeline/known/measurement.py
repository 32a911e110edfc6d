"""What is known of the target video: pixels and a mask."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Measurement:
    """`video`: T 3 H W, RGB in [0, 1], 0 where unobserved. `mask`: T 1 H W bool, True = observed. `z`: how far away
    from the target cameras that is, nan where it is not known, None if it is not known at all; see `fill_unknown`."""

    video: Float[Tensor, "T 3 H W"]
    mask: Bool[Tensor, "T 1 H W"]
    z: Float[Tensor, "T H W"] | None = None
