"""The part of a render that an accelerator does: encode, sample, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.known.measurement import Measurement
from pipeline.media.video import (
    _bytes,
)
from pipeline.method.guidance import steps_of
from pipeline.method.problem import prepare, solve, windows_of
from pipeline.method.sampler import Step
from pipeline.models import table
from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FEW_STEPS
from pipeline.render.events import StageEvent, StepEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest

Fill = Callable[..., Generator[StageEvent | StepEvent | tuple[str, ...] | np.ndarray, None, None]]


def with_previews(backbone: Backbone, steps: Iterable[Step]) -> Iterator[tuple[Step, np.ndarray]]:
    """Each step with its preview, uint8 t h w 3, once it is computed.

    On a GPU it is waited for while the next step is being computed already, so that the device is never idle.
    """
    waiting: tuple[Step, Tensor, torch.cuda.Event] | None = None
    for step in steps:
        pixels = _bytes(backbone.preview(step.z0_hat)).to("cpu", non_blocking=True)
        if backbone.device.type != "cuda":
            yield step, pixels.numpy()
            continue
        computed = torch.cuda.Event()
        computed.record()
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[0], waiting[1].numpy()
        waiting = step, pixels, computed
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[0], waiting[1].numpy()


def fill(
    request: RenderRequest,
    video: Float[np.ndarray, "T 3 h w"],
    mask: Bool[np.ndarray, "T 1 h w"],
    source: Float[np.ndarray, "T 3 h w"],
    still: bool,
    place: Bool[np.ndarray, "T h w"] | None = None,
    depth: Float[np.ndarray, "T h w"] | None = None,
) -> Generator[StageEvent | StepEvent | tuple[str, ...] | np.ndarray, None, None]:
    """The part of a render that an accelerator does: encode, sample, decode. Notes, then the raw video come last.

    video, mask, depth: of the measurement; source: the clip; still: it is the clean video that is wanted; place: see
    `prepare`. Plain arrays, and all that it needs among its arguments: a shared GPU is another process, and only what
    must be done there should be.
    """
    backbone = get_backbone(request.backbone)
    yield StageEvent("encode", "Encoding the warp", 0.12)
    begun = time.perf_counter()
    seen = None if depth is None else torch.from_numpy(depth)
    measurement = Measurement(torch.from_numpy(video), torch.from_numpy(mask), seen)
    clip = torch.from_numpy(source)
    prompted = None if place is None else torch.from_numpy(place)
    target = clip if still else None
    problem = prepare(backbone, measurement, clip, request, target=target, place=prompted, still=still)
    encoding = time.perf_counter() - begun

    spans = windows_of(backbone, len(video))
    in_windows = f" in {len(spans)} overlapping windows" if len(spans) > 1 else ""
    yield StageEvent("sample", f"Sampling{in_windows}", 0.18)
    begun = time.perf_counter()
    z = problem.noise
    for step, preview in with_previews(backbone, solve(backbone, problem, request)):
        z = step.z
        done = step.index + 1
        left = (time.perf_counter() - begun) / done * (step.total - done)
        # decoding costs about as much as the encodings, and so does the rest
        left += 2 * encoding
        fraction = 0.18 + 0.62 * done / step.total
        yield StepEvent(done, step.total, step.sigma, preview, left, fraction, backbone.preview_by)

    yield tuple(_speed_notes(request, backbone))
    yield StageEvent("decode", "Decoding", 0.8)
    yield backbone.decode(z)[: len(video)].cpu().numpy()


def _speed_notes(request: RenderRequest, backbone: Backbone) -> list[str]:
    passes, notes = backbone.passes, []
    if request.fast == "cache":
        spared = passes.asked - passes.whole
        notes.append(
            f"Fast mode: {spared} of {passes.asked} passes through the model were cut short after their first block."
        )
    if request.fast == "lora":
        spec = table.MODELS[FEW_STEPS.model]
        notes.append(
            f"Fast mode: {steps_of(request, backbone)} steps with {spec.title}, whose licence is {spec.licence}."
        )
    if backbone.mode.eight_bits:
        notes.append("The transformer's weights were kept in 8 bits, which changes the result a little.")
    return notes
