"""A shared GPU that is lent for one call at a time (ZeroGPU, on Hugging Face Spaces), and what follows from it.

There, this process never has CUDA: a decorated generator runs in a process that is forked for it, its arguments and
what it yields are pickled, and it has to say beforehand how long it will take. What was moved to "cuda" in the main
thread before the launch is on the GPU when a call begins; what is loaded later is loaded in each call anew. Elsewhere
all this does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
import torch

from pipeline import InputError, result_of
from pipeline.known.known import Known
from pipeline.media.video import size_of
from pipeline.method.guidance import Guidance, guidance_scale_of, steps_of
from pipeline.method.lavr import parts_of
from pipeline.models import cost
from pipeline.render.events import FailedEvent, stage
from pipeline.render.loaded import get_backbone

try:
    import spaces
    from spaces.config import Config

    ACTIVE: bool = Config.zero_gpu
except ImportError:
    spaces, ACTIVE = None, False

Work = Callable[..., Generator[Any, None, Any]]

# What is lent is 60 of the 132 processors of an H200: 450e12 operations a second in bfloat16, 225e12 in TF32, according
# to its data sheet. Assumed, not measured: a third of it in the transformer, a tenth in the VAE.
PACE = cost.Pace(transformer=150e12, vae=20e12)
START_SECONDS = 15.0  # to fork, to bring the weights to the GPU, and to carry the video there and back
DEPTH_SECONDS = 0.3  # for a frame of 480x832


@dataclass(frozen=True, eq=False)
class _Returned:
    """What a generator returned in the other process."""

    value: Any


def on_gpu(work: Work, seconds: Callable[..., int]) -> Work:
    """A generator of ours, on the shared GPU if there is one. seconds: its duration, from its arguments.

    User errors, and what keeps a visitor from the GPU (quota, queue, time), are raised as `InputError`. Closing the
    generator closes that of the other process.
    """
    if not ACTIVE or spaces is None:
        return work

    @wraps(work)
    def inside(*args: Any) -> Generator[Any, None, None]:
        try:  # of an exception only its class would cross, and of what is returned nothing
            yield _Returned((yield from work(*args)))
        except InputError as error:
            yield FailedEvent(str(error))
        except torch.OutOfMemoryError:
            yield FailedEvent("The memory of the GPU is not enough; choose fewer frames or a smaller size.")

    lent = spaces.GPU(inside, duration=seconds)

    @wraps(work)
    def outside(*args: Any) -> Generator[Any, None, Any]:
        yield stage("gpu", "Waiting for a GPU")
        try:
            with closing(lent(*args)) as events:
                for event in events:
                    if isinstance(event, FailedEvent):
                        raise InputError(event.message)
                    if isinstance(event, _Returned):
                        return event.value
                    yield event
        except gr.Error as error:
            raise _understood(error, seconds(*args)) from error

    return outside


def lend(function: Callable[..., Any], seconds: int) -> Callable[..., Any]:
    """As `on_gpu`, of a plain function, for so many seconds at most."""
    if not ACTIVE:
        return function

    def work(args: tuple, options: dict[str, Any]) -> Generator[Any, None, Any]:
        return function(*args, **options)
        yield  # a generator, as `on_gpu` takes it

    lent = on_gpu(work, lambda *_: seconds)

    @wraps(function)
    def outside(*args: Any, **options: Any) -> Any:
        return result_of(lent(args, options))

    return outside


def _understood(error: gr.Error, seconds: int) -> Exception:
    """What `spaces` raises, as an exception of ours."""
    message = str(error.message)
    if "worker error" not in str(getattr(error, "title", "")):
        return InputError(message)
    if "aborted" in message:
        return InputError(
            f"The GPU was taken back before the work was done, perhaps since it took longer than the {seconds} "
            "seconds that were asked for; try again, or choose fewer frames or steps."
        )
    return RuntimeError(f"{message}, in the process that had the GPU")


def fill_seconds(backbone: str, known: Known, guidance: Guidance) -> int:
    """How long to ask for, for `worker.fill` with these arguments."""
    model = get_backbone(backbone)
    frames, size = model.padded(len(known.clip)), size_of(known.clip)
    transformer, vae = (dict(part.config) for part in (model.transformer, model.vae))
    parts = parts_of(model, guidance)
    work = cost.count(transformer, vae, model.settings.text_tokens, frames, size, parts)
    scale = guidance_scale_of(guidance, model, replaces=known.place is not None)
    seconds = cost.seconds_of(work, PACE, steps=steps_of(guidance, model), passes=1 if scale == 1 else 2)
    return round(START_SECONDS + seconds)


def depth_seconds(ref: str, frames: np.ndarray, size: tuple[int, int]) -> int:
    """How long to ask for, for `analysis.find_depth` with these arguments."""
    return round(START_SECONDS + DEPTH_SECONDS * len(frames) * frames[0, 0].size / (480 * 832))
