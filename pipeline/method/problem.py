"""What is known, taken into the latent space: the encoded measurement, its latent mask, and what the model is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.known.fill import fill_unknown
from pipeline.known.known import Known
from pipeline.media.video import size_of
from pipeline.method.guidance import Guidance, guidance_scale_of, latent_mask_of, strength_of
from pipeline.method.latent_mask import LATENT_MASKS, MaskInputs
from pipeline.method.solvers import SOLVERS
from pipeline.method.windows import windows
from pipeline.prior.backbone import Backbone, Conditions, group_mask

OVERLAP = 0.25  # share of a window of latent frames that the next one shares at least
COMPLETE_BELOW = 0.01  # share of unknown pixels up to which the first frame counts as complete


@dataclass(frozen=True, eq=False)
class Problem:
    """What is known, in latents of the clip padded to the frames that the model takes.

    y_full: the measurement, its holes filled, encoded; None if neither a solver nor the start needs it.
    h: how far each latent is known; None without data consistency.
    conditions: what the model is told.
    noise: that sampling starts from.
    filled: the measurement, padded, its holes filled; None where nothing is shown or imposed.
    video, mask: the padded measurement, for solvers that work on pixels.
    """

    y_full: Float[Tensor, "C t h w"] | None
    h: Float[Tensor, "C t h w"] | None
    conditions: Conditions
    noise: Float[Tensor, "C t h w"]
    filled: Float[Tensor, "T 3 H W"] | None = None
    video: Float[Tensor, "T 3 H W"] | None = None
    mask: Bool[Tensor, "T 1 H W"] | None = None


def prepare(backbone: Backbone, known: Known, guidance: Guidance) -> Problem:
    """Fill the holes of a measurement, encode it, and find how far each latent is known.

    Raises `InputError` if the latent mask needs the clean target video and there is none.
    """
    measurement = known.measurement
    pad = lambda video: padded(video, backbone)
    filled = cache(lambda: pad(fill_holes(backbone, known)))
    video, mask = pad(measurement.video), pad(measurement.mask)
    y_full = h = None
    if guidance.solver != "none" or strength_of(guidance, backbone) < 1:
        y_full = backbone.encode(filled())
    if guidance.solver != "none":
        kind = LATENT_MASKS[latent_mask_of(guidance, backbone, known)]
        check_mask(guidance, known.clean is not None)
        inputs = MaskInputs(
            backbone.encode,
            backbone.latent_shape(len(video), *size_of(video)),
            mask,
            filled(),
            source=pad(known.clip),
            target=None if known.clean is None else pad(known.clean),
            phi=guidance.phi,
            tau=guidance.tau,
            seed=guidance.seed,
            learned=backbone.learned_mask,
        )
        h = kind.make(inputs).h.to(backbone.device)

    told = measurement.mask.clone()
    if guidance.condition == "none":
        told[:] = False
    elif guidance.condition == "first-frame":
        told[1:] = False
    shown = None
    if backbone.settings.fill_condition:
        whole = guidance.condition == "warp"
        shown = y_full if whole else None
        if shown is None:
            shown = backbone.encode(filled() if whole else pad(fill_unknown(replace(measurement, mask=told))))
    complete = bool(told[0].float().mean() > 1 - COMPLETE_BELOW)
    conditions = Conditions(
        backbone.condition(video, pad(told), shown),
        backbone.embed(guidance.prompt),
        backbone.embed(guidance.negative_prompt),
        _scale(backbone, known, guidance),
        backbone.embed_image(filled()[0] if complete and backbone.has_image_branch else None),
    )
    noise = backbone.noise(len(video), *size_of(video), guidance.seed)
    used = guidance.condition == "warp" or y_full is not None
    problem = Problem(y_full, h, conditions, noise, filled() if used else None)
    if SOLVERS[guidance.solver].pixels:
        problem = replace(problem, video=video.to(backbone.device), mask=mask.to(backbone.device))
    return problem


def fill_holes(backbone: Backbone, known: Known) -> Float[Tensor, "T 3 h w"]:
    """The measurement with its holes filled: smoothly, and then by the model's inpainter, where it has one.

    Where something new is to stand the filling stays smooth, so that nothing else stands there already.
    """
    smooth = fill_unknown(known.measurement)
    filled = backbone.inpaint(smooth, known.measurement.mask)
    return filled if known.place is None else torch.where(known.place[:, None], smooth, filled)


def check_mask(guidance: Guidance, clean: bool) -> None:
    """Raises `InputError` if the latent mask that is asked for needs the clean target video, and there is none."""
    kind = LATENT_MASKS.get(guidance.latent_mask or "")
    if kind is not None and kind.needs_target and guidance.solver != "none" and not clean:
        raise InputError(
            "The reference latent mask needs the clean target video, which a new camera path does not have; "
            "choose another latent mask, such as training-free, or the camera still."
        )


def _scale(backbone: Backbone, known: Known, guidance: Guidance) -> float | Float[Tensor, "1 t h w"]:
    """The scale of classifier-free guidance: that of the prompt where something new is to stand, if it is to.

    Elsewhere what the prompt names is not wanted, and what an own negative prompt names even less.
    """
    scale = guidance_scale_of(guidance, backbone, replaces=known.place is not None)
    if known.place is None or scale == 1:
        return scale
    # every latent that has to do with a pixel of it
    cells = F.max_pool2d(padded(known.place[:, None].float(), backbone), backbone.spatial)
    place = group_mask(cells, backbone.temporal, 1).amax(0, keepdim=True).to(backbone.device)
    return torch.where(place > 0, scale, 1.0 if guidance.negative_prompt else 0.0)


def windows_of(backbone: Backbone, frames: int) -> tuple[slice, ...]:
    """The windows of latent frames in which a clip of so many frames is sampled; one, if the model takes all at once.

    In the middle of a clip a window is a slice of the clip's state and condition, though the model was trained on
    windows that begin with a latent of a single frame. Tried instead, and no better: before each window the clip's
    first latent, or the latent of a single frame of its own. `pipeline.evaluation.windows` measures seams.
    """
    latents = lambda count: (backbone.padded(count) - 1) // backbone.temporal + 1
    length = max(2, latents(backbone.frames))
    return windows(latents(frames), length, min(length - 1, math.ceil(OVERLAP * length)))


def padded(video: Float[Tensor, "T c H W"], backbone: Backbone) -> Float[Tensor, "T+n c H W"]:
    """The video with its last frame repeated until the model takes it, see `Backbone.padded`."""
    missing = backbone.padded(len(video)) - len(video)
    return torch.cat([video, video[-1:].expand(missing, *video.shape[1:])]) if missing else video
