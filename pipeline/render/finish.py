"""From the raw result to what is shown: frames that agree, the known pixels put back at the clip's size, grain."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.finish.composite import composite
from pipeline.finish.grain import match_grain
from pipeline.finish.steady import settle
from pipeline.known.gather import at_size, depth_of_all
from pipeline.media.video import size_of
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import depth_at
from pipeline.render.events import StageEvent, stage
from pipeline.render.request import RenderRequest, seam_of
from pipeline.render.view import View, warped

_CACHED = 2**26  # pixels of depth at the clip's own resolution that are kept while it is composited: 256 MiB


@dataclass(frozen=True, eq=False)
class Finished:
    """video: the result, at the clip's size if it is composited, else at working size. raw, composited: at working
    size; None without a composite."""

    video: Float[Tensor, "T 3 H W"]
    raw: Float[Tensor, "T 3 h w"]
    composited: Float[Tensor, "T 3 h w"] | None


def finish(
    raw: Float[Tensor, "T 3 h w"], view: View, request: RenderRequest, backbone: Backbone
) -> Generator[StageEvent, None, Finished]:
    """Stage events; returns what is made of the model's own pixels."""
    analysis, known, found = view.analysis, view.known, view.found
    size, full_size = size_of(raw), size_of(analysis.full.frames)
    if found is not None and backbone.settings.steady:
        yield stage("steady", "Making the frames agree on what is painted")
        raw = settle(raw, known, found, backbone.settings.steady)
    if not request.composite:
        return Finished(raw, raw, None)
    yield stage("composite", f"Compositing at {full_size[0]}x{full_size[1]}")
    result = composited = composite(raw, known.measurement, seam_pixels=seam_of(request, size))
    if full_size != size:
        result, painted = composite_full(raw, view, request)
        if known.place is not None:
            painted &= F.interpolate(known.place[:, None].float(), full_size, mode="nearest") == 0
        if request.grain and painted.any():
            yield stage("grain", "Matching the grain of what is painted")
            cameras = found.cameras_at(size) if found else (known.source, known.target)
            softness = backbone.settings.softness * math.sqrt(math.prod(full_size) / math.prod(size))
            seen = depth_of_all(known.z, *cameras)
            result = match_grain(result, painted, seen, cameras[1], softness, request.guidance.seed)
    return Finished(result, raw, composited)


def composite_full(
    raw: Float[Tensor, "T 3 h w"], view: View, request: RenderRequest
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T 1 H W"]]:
    """The result at the clip's own resolution, and where it is painted."""
    analysis, found = view.analysis, view.found
    size = size_of(analysis.full.frames)
    result = torch.empty_like(analysis.full.frames)
    painted = torch.empty_like(result[:, :1], dtype=torch.bool)

    @lru_cache(max(8, _CACHED // math.prod(size)))
    def picture_of(t: int) -> tuple[Tensor, Tensor]:
        frames, z = depth_at(analysis, slice(t, t + 1), size)
        return frames[0], z[0]

    for first in range(0, len(raw), 4):  # a few frames at a time: full-resolution geometry takes much memory
        span = slice(first, first + 4)
        frames, z = (torch.stack(part) for part in zip(*map(picture_of, range(len(raw))[span]), strict=True))
        measurement = warped(analysis, request, size, span, (frames, z))
        if found is not None:
            measurement = at_size(found, measurement, first, picture_of)
        result[span] = composite(raw[span], measurement, seam_pixels=seam_of(request, size))
        painted[span] = ~measurement.mask
    return result, painted
