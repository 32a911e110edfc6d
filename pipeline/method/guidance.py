"""The settings that a method reads, and what they leave open, as the model or the task decides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import InputError
from pipeline.known.known import Known
from pipeline.method.latent_mask import LATENT_MASKS, PHI, TAU
from pipeline.method.solvers import SCHEDULES, SOLVERS
from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FAST, FEW_STEPS

CONDITIONS = ("warp", "first-frame", "none")


@dataclass(frozen=True)
class Guidance:
    """How the sampler is told what is known. Raises `InputError` on values out of range.

    method: a name of `methods.METHODS`.
    prompt, negative_prompt: what the video shows, and what it must not show.
    seed: of the noise.
    steps, guidance_scale: of the sampling, and of classifier-free guidance; None for what the model was made for.
    strength: the noise level in (0, 1] from which sampling starts; 1 is pure noise, below it the filled warp shines
        through (SDEdit). None for the model's.
    latent_mask: a name of `latent_mask.LATENT_MASKS`; None: see `latent_mask_of`.
    solver: a name of `solvers.SOLVERS`.
    phi, tau: a name of `latent_mask.PHI`, for the masks that need one, and its temperature, above 0.
    gamma: above 0, how much DDS trusts the model over the measurement.
    iterations, step_size: of the solver, where it has them; None for its own.
    schedule: of `solvers.SCHEDULES`, how the iterations go with the noise level.
    guide_from, guide_until: the solver acts while guide_until <= sigma <= guide_from.
    condition: what the model's inpainting channels show: the warp, only its first frame, or nothing.
    fast: a name of `fast.FAST`; "off" for full quality.
    """

    method: str = "inversecrafter"
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    latent_mask: str | None = None
    solver: str = "dds"
    phi: str = "wiener"
    tau: float = TAU
    gamma: float = 0.03
    iterations: int | None = None
    step_size: float | None = None
    schedule: str = "constant"
    guide_from: float = 1.0
    guide_until: float = 0.0
    condition: str = "warp"
    fast: str = "off"

    def __post_init__(self) -> None:
        need, optional, one_of = checks(self)
        need(isinstance(self.method, str) and bool(self.method), "method", "the name of a method")
        for name in ("prompt", "negative_prompt"):
            need(isinstance(getattr(self, name), str), name, "text")
        need(is_int(self.seed) and 0 <= self.seed < 2**63, "seed", "a whole number, 0 or more")
        optional("steps", lambda value: is_int(value) and 1 <= value <= 1000, "a whole number from 1 to 1000")
        optional("guidance_scale", lambda value: is_number(value) and 0 <= value <= 100, "a number from 0 to 100")
        optional("strength", lambda value: is_number(value) and 0 < value <= 1, "a noise level above 0, up to 1")
        need(is_number(self.gamma) and self.gamma > 0, "gamma", "a number above 0")
        need(is_number(self.tau) and self.tau > 0, "tau", "a number above 0")
        optional("iterations", lambda value: is_int(value) and 1 <= value <= 100, "a whole number from 1 to 100")
        optional("step_size", lambda value: is_number(value) and value >= 0, "a number, 0 or more")
        for name in ("guide_from", "guide_until"):
            value = getattr(self, name)
            need(is_number(value) and 0 <= value <= 1, name, "a noise level from 0 to 1")
        need(self.guide_until <= self.guide_from, "guide_until", f"at most guide_from ({self.guide_from})")
        optional("latent_mask", lambda value: value in tuple(LATENT_MASKS), f"one of {', '.join(LATENT_MASKS)}")
        one_of("solver", SOLVERS)
        one_of("phi", PHI)
        one_of("schedule", SCHEDULES)
        one_of("condition", CONDITIONS)
        one_of("fast", FAST)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checks(given: Any) -> tuple[Callable[[bool, str, str], None], Callable[..., None], Callable[..., None]]:
    """Three ways to check a field of a dataclass by its name, each raising an `InputError` that says what it must be:
    need(ok, name, wanted), optional(name, ok, wanted) for those that may be None, one_of(name, names)."""

    def need(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise InputError(f"{name} must be {wanted}; it is {getattr(given, name)!r}.")

    def optional(name: str, ok: Callable[[Any], Any], wanted: str) -> None:
        value = getattr(given, name)
        need(value is None or bool(ok(value)), name, wanted)

    def one_of(name: str, names: Iterable[str]) -> None:
        need(getattr(given, name) in tuple(names), name, f"one of {', '.join(names)}")

    return need, optional, one_of


def steps_of(guidance: Guidance, backbone: Backbone) -> int:
    """The sampling steps: those that are asked for, or what the model or the fast mode was made for."""
    return guidance.steps or (FEW_STEPS.steps if guidance.fast == "lora" else backbone.steps)


def strength_of(guidance: Guidance, backbone: Backbone) -> float:
    """The noise level from which sampling starts: the one asked for, or the model's."""
    return backbone.settings.strength if guidance.strength is None else guidance.strength


def guidance_scale_of(guidance: Guidance, backbone: Backbone, *, replaces: bool) -> float:
    """The scale of classifier-free guidance: the one asked for, or what the model or the fast mode was made for.

    It is 1, which is no guidance, where both prompts are the same. replaces: something new is to stand somewhere, for
    which a model may have a scale of its own.
    """
    if guidance.prompt == guidance.negative_prompt:
        return 1.0
    if guidance.guidance_scale is not None:
        return guidance.guidance_scale
    if guidance.fast == "lora":
        return FEW_STEPS.guidance_scale
    special = backbone.settings.replace_guidance_scale if replaces else None
    return backbone.guidance_scale if special is None else special


def latent_mask_of(guidance: Guidance, backbone: Backbone, known: Known) -> str:
    """The latent mask: the one asked for, or the learned one, where the model has an encoder for it.

    Where the camera stands still the clip is the clean video itself, and the training-free mask is the reference.
    """
    learned = backbone.settings.mask_encoder is not None and not known.still
    return guidance.latent_mask or ("learned" if learned else "training-free")
