"""What a request leaves open, as the model or the task decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FEW_STEPS

if TYPE_CHECKING:
    from pipeline.render.request import RenderRequest


def steps_of(request: RenderRequest, backbone: Backbone) -> int:
    """The sampling steps of a request: its own, or what the model or the fast mode was made for."""
    return request.steps or (FEW_STEPS.steps if request.fast == "lora" else backbone.steps)


def latent_mask_of(request: RenderRequest, backbone: Backbone, still: bool) -> str:
    """The latent mask of a request: its own, or the learned one, where the model has an encoder for it.

    Where the camera stands `still` the clip is the clean video itself, and the training-free mask is the reference.
    """
    learned = backbone.settings.mask_encoder is not None and not still
    return request.latent_mask or ("learned" if learned else "training-free")


def guidance_scale_of(request: RenderRequest, backbone: Backbone) -> float:
    """As `steps_of`, the scale of classifier-free guidance; 1 where both prompts are the same, which is no guidance."""
    if request.prompt == request.negative_prompt:
        return 1.0
    if request.guidance_scale is not None:
        return request.guidance_scale
    if request.fast == "lora":
        return FEW_STEPS.guidance_scale
    replaces = request.mask is not None and not request.remove
    special = backbone.settings.replace_guidance_scale if replaces else None
    return backbone.guidance_scale if special is None else special


def _strength(request: RenderRequest, backbone: Backbone) -> float:
    return backbone.settings.strength if request.strength is None else request.strength
