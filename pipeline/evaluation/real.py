"""Holes of real film with a truth: what a camera path hides of a clip, filled, and compared with the clip itself.

The clip is warped out along a path and back (double reprojection, as TrajectoryCrafter makes its training pairs, arXiv
2503.05638). What is lost on the way is a hole of the shape that a new camera opens, and the clip says what belongs
there. Known pixels are the clip's own, so that only the filling is measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.camera.geometry import PRESETS, CameraPath
from pipeline.evaluation import perceptual, scores
from pipeline.evaluation import rows as store
from pipeline.evaluation.folders import Source, sources_of
from pipeline.evaluation.scenes import TELEA
from pipeline.finish.composite import composite
from pipeline.known.fill import fill_unknown, telea
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.quality import psnr, ssim
from pipeline.media.video import size_of
from pipeline.method.problem import fill_holes
from pipeline.render.analysis import Analysis, analyse
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest, seam_of
from pipeline.render.view import cameras_of
from pipeline.render.worker import fill

SMOOTH, ENCODED, MODEL = "smooth filling", "what is encoded", "the model, composited"
RIM = 4  # pixels on both sides of a hole's outline that count as its rim
LEAST = 0.005  # share of the pixels below which a clip and path have no holes to speak of
TITLES = {
    "psnr_holes": "holes, dB", "ssim_holes": "holes, SSIM", "lpips_holes": "holes, LPIPS", "psnr_rim": "rims, dB",
    "unsteady": "unsteadiness",
}  # fmt: skip


def clips_of(folder: str | Path) -> list[Source]:
    """The clips of a folder, see `sources_of`; of one with an index.jsonl those of its split val.

    A line of the index has `file` (of the clip, in the folder) and `split`. Raises `InputError`.
    """
    index = Path(folder).expanduser() / "index.jsonl"
    if not index.is_file():
        return sources_of(folder)
    try:
        lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]
        files = [index.parent / line["file"] for line in lines if line["split"] == "val"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The index {index} cannot be read: {error}. Give it lines with file and split.") from error
    if not files:
        raise InputError(f"The index {index} has no clips of the split val; give a folder of clips instead.")
    return [Source(file.stem, file) for file in files]


def there_and_back(
    frames: Float[Tensor, "T 3 H W"], z: Float[Tensor, "T H W"], source: CameraPath, target: CameraPath
) -> Measurement:
    """The clip without what does not come back from the target cameras. The arguments are those of `warp_to_path`.

    Holes of a single pixel, as rounding leaves, are none.
    """
    seen = warp_to_path(frames, z, source, target)
    depth = torch.where(seen.mask[:, 0], warp_depth(z, source, target), torch.nan)
    lost = ~warp_to_path(seen.video, depth, target, source).mask
    mask = ~_opened(lost)
    return Measurement(frames * mask, mask, torch.where(mask[:, 0], z, torch.nan))


def _opened(holes: Bool[Tensor, "T 1 H W"]) -> Bool[Tensor, "T 1 H W"]:
    """Holes without what is narrower than two pixels."""
    left = -F.max_pool2d(-F.pad(holes.float(), (0, 1, 0, 1), mode="replicate"), 2, 1)
    return F.max_pool2d(F.pad(left, (1, 0, 1, 0)), 2, 1) > 0


def figures(result: Float[Tensor, "T 3 H W"], truth: Float[Tensor, "T 3 H W"], measurement: Measurement) -> store.Row:
    """Of a filled clip: closeness to the truth in the holes and about their outlines, and unsteadiness, the mean change
    of its error from a frame to the next where both have a hole (in levels of 255). LPIPS where its weights are here.
    """
    holes = ~measurement.mask
    span = 2 * RIM + 1
    rim = (F.max_pool2d(holes.float(), span, 1, RIM) > 0) & (F.max_pool2d((~holes).float(), span, 1, RIM) > 0)
    found: dict[str, Any] = {"psnr_holes": psnr(result, truth, holes), "ssim_holes": ssim(result, truth, holes)}
    found["psnr_rim"] = psnr(result, truth, rim)
    both = (holes[1:] & holes[:-1]).expand(-1, 3, -1, -1)
    if both.any():
        found["unsteady"] = 255 * (result - truth).diff(dim=0).abs()[both].mean().item()
    if "lpips_holes" not in scores.absent():
        found["lpips_holes"] = perceptual.lpips(result, truth, holes)
    return found


def fillings(
    analysis: Analysis, request: RenderRequest, measurement: Measurement
) -> Iterator[tuple[str, Float[Tensor, "T 3 h w"]]]:
    """The holes filled: by Telea's inpainting, smoothly, by the model's inpainter if it has one, and by the request's
    model as a render does it."""
    yield TELEA, telea(measurement)
    yield SMOOTH, fill_unknown(measurement)
    clip = analysis.clip.frames
    known = Known(measurement, clip, analysis.depth.z, analysis.source, cameras_of(analysis, request))
    backbone = get_backbone(request.backbone, request)
    if backbone.settings.inpainter is not None:
        yield ENCODED, fill_holes(backbone, known)
    raw = torch.from_numpy(result_of(fill(request.backbone, known, request.guidance)).video)
    yield MODEL, composite(raw, measurement, seam_pixels=seam_of(request, size_of(raw)))


def evaluate(
    folder: str | Path,
    backbone_ref: str,
    *,
    cameras: Sequence[str] | None = None,
    frames: int | None = None,
    depth_model: str | None = None,
    steps: int | None = None,
    output: Path | None = None,
    progress: Callable[[str], None] = print,
) -> str:
    """How well the holes of a folder's clips are filled, as Markdown; see `report`.

    cameras: the paths of each clip, None for the six in turn. output: one JSON line a clip, path and filling, written
    as they are done; what it holds already, of the same weights and settings, is not done again. Raises `InputError`.
    """
    run = {
        "backbone": backbone_ref, "weights": store.fingerprint(backbone_ref), "frames": frames, "steps": steps,
        "depth_model": depth_model,
    }  # fmt: skip
    rows = store.kept(output, run)
    clips, frames = clips_of(folder), frames or get_backbone(backbone_ref).frames
    for number, source in enumerate(clips):
        base = RenderRequest.of(
            clip=str(source.clip), backbone=backbone_ref, frames=frames, depth_model=depth_model, steps=steps
        )
        analysis = None
        for path in cameras or (tuple(PRESETS)[number % len(PRESETS)],):
            key = {**run, "clip": source.name, "path": path}
            if any(key.items() <= row.items() for row in rows):
                continue
            request = replace(base, camera=path)
            analysis = analysis or result_of(analyse(request))
            target = cameras_of(analysis, request)
            known = there_and_back(analysis.clip.frames, analysis.depth.z, analysis.source, target)
            unknown = 1 - known.mask.float().mean().item()
            if unknown < LEAST:
                continue
            for name, video in fillings(analysis, request, known):
                found = figures(video, analysis.clip.frames, known)
                rows.append({**key, "method": name, "unknown": unknown, **found})
                store.append(output, rows[-1])
        progress(f"clip {number + 1} of {len(clips)} ({source.name}) done")
    return report(rows)


def report(rows: Sequence[store.Row]) -> str:
    """Means over clips with 95 % confidence intervals, one line a filling; gains over Telea are taken clip by clip."""
    if not rows:
        raise InputError("No clip of the folder loses anything along these paths; give other clips or cameras.")
    base = {(row["clip"], row["path"]): row for row in rows if row["method"] == TELEA}
    compared = []
    for row in rows:
        telea_row = base[row["clip"], row["path"]]
        gains: store.Row = {"over_telea": row["psnr_holes"] - telea_row["psnr_holes"]}
        if "lpips_holes" in row:
            gains["lpips_ratio"] = row["lpips_holes"] / max(telea_row["lpips_holes"], 1e-6)
        compared.append({**row, **gains})
    columns = [name for name in (*TITLES, "over_telea", "lpips_ratio") if any(name in row for row in compared)]
    titles = TITLES | {"method": "filling", "over_telea": "over Telea, dB", "lpips_ratio": "LPIPS over Telea's"}
    unknown = store.mean({(row["clip"], row["path"]): row["unknown"] for row in rows}.values())
    table = store.summary(compared, ["method"], columns, titles)
    worst = min((row["over_telea"] for row in compared if row["method"] == MODEL), default=math.nan)
    return (
        f"{table}\n\n{len(base)} clips and paths, {unknown:.1%} unknown; the model's worst: {worst:+.2f} dB over Telea."
    )
