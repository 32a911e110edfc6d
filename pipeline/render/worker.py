"""The part of a render that an accelerator does: encode, sample, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.finish.texture import take_texture
from pipeline.known.known import Known
from pipeline.media.video import to_bytes
from pipeline.method.guidance import Guidance, steps_of
from pipeline.method.methods import METHODS, solve
from pipeline.method.problem import windows_of
from pipeline.method.sampler import Step
from pipeline.method.told import Told
from pipeline.models import table
from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FEW_STEPS
from pipeline.render.events import StageEvent, StepEvent, fraction_of, stage
from pipeline.render.loaded import get_backbone


@dataclass(frozen=True, eq=False)
class Filled:
    """video: the raw result, T 3 h w in [0, 1]; notes: how it was made, for the user."""

    video: Float[np.ndarray, "T 3 h w"]
    notes: tuple[str, ...]


Fill = Callable[[str, Known, Guidance], Generator[StageEvent | StepEvent, None, Filled]]


def fill(backbone: str, known: Known, guidance: Guidance) -> Generator[StageEvent | StepEvent, None, Filled]:
    """Stage and step events; returns the raw result. Raises `InputError`.

    backbone: its name, folder or hub id. All that is needed is among the arguments, and crosses as plain arrays: a
    shared GPU is another process, and only what must be done there should be.
    """
    model, frames = get_backbone(backbone), len(known.clip)
    yield stage("encode", "Encoding the warp")
    begun = time.perf_counter()
    told = METHODS[guidance.method](model, known, guidance)
    encoding = time.perf_counter() - begun

    spans = windows_of(model, frames)
    in_windows = f" in {len(spans)} overlapping windows" if len(spans) > 1 else ""
    yield stage("sample", f"Sampling{in_windows}")
    begun = time.perf_counter()
    z = told.z
    for step, preview in with_previews(model, solve(model, told, fast=guidance.fast)):
        z = step.z
        done = step.index + 1
        left = (time.perf_counter() - begun) / done * (step.total - done)
        # decoding costs about as much as the encodings, and so does the rest
        left += 2 * encoding
        fraction = fraction_of("sample", done / step.total)
        yield StepEvent(done, step.total, step.sigma, preview, left, fraction, model.preview_by)

    notes = tuple(_speed_notes(guidance, model))
    yield stage("decode", "Decoding")
    return Filled(decoded(model, told, z, known).numpy(), notes)


def decoded(backbone: Backbone, told: Told, z: Float[Tensor, "C t h w"], known: Known) -> Float[Tensor, "T 3 h w"]:
    """The raw result of a solution z, on the CPU, with the inpainter's texture where the backbone asks for it."""
    frames = len(known.clip)
    video = backbone.decode(z)[:frames].cpu()
    if not backbone.settings.texture or told.filled is None:
        return video
    holes = ~known.measurement.mask
    if known.place is not None:  # what stands there is the model's alone
        holes &= ~known.place[:, None]
    return take_texture(video, told.filled[:frames].cpu(), holes.cpu(), backbone.settings.texture)


def with_previews(backbone: Backbone, steps: Iterable[Step]) -> Iterator[tuple[Step, np.ndarray]]:
    """Each step with its preview, uint8 t h w 3, once it is computed.

    On a GPU it is waited for while the next step is being computed already, so that the device is never idle.
    """
    waiting: tuple[Step, Tensor, torch.cuda.Event] | None = None
    for step in steps:
        pixels = to_bytes(backbone.preview(step.z0_hat)).to("cpu", non_blocking=True)
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


def _speed_notes(guidance: Guidance, backbone: Backbone) -> list[str]:
    passes, notes = backbone.passes, []
    if guidance.fast == "cache":
        spared = passes.asked - passes.whole
        notes.append(
            f"Fast mode: {spared} of {passes.asked} passes through the model were cut short after their first block."
        )
    if guidance.fast == "lora":
        spec = table.MODELS[FEW_STEPS.model]
        notes.append(
            f"Fast mode: {steps_of(guidance, backbone)} steps with {spec.title}, whose licence is {spec.licence}."
        )
    if backbone.mode.eight_bits:
        notes.append("The transformer's weights were kept in 8 bits, which changes the result a little.")
    return notes
