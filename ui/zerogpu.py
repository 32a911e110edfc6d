"""A shared GPU that is lent for one call at a time (ZeroGPU, on Hugging Face Spaces), and what follows from it.

There, this process never has CUDA: a decorated generator runs in a process that is forked for it, its arguments and
what it yields are pickled, and it has to say beforehand how long it will take. What was moved to "cuda" in the main
thread before the launch is on the GPU when a call begins; what is loaded later is loaded in each call anew. Elsewhere
all this does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
import torch

from pipeline import InputError
from pipeline.method.guidance import guidance_scale_of, steps_of
from pipeline.models import cost
from pipeline.render.events import FailedEvent, StageEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest

try:
    import spaces
    from spaces.config import Config

    ACTIVE: bool = Config.zero_gpu
except ImportError:
    spaces, ACTIVE = None, False

Work = Callable[..., Generator[Any, None, None]]

# What is lent is 60 of the 132 processors of an H200: 450e12 operations a second in bfloat16, 225e12 in TF32, according
# to its data sheet. Assumed, not measured: a third of it in the transformer, a tenth in the VAE.
PACE = cost.Pace(transformer=150e12, vae=20e12)
START_SECONDS = 15.0  # to fork, to bring the weights to the GPU, and to carry the video there and back
DEPTH_SECONDS = 0.3  # for a frame of 480x832


def on_gpu(work: Work, seconds: Callable[..., int]) -> Work:
    """A generator of ours, on the shared GPU if there is one. seconds: its duration, from its arguments.

    User errors, and what keeps a visitor from the GPU (quota, queue, time), are raised as `InputError`. Closing the
    generator closes that of the other process.
    """
    if not ACTIVE or spaces is None:
        return work

    @wraps(work)
    def inside(*args: Any) -> Generator[Any, None, None]:
        try:  # of an exception only its class would cross
            yield from work(*args)
        except InputError as error:
            yield FailedEvent(str(error))
        except torch.OutOfMemoryError:
            yield FailedEvent("The memory of the GPU is not enough; choose fewer frames or a smaller size.")

    lent = spaces.GPU(inside, duration=seconds)

    @wraps(work)
    def outside(*args: Any) -> Generator[Any, None, None]:
        yield StageEvent("gpu", "Waiting for a GPU", 0.11)
        try:
            with closing(lent(*args)) as events:
                for event in events:
                    if isinstance(event, FailedEvent):
                        raise InputError(event.message)
                    yield event
        except gr.Error as error:
            raise _understood(error, seconds(*args)) from error

    return outside


def lend(function: Callable[..., Any], seconds: int) -> Callable[..., Any]:
    """As `on_gpu`, of a plain function, for so many seconds at most."""
    if not ACTIVE:
        return function

    def work(args: tuple, options: dict[str, Any]) -> Generator[Any, None, None]:
        yield function(*args, **options)

    lent = on_gpu(work, lambda *_: seconds)

    @wraps(function)
    def outside(*args: Any, **options: Any) -> Any:
        (*_, result) = lent(args, options)
        return result

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


def fill_seconds(
    request: RenderRequest,
    video: np.ndarray,
    mask: np.ndarray,
    source: np.ndarray,
    still: bool,
    place: np.ndarray | None = None,
    depth: np.ndarray | None = None,
) -> int:
    """How long to ask for, for `render.fill` with these arguments."""
    backbone = get_backbone(request.backbone)
    frames = 4 * -(-(len(video) - 1) // 4) + 1
    height, width = video.shape[-2:]
    transformer, vae = (dict(model.config) for model in (backbone.transformer, backbone.vae))
    work = cost.count(transformer, vae, backbone.settings.text_tokens, frames, (height, width))
    steps, passes = steps_of(request, backbone), 1 if guidance_scale_of(request, backbone) == 1 else 2
    return round(START_SECONDS + cost.seconds_of(work, PACE, steps=steps, passes=passes))


def depth_seconds(ref: str, frames: np.ndarray, size: tuple[int, int]) -> int:
    """How long to ask for, for `render.find_depth` with these arguments."""
    return round(START_SECONDS + DEPTH_SECONDS * len(frames) * frames[0, 0].size / (480 * 832))
