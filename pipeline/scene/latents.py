"""What a scene encoder gives: latent states of the scene, and the cameras that filmed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SceneLatents:
    """The scene as G groups of s tokens, one group for each state that is kept.

    tokens: the states, in the encoder's own scale. Which frames they belong to is said by `encode`.
    world_from_cam: the camera of each group's frame, OpenCV axes, rigid. The first camera is the world.
    unit: how long the subject's distance is in the unit of `world_from_cam`, above 0. It is estimated by the encoder.
    confidence: how sure the encoder is of each group, at least 1 for certain encoders; None where it does not say.
    """

    tokens: Float[Tensor, "G s d"]
    world_from_cam: Float[Tensor, "G 4 4"]
    unit: float
    confidence: Float[Tensor, " G"] | None = None

    def __post_init__(self) -> None:
        groups = len(self.tokens)
        if self.tokens.ndim != 3 or self.world_from_cam.shape != (groups, 4, 4):
            raise ValueError(f"tokens {tuple(self.tokens.shape)} and poses {tuple(self.world_from_cam.shape)}")
        if not self.unit > 0:
            raise ValueError(f"the unit {self.unit} is not above 0")
        if self.confidence is not None and self.confidence.shape != (groups,):
            raise ValueError(f"tokens {tuple(self.tokens.shape)}, confidence {tuple(self.confidence.shape)}")


class SceneEncoder(Protocol):
    """A network that reads a clip. Each encoder needs an adapter that was trained for it.

    every: of how many frames one state is kept; width: d of its tokens.
    """

    every: int
    width: int

    def encode(self, frames: Float[Tensor, "T 3 H W"]) -> SceneLatents:
        """Frames in [0, 1], in the order of time; the states after frames 0, every, 2 every ... of them are kept."""
        ...
