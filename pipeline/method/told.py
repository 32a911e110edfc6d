"""What a method hands to the sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pipeline.method.sampler import Velocity


@dataclass(frozen=True, eq=False)
class Told:
    """The arguments of `sampler.sample`.

    z: C t h w, the state at the first noise level.
    sigmas: the noise levels.
    velocity: (z_t, sigma) -> v of the model; what conditions it softly is in here.
    hooks: where data consistency acts, by the names of `sample`'s arguments.
    filled: the measurement with its holes filled, padded as z is; None where nothing is filled.
    """

    z: Float[Tensor, "C t h w"]
    sigmas: Float[Tensor, " N+1"]
    velocity: Velocity
    hooks: dict[str, Any] = field(default_factory=dict)
    filled: Float[Tensor, "T 3 H W"] | None = None
