"""What the sampler is told, in latents: the measurement encoded, its mask, the condition; and the sampling itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.media.video import (
    size_of,
)
from pipeline.method.guidance import _strength, guidance_scale_of, latent_mask_of, steps_of
from pipeline.method.latent_mask import LATENT_MASKS, MaskInputs
from pipeline.method.sampler import Step, flow_sigmas, normal_like, sample, time_travel
from pipeline.method.solvers import SOLVERS, Given
from pipeline.method.windows import windowed, windows
from pipeline.prior.backbone import Backbone, group_mask

if TYPE_CHECKING:
    from pipeline.render.request import RenderRequest

JUMP = 10 / 250  # of the noise levels, that RePaint goes back at a time (its authors: 10 of 250 steps)
NO_REFERENCE = (
    "The reference latent mask needs the clean target video, which a new camera path does not have; "
    "choose another latent mask, such as training-free, or the camera still."
)
OVERLAP = 0.25  # share of a window of latent frames that the next one shares at least
COMPLETE_BELOW = 0.01  # share of unknown pixels up to which the first frame counts as complete


@dataclass(frozen=True, eq=False)
class Problem:
    """What the sampler is told, in latents of the padded clip. h: None without data consistency; y_full: None if
    it is not needed at all. video, mask: the padded measurement, for solvers that work on pixels. place: where the
    prompt is to be followed, 1 or 0, None for everywhere."""

    y_full: Float[Tensor, "C t h w"] | None
    h: Float[Tensor, "C t h w"] | None
    condition: Float[Tensor, "4+C t h w"]
    image: Float[Tensor, "N D"] | None
    noise: Float[Tensor, "C t h w"]
    video: Float[Tensor, "T 3 H W"] | None = None
    mask: Bool[Tensor, "T 1 H W"] | None = None
    place: Float[Tensor, "1 t h w"] | None = None


def prepare(
    backbone: Backbone,
    measurement: Measurement,
    source: Float[Tensor, "T 3 H W"],
    request: RenderRequest,
    *,
    target: Float[Tensor, "T 3 H W"] | None = None,
    place: Bool[Tensor, "T H W"] | None = None,
    still: bool = False,
) -> Problem:
    """Take a measurement into the latent space: fill its holes, encode it, and find how far each latent is known.

    source: the clip at working size, for latent masks that look at it. target: the clean video that is wanted, where it
    is known (replacement, evaluation), for the reference latent mask. place: where the prompt's object is to stand,
    None if the prompt is of the whole picture. still: of `stands_still`. Videos are padded to 4n + 1 frames by
    repeating the last one.
    """
    video, mask = _pad(measurement.video), _pad(measurement.mask)
    y_full = h = None
    if request.solver != "none" or _strength(request, backbone) < 1:
        filled = _pad(fill_unknown(measurement))
        y_full = backbone.encode(filled)
        if request.solver != "none":
            kind = LATENT_MASKS[latent_mask_of(request, backbone, still)]
            if kind.needs_target and target is None:
                raise InputError(NO_REFERENCE)
            grid = backbone.latent_shape(len(video), *size_of(video))
            clean = None if target is None else _pad(target)
            inputs = MaskInputs(
                backbone.encode, grid, mask, filled, _pad(source), clean, request.phi, request.tau, request.seed,
                backbone.learned_mask,
            )  # fmt: skip
            h = kind.make(inputs).h.to(backbone.device)
    told = measurement.mask.clone()
    if request.condition == "none":
        told[:] = False
    elif request.condition == "first-frame":
        told[1:] = False
    shown = y_full if request.condition == "warp" else None
    if shown is None and backbone.settings.fill_condition:
        shown = backbone.encode(_pad(fill_unknown(replace(measurement, mask=told))))
    condition = backbone.condition(video, _pad(told), shown)
    complete = bool(told[0].float().mean() > 1 - COMPLETE_BELOW)
    image = backbone.embed_image(fill_unknown(measurement)[0] if complete else None)
    noise = backbone.noise(len(video), *size_of(video), request.seed)
    problem = Problem(y_full, h, condition, image, noise)
    if place is not None:  # every latent that has to do with a pixel of it
        cells = F.max_pool2d(_pad(place[:, None].float()), backbone.spatial)
        prompted = group_mask(cells, backbone.temporal, 1).amax(0, keepdim=True)
        problem = replace(problem, place=prompted.to(backbone.device))
    if SOLVERS[request.solver].pixels:
        problem = replace(problem, video=video.to(backbone.device), mask=mask.to(backbone.device))
    return problem


def windows_of(backbone: Backbone, frames: int) -> tuple[slice, ...]:
    """The windows of latent frames in which a clip of so many frames is sampled; one, if the model takes all at once.

    In the middle of a clip a window is a slice of the clip's state and condition, though the model was trained on
    windows that begin with a latent of a single frame. Tried instead, and no better: before each window the clip's
    first latent, or the latent of a single frame of its own. `pipeline.evaluation.windows` measures seams.
    """
    latents = lambda count: (_padded(count) - 1) // backbone.temporal + 1
    length = max(2, latents(backbone.frames))
    return windows(latents(frames), length, min(length - 1, math.ceil(OVERLAP * length)))


def solve(
    backbone: Backbone, problem: Problem, request: RenderRequest, *, spans: Sequence[slice] | None = None
) -> Iterator[Step]:
    """Sample the posterior, one `Step` at a time; the z of the last one is the solution, for `decode`.

    spans: the windows in which a long clip is sampled, None for `windows_of`.

    Nothing in it waits for the device, see `Backbone.velocity`: on a GPU a step is handed out before it is computed.
    """
    prompt, negative = backbone.embed(request.prompt), backbone.embed(request.negative_prompt)
    scale, place = guidance_scale_of(request, backbone), problem.place

    def velocity(z_t: Tensor, sigma: float, span: slice) -> Tensor:
        condition, context = problem.condition[:, span], str(span.start or "")
        guidance: float | Tensor = scale
        if place is not None and scale != 1:
            # elsewhere what the prompt names is not wanted, and what an own negative prompt names even less
            guidance = torch.where(place[:, span] > 0, scale, 1.0 if request.negative_prompt else 0.0)
        return backbone.velocity(z_t, sigma, condition, prompt, negative, guidance, problem.image, context)

    sigmas = flow_sigmas(steps_of(request, backbone), backbone.shift)
    sigmas = sigmas[sigmas <= max(_strength(request, backbone), sigmas[-2].item())]
    start = sigmas[0].item()
    z = problem.noise if problem.y_full is None else (1 - start) * problem.y_full + start * problem.noise
    spans = spans or windows_of(backbone, (z.shape[1] - 1) * backbone.temporal + 1)
    whole = windowed(velocity, spans)
    if problem.y_full is None or problem.h is None:
        with backbone.fast(request.fast):
            yield from sample(whole, z, sigmas)
        return
    solver, guided = SOLVERS[request.solver], {"guide_from": request.guide_from, "guide_until": request.guide_until}
    iterations = request.iterations or solver.iterations or 1
    generator = torch.Generator().manual_seed(request.seed)
    normal_like(problem.noise, generator)  # the stream goes on after the noise that sampling starts from
    given = Given(
        problem.y_full,
        problem.h,
        whole,
        gamma=request.gamma,
        iterations=iterations,
        step_size=(solver.step_size or 0.0) if request.step_size is None else request.step_size,
        schedule=request.schedule,
        generator=generator,
        video=problem.video,
        mask=problem.mask,
        encode=backbone.encode,
        decode=backbone.decode,
    )
    if solver.resamples:
        sigmas = time_travel(sigmas, iterations, max(1, round(JUMP * (len(sigmas) - 1))), **guided)
    with backbone.fast(request.fast):
        yield from sample(whole, z, sigmas, **solver.hooks(given, **guided), generator=generator)


def _padded(frames: int) -> int:
    return 4 * math.ceil((frames - 1) / 4) + 1


def _pad(video: Tensor) -> Tensor:
    missing = _padded(len(video)) - len(video)
    return torch.cat([video, video[-1:].expand(missing, *video.shape[1:])]) if missing else video
