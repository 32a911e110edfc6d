"""From a request to files: analyse the clip, see it from the new cameras, fill in the rest, composite, write."""

from pipeline.render.analysis import Analysis, analyse, find_depth, hide
from pipeline.render.events import (
    DoneEvent,
    FailedEvent,
    RenderEvent,
    RenderResult,
    StageEvent,
    StepEvent,
    WarpEvent,
)
from pipeline.render.loaded import get_backbone, warm
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import measure
from pipeline.render.worker import fill

__all__ = [
    "Analysis",
    "DoneEvent",
    "FailedEvent",
    "RenderEvent",
    "RenderRequest",
    "RenderResult",
    "StageEvent",
    "StepEvent",
    "WarpEvent",
    "analyse",
    "fill",
    "find_depth",
    "get_backbone",
    "hide",
    "measure",
    "render",
    "warm",
]
