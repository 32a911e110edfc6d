"""The models that are loaded: one backbone and one depth model, each loaded once."""

from __future__ import annotations

import gc
import math
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pipeline import InputError
from pipeline.depth.load import load_depth_model
from pipeline.method.lavr import parts_of
from pipeline.models import hub, memory
from pipeline.prior.backbone import Backbone
from pipeline.prior.load import load_backbone
from pipeline.prior.settings import read_settings
from pipeline.render.request import RenderRequest
from pipeline.stop import check_in


def get_backbone(ref: str, request: RenderRequest | None = None, clip: tuple[int, int, int] | None = None) -> Backbone:
    """The backbone of that name, folder or hub id; loaded once, from whichever thread asks first.

    clip: frames, height and width that the request is about to render, for which the model is loaded again if
    it does not fit into the GPU's memory the way it is placed, or if the request wants another placement. Without it
    any will do. Raises `InputError` where the memory is not enough.
    """
    with _LOADING:
        kept = _BACKBONES.get(ref)
        if kept is not None and memory.lent():  # what was loaded again would be lost after the call
            if request is not None:
                _mode(kept.backbone, request, clip)  # refuses another placement
                if request.compile:
                    kept.backbone.compile()  # refuses
            return kept.backbone
        if kept is not None and (request is None or clip is None or _suits(kept, request, clip)):
            return kept.backbone
        kept = None
        _BACKBONES.clear()  # first: two large models would not fit into memory together
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        backbone = load_backbone(ref, mode=lambda loaded: _mode(loaded, request, clip))
        compiled = request is not None and request.compile
        if compiled:
            backbone.compile()
        _BACKBONES[ref] = _Kept(backbone, compiled)
        return backbone


def _suits(kept: _Kept, request: RenderRequest, clip: tuple[int, int, int]) -> bool:
    """Whether the model can stay as it is placed: a more frugal mode than needed costs less than loading it again."""
    mode = kept.backbone.mode
    if kept.compiled != request.compile:
        return False
    if mode == _mode(kept.backbone, request, clip):
        return True
    parts = parts_of(kept.backbone, request.guidance)
    present = kept.backbone.plan(*clip, wanted=mode.name, fast=request.guidance.fast, parts=parts)
    fits = present.need is None or present.free is None or present.need <= present.free
    return request.memory == "auto" and not mode.eight_bits and fits


def _mode(backbone: Backbone, request: RenderRequest | None, clip: tuple[int, int, int] | None) -> memory.Mode:
    wanted, fast = (request.memory, request.guidance.fast) if request else ("auto", "off")
    if clip is None:
        frames = (request and request.frames) or backbone.length
        side = round(math.sqrt(backbone.pixels))
        clip = frames, *((request and request.size) or (side, side))
    parts = parts_of(backbone, request.guidance) if request else 1
    return backbone.plan(*clip, wanted=wanted, fast=fast, parts=parts).mode


def warm(ref: str, depth_model: str | None = None) -> None:
    """Load what an analysis and a render with the backbone `ref` need, so that the first one need not wait for it.

    depth_model: None for what comes with the backbone.
    """
    backbone = get_backbone(ref)
    model = depth_model or depth_model_of(backbone)
    backbone.preview_by  # noqa: B018  loads what makes the previews
    loaded_depth_model(model)


def loaded_depth_model(ref: str) -> Any:
    """The depth model of that name, folder or hub id, see `depth.load`; loaded once."""
    with _LOADING:
        return _load_depth_model(ref)


def release_depth_model() -> None:
    """Free the depth model where its memory is a GPU's, which the video model is about to need."""
    if torch.cuda.is_available() and not memory.lent():
        _load_depth_model.cache_clear()


def _new_lock() -> None:
    global _LOADING
    _LOADING = threading.Lock()


_LOADING = threading.Lock()


if hasattr(os, "register_at_fork"):
    # a process that is forked while another thread loads would wait for that thread, which it does not have
    os.register_at_fork(after_in_child=_new_lock)


@dataclass(frozen=True, eq=False)
class _Kept:
    backbone: Backbone
    compiled: bool


_BACKBONES: dict[str, _Kept] = {}  # one at most


@lru_cache(maxsize=1)
def _load_depth_model(ref: str) -> Any:
    model = load_depth_model(ref, "cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(model, torch.nn.Module) and not torch.cuda.is_available():
        check_in(model)
    return model


def depth_model_of(backbone: Backbone) -> str:
    """What estimates depth unless the user chooses: the backbone's own, else the one that comes with the program."""
    ref = backbone.depth or read_settings(Path(hub.resolve("nano"))).depth
    if ref is None:
        raise InputError("There is no depth model; give the clip's depth as a file.")
    return ref
