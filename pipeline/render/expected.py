"""How long a render will take on this machine, said before it begins."""

from __future__ import annotations

import math
import time

import torch

from pipeline.media.video import size_of
from pipeline.method.guidance import guidance_scale_of, steps_of
from pipeline.method.lavr import parts_of
from pipeline.method.problem import windows_of
from pipeline.models import cost
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import Analysis
from pipeline.render.report import Report
from pipeline.render.request import RenderRequest

# What the nano model's stages take on a processor, over what their operations take at the measured pace: small
# convolutions are slower than large ones, and encoding is more than one pass.
ENCODE, SAMPLE, DECODE = 6.4, 1.75, 3.6
# Everything else, in operations at the pace of convolutions, a pixel of the result and of the working size.
RESULT, WORKING = 7.4e4, 6.3e5
BEFORE = ("load", "read", "depth", "mask", "total")  # of a report, what is no part of a render whose clip is analysed
_TAKEN: dict[str, list[float]] = {}  # by backbone that was asked about: logarithms of what renders took over expected
_PACES: dict[tuple[torch.device, torch.dtype], cost.Pace] = {}
_HERE = (torch.device("cpu"), torch.float32)


def expected_seconds(analysis: Analysis, request: RenderRequest, backbone: Backbone) -> float:
    """Seconds from Render to the result.

    Of the operations of the model's passes and the pixels of everything else, at the pace of this machine, see
    `measure`; corrected by what renders took in this process, see `learn`.
    """
    measure(backbone)
    taken = _TAKEN.setdefault(backbone.name, [])
    return _at_pace(analysis, request, backbone) * math.exp(sum(taken) / max(1, len(taken)))


def learn(report: Report, analysis: Analysis, backbone: Backbone) -> None:
    """Correct what the next renders are expected to take by what this one took, as the mean of all of them: a machine
    that others share may have been slow just then.

    Only where anyone asks: to measure the pace takes a second, and on a shared GPU there is none to measure.
    """
    if backbone.name not in _TAKEN:
        return
    taken = sum(seconds for name, seconds in report.seconds.items() if name not in BEFORE)
    _TAKEN[backbone.name].append(math.log(taken / _at_pace(analysis, report.request, backbone)))


def measure(backbone: Backbone, moments: int = 1) -> None:
    """Measure the pace of the backbone's device and of the processor for 0.2 s each, and keep the best ever measured.

    A processor that others share is half as fast for seconds on end, so that one moment says little. moments: how many,
    a second apart. A GPU is measured once.
    """
    for moment in range(moments):
        time.sleep(1.0 if moment else 0.0)
        _measure(backbone)


def _measure(backbone: Backbone) -> None:
    for key in {(backbone.device, backbone.dtype), _HERE}:
        known = _PACES.get(key)
        if known is None or key[0].type == "cpu":
            now = cost.measure_pace(*key, seconds=0.2)
            best = known or now
            _PACES[key] = cost.Pace(max(now.transformer, best.transformer), max(now.vae, best.vae))


def forget() -> None:
    """Let the pace be measured anew, and what renders took be forgotten."""
    _TAKEN.clear()
    _PACES.clear()


def _at_pace(analysis: Analysis, request: RenderRequest, backbone: Backbone) -> float:
    frames, size = len(analysis.clip.frames), size_of(analysis.clip.frames)
    transformer, vae = (dict(part.config) for part in (backbone.transformer, backbone.vae))
    count = lambda frames: cost.count(transformer, vae, backbone.settings.text_tokens, frames, size, parts)
    parts = parts_of(backbone, request.guidance)
    spans = windows_of(backbone, frames)
    lengths = [(span.stop - span.start - 1) * backbone.temporal + 1 for span in spans]
    replaces = request.mask is not None and not request.remove
    passes = 1 if guidance_scale_of(request.guidance, backbone, replaces=replaces) == 1 else 2
    work, velocity = count(backbone.padded(frames)), sum(count(length).velocity for length in lengths)
    pace, small = _PACES[backbone.device, backbone.dtype], backbone.device.type == "cpu"
    encode, sample, decode = (ENCODE, SAMPLE, DECODE) if small else (4.0, 1.0, 1.0)
    model = (encode * work.encode + decode * work.decode) / pace.vae
    model += sample * steps_of(request.guidance, backbone) * passes * velocity / pace.transformer
    full = math.prod(size_of(analysis.full.frames)) if request.composite else 0
    return model + frames * (RESULT * full + WORKING * math.prod(size)) / _PACES[_HERE].vae
