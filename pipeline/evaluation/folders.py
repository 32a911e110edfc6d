"""The evaluations of the papers, on a folder of clips that the user has: camera, replace, cycle.

camera: re-capture, each clip along one of six paths (InverseCrafter, arXiv 2512.05672: 1000 clips of UltraVideo, with
    their captions). Figures are against the warp, where it is observed.
replace: an object of each clip by what five prompts say (the same: DAVIS with its masks). Figures are on what is kept.
cycle: re-capture, and the result back along the same path, against the clip itself (LaVR, arXiv 2601.14674).

All figures are on the raw result at working size, before compositing. There is no truth in the holes; how much of a
figure is the video VAE's own loss is said beside it.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.camera.geometry import PRESETS
from pipeline.evaluation import rows as store
from pipeline.evaluation import scores
from pipeline.evaluation.scenes import method_of, settings_of
from pipeline.finish.steady import settle
from pipeline.known.fill import fill_unknown
from pipeline.known.gather import Gathered, completed
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.files import make_writable
from pipeline.media.quality import psnr
from pipeline.media.video import pictures_of, size_of
from pipeline.method.problem import padded
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import Analysis, analyse, find_depth, hide
from pipeline.render.events import StageEvent, StepEvent
from pipeline.render.loaded import depth_model_of, get_backbone, release_depth_model
from pipeline.render.request import RenderRequest
from pipeline.render.view import look
from pipeline.render.worker import fill

TASKS = ("camera", "replace", "cycle")
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
MASKS = (".npz", ".npy", ".png")
LAYOUTS = (
    "videos; folders of numbered frames; folders of one video each, with its mask as mask.npz or mask.png; or "
    "JPEGImages/480p/CLIP and Annotations/480p/CLIP, as DAVIS has them"
)
ALONG = 0.99  # of a warped mask, from which a pixel counts as observed all along
SUBJECTS = ("a robot", "a brown bear", "a red sports car", "a marble statue", "a balloon")  # of made prompts
AT_MOST = 36  # rows that are shown one by one
TITLES = {name: metric.label for name, metric in scores.METRICS.items()} | {
    "path": "camera",
    "lost": "not seen all along",
    "psnr_observed": "observed, dB",
    "ssim_observed": "observed, SSIM",
    "psnr_holes": "elsewhere, dB",
    "psnr_whole": "whole frame, dB",
    "ssim_whole": "whole frame, SSIM",
    "psnr_back": "warped back, dB",
    "psnr_vae": "VAE alone, dB",
    "psnr_vae_warp": "VAE of the warp, dB",
    "seconds": "seconds",
    "sampling": "sampling, s",
    "memory": "peak, GiB",
}


@dataclass(frozen=True)
class Source:
    """A clip of a folder. clip: a video, or a folder of numbered frames. mask: a file as `masks.files` reads it, or a
    folder of numbered pictures of labels; None for none."""

    name: str
    clip: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Job:
    """One render (a cycle: two), which makes one row. label: of the object in a folder of masks, None for all of it.
    key: what identifies the row."""

    task: str
    source: Source
    label: int | None
    request: RenderRequest
    key: store.Row


# --- what is in a folder ----------------------------------------------------------------------------------------------


def sources_of(folder: str | Path) -> list[Source]:
    """The clips of a folder by name, in any of `LAYOUTS`; a video is one. Raises `InputError` if there are none."""
    folder = Path(folder).expanduser().resolve()
    if folder.is_file():
        return [Source(folder.stem, folder, _mask_beside(folder, alone=True))]
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give one of {LAYOUTS}.")
    found = _davis(folder) if (folder / "JPEGImages").is_dir() else _plain(folder)
    if not found:
        raise InputError(f"The folder {folder} holds no clips; give one of {LAYOUTS}.")
    return sorted(found, key=lambda source: source.name)


def _davis(folder: Path) -> list[Source]:
    inner = sorted(_folders(folder / "JPEGImages"))
    root = folder / "JPEGImages"
    if not any(_holds_pictures(place) for place in inner):  # a level for the resolution
        root = root / "480p" if (root / "480p").is_dir() else next(iter(inner), root)
    masks = folder / "Annotations" / root.relative_to(folder / "JPEGImages")
    return [
        Source(clip.name, clip, masks / clip.name if (masks / clip.name).is_dir() else None)
        for clip in _folders(root)
        if _holds_pictures(clip)
    ]


def _plain(folder: Path) -> list[Source]:
    videos = _videos(folder)
    found = [Source(video.stem, video, _mask_beside(video, alone=len(videos) == 1)) for video in videos]
    for inner in _folders(folder):
        videos = _videos(inner)
        if len(videos) == 1:
            found.append(Source(inner.name, videos[0], _mask_beside(videos[0], alone=True)))
        elif not videos and _holds_pictures(inner):
            found.append(Source(inner.name, inner))
    if not found and _holds_pictures(folder):
        return [Source(folder.name, folder)]
    return found


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _videos(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in VIDEOS and not file.name.startswith(".")]


def _holds_pictures(folder: Path) -> bool:
    return any(file.suffix.lower() in PICTURES for file in folder.iterdir())


def _mask_beside(video: Path, *, alone: bool) -> Path | None:
    names = [video.stem, "mask"] if alone else [video.stem]
    beside = (video.with_name(name + suffix) for name in names for suffix in MASKS)
    return next((file for file in beside if file.is_file()), None)


def _labels(mask: Path | None) -> list[int | None]:
    """The objects of a mask: the labels of a folder of label maps, in the first of its pictures that has any; [None]
    for a single one, and without a mask."""
    if mask is None or mask.is_file():
        return [None]
    for file in pictures_of(mask):
        found = [int(label) for label in np.unique(_label_map(file)) if label]
        if found:
            return [None] if len(found) == 1 else list(found)
    raise InputError(f"The masks in {mask} are empty; leave the clip {mask.name} out.")


def _label_map(file: Path) -> np.ndarray:
    """H W uint8: 0 for the ground. Palettes count by index, as in DAVIS 2017; else what is bright is object 1."""
    try:
        with Image.open(file) as image:
            if image.mode == "P":
                return np.asarray(image)
            return (np.asarray(image.convert("L")) > 127).astype(np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"The mask {file} cannot be read as a picture; save it as PNG again.") from error


def masks_of(folder: Path, label: int | None) -> Bool[np.ndarray, "T H W"]:
    maps = [_label_map(file) for file in pictures_of(folder)]
    if len({part.shape for part in maps}) > 1:
        raise InputError(f"The masks in {folder} have different sizes; they must be all of the clip's.")
    return np.stack(maps) > 0 if label is None else np.stack(maps) == label


def read_prompts(path: str | Path) -> dict[str, list[str]]:
    """The prompts of a file {clip: prompt or [prompts]}, or {"clip/label": ...} for one object of several.

    Raises `InputError`.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the prompts {path}: {error}.") from error
    shape = f'The prompts {path} must be an object such as {{"clip": ["a red car", "a horse"]}}.'
    if not isinstance(given, dict) or not given:
        raise InputError(shape)
    prompts = {name: [words] if isinstance(words, str) else words for name, words in given.items()}
    for words in prompts.values():
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise InputError(shape)
    return prompts


def made_prompts(source: Source, accepted: tuple[str, ...] = ()) -> list[str]:
    """Five target prompts from a caption of the clip's middle frame, with other subjects in place of its own.

    The paper has a language model write them from the caption; here the words before the first verb or preposition
    are exchanged. Raises `InputError` if no captioner is on this machine.
    """
    from pipeline.models.caption import caption, middle_frame

    try:
        words = caption(middle_frame(source.clip), accepted=accepted).words
    except InputError as error:
        raise InputError(
            f'Give the target prompts with --prompts prompts.json, such as {{"{source.name}": ["a robot riding a '
            f'bike", ...]}}. They can be made from captions only with a captioning model: {error}'
        ) from error
    return exchanged(words)


def exchanged(words: str) -> list[str]:
    """A caption with five other subjects: "a man riding a bike" to "a robot riding a bike", and so on."""
    rest = re.search(r"\s(\w+ing|is|are|on|in|at|with|near|by|under|over|behind|through|down)\s.*", f" {words} ")
    return [f"{subject}{rest.group(0).rstrip() if rest else ''}" for subject in SUBJECTS]


# --- what is to be done -----------------------------------------------------------------------------------------------


def jobs_of(
    task: str,
    sources: Sequence[Source],
    base: RenderRequest,
    run: store.Row,
    methods: Sequence[str],
    *,
    prompts: dict[str, list[str]] | None = None,
    cameras: Sequence[str] | None = None,
) -> Iterator[Job]:
    """The jobs of a task. Of the six paths each clip gets one, in turn, unless `cameras` says along which.

    With prompts, only clips that they name are taken. Raises `InputError`.
    """
    if task == "replace":
        masked = [source for source in sources if source.mask is not None]
        if not masked:
            raise InputError(
                f"There are no masks of objects beside these clips; give {LAYOUTS}, or CLIP.npz or CLIP.png beside "
                "CLIP.mp4."
            )
    known = {source.name for source in sources}
    named = {name if name in known else name.rpartition("/")[0] or name for name in prompts or ()}
    if missing := sorted(named - known):
        raise InputError(f"The prompts name clips that are not there: {', '.join(missing)}. Correct their names.")
    for index, source in enumerate(sources):
        if prompts is not None and source.name not in named:
            continue
        if task == "replace" and source.mask is None:
            if prompts is not None:
                raise InputError(f"There is no mask of the clip {source.name}; add one, or leave its prompts out.")
            continue
        if task != "replace":
            source = replace(source, mask=None)
        paths = ["still"] if task == "replace" else cameras or [tuple(PRESETS)[index % len(PRESETS)]]
        own = [""] if task != "replace" else [] if prompts is not None else made_prompts(source, base.accepted)
        for label in _labels(source.mask):
            words = own if prompts is None else prompts.get(f"{source.name}/{label}", prompts.get(source.name, []))
            about = {"clip": source.name, "object": label, "bytes": _bytes(source)}
            for path, prompt, method in product(paths, words, methods):
                asked = method_of(method)
                settings = settings_of(asked)
                given = {**settings, "steps": asked.guidance.steps or base.guidance.steps}
                request = base.changed(clip=str(source.clip), camera=path, prompt=prompt, **given)
                key = {**run, **about, "path": path, "prompt": prompt, "method": method, "settings": settings}
                yield Job(task, source, label, request, key)


def _bytes(source: Source) -> int:
    """Of the clip and its mask: another clip of the same name is hardly ever of the same size."""
    inside = lambda place: place.iterdir() if place.is_dir() else [place]
    return sum(file.stat().st_size for place in (source.clip, source.mask) if place for file in inside(place))


# --- one row ----------------------------------------------------------------------------------------------------------


def row_of(job: Job) -> store.Row:
    """Do a job. Besides its key and figures: seconds (from the warp to the video, without depth) and those of the
    sampling in them; memory, the most in use so far in GiB, of the GPU in this job, else of the whole process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return job.key | (_cycle(job) if job.task == "cycle" else _once(job))


def _once(job: Job) -> store.Row:
    """psnr_vae: of the clip encoded and decoded; psnr_vae_warp: of the measurement with its holes filled, where it is
    observed: the limit of any result that is made of these latents."""
    request = job.request
    analysis = _analysed(job.source, job.label, _of_clip(job))
    clip = analysis.clip.frames
    known, raw, spent = _recapture(analysis, request)
    measurement = known.measurement
    found = {"unknown": 1 - measurement.mask.float().mean().item()}
    case = scores.Case(
        raw,
        clip,
        measurement,
        prompt=request.guidance.prompt,
        z=analysis.depth.z,
        source_path=known.source,
        target_path=known.target,
    )
    found |= scores.measure(case, accepted=request.accepted) | scores.set_features(case, accepted=request.accepted)
    if job.task == "camera":
        found["psnr_vae"] = _psnr_vae(job.source, _of_clip(job))
    limit = _through_vae(get_backbone(request.backbone), fill_unknown(measurement))
    return found | {"psnr_vae_warp": psnr(limit, measurement.video, measurement.mask)} | spent


def _cycle(job: Job) -> store.Row:
    """Out along the path, and back with depth estimated anew on the result, at the scale of the clip's.

    The clip is the truth; observed is what was so out and back, lost the share of the rest. LaVR's cycle PSNR is that
    of the whole frame. psnr_back: of the first result warped back, before the second, where observed: one pass of the
    VAE, and what depth does to it. psnr_vae: of the clip encoded and decoded twice, the limit of any cycle.
    """
    request, analysis = job.request, _analysed(job.source, None, _of_clip(job))
    clip = analysis.clip.frames
    known, raw, spent = _recapture(analysis, request)
    out, source, cameras = known.measurement, known.source, known.target
    backbone = get_backbone(request.backbone)
    z = _depth_of(raw, request.depth_model or depth_model_of(backbone))
    ahead = warp_depth(analysis.depth.z, source, cameras)
    if (seen := ahead.isfinite()).any():
        z = z * (ahead[seen] / z[seen]).median()
    back = warp_to_path(raw, z, cameras, source)
    along = warp_to_path(out.mask.float().expand(-1, 3, -1, -1).contiguous(), z, cameras, source).video[:, :1]
    along = (along > ALONG) & back.mask
    if not along.any():
        raise InputError("nothing of the clip is observed there and back; choose another path")
    returned = Known(replace(back, z=warp_depth(z, cameras, source)), raw, z, cameras, source)
    returned, gathered = completed(returned) if request.other_frames else (returned, None)
    cycled, more = _fill(returned, gathered, request)
    spent = {name: value if name == "memory" else value + spent[name] for name, value in more.items()}
    limit = _through_vae(backbone, _through_vae(backbone, clip))
    case = scores.Case(cycled, clip, Measurement(clip, along), truth=clip, prompt=request.guidance.prompt)
    return {
        "unknown": 1 - out.mask.float().mean().item(),
        "lost": 1 - along.float().mean().item(),
        **scores.measure(case, accepted=request.accepted),
        **scores.set_features(case, accepted=request.accepted),
        "psnr_back": psnr(back.video, clip, along),
        "psnr_vae": psnr(limit, clip),
        **spent,
    }


def _of_clip(job: Job) -> RenderRequest:
    """The part of a request that decides the analysis, alike for all renders of a clip."""
    asked = job.request
    return RenderRequest(
        clip=asked.clip,
        backbone=asked.backbone,
        frames=asked.frames,
        depth_model=asked.depth_model,
        accepted=asked.accepted,
    )


@lru_cache(maxsize=1)
def _analysed(source: Source, label: int | None, request: RenderRequest) -> Analysis:
    """The clip with its depth; without the object, if the source has a mask. As many frames as the model was made for
    unless the request says how many, so that figures compare."""
    request = request.changed(frames=request.frames or get_backbone(request.backbone, request).frames)
    analysis = result_of(analyse(request))
    if source.mask is None:
        return analysis
    with tempfile.TemporaryDirectory() as folder:
        mask = source.mask
        if mask.is_dir():
            mask = Path(folder) / f"{source.name}.npz"
            np.savez(mask, mask=masks_of(source.mask, label))
        return result_of(hide(analysis, request.changed(mask=str(mask), camera="still")))


def _recapture(analysis: Analysis, request: RenderRequest) -> tuple[Known, Tensor, dict[str, float]]:
    """What is known along the request's path, the raw result T 3 h w in [0, 1], and what it took."""
    began = time.perf_counter()
    view = result_of(look(analysis, request))
    warped = time.perf_counter() - began
    raw, spent = _fill(view.known, view.found, request)
    return view.known, raw, spent | {"seconds": spent["seconds"] + warped}


def _fill(known: Known, found: Gathered | None, request: RenderRequest) -> tuple[Tensor, dict[str, float]]:
    """The raw result, its frames made to agree as in a render, and what it took."""
    release_depth_model()
    backbone = get_backbone(request.backbone, request, (len(known.clip), *size_of(known.clip)))
    began, marks = _now(backbone), {}

    def mark(event: StageEvent | StepEvent) -> None:
        if isinstance(event, StageEvent):
            marks[event.stage] = _now(backbone)

    filled = result_of(fill(request.backbone, known, request.guidance), mark)
    raw = settle(torch.from_numpy(filled.video), known, found, backbone.settings.steady)
    sampling = marks["decode"] - marks["sample"]
    return raw, {"seconds": _now(backbone) - began, "sampling": sampling, "memory": _peak(backbone) / 2**30}


def _now(backbone: Backbone) -> float:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(backbone: Backbone) -> float:
    """Bytes; nan where the system does not tell."""
    if backbone.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@lru_cache(maxsize=1)
def _psnr_vae(source: Source, request: RenderRequest) -> float:
    """Of the clip encoded and decoded."""
    clip = _analysed(source, None, request).clip.frames
    return psnr(_through_vae(get_backbone(request.backbone), clip), clip)


def _through_vae(backbone: Backbone, video: Float[Tensor, "T 3 h w"]) -> Float[Tensor, "T 3 h w"]:
    return backbone.decode(backbone.encode(padded(video, backbone)))[: len(video)].cpu()


def _depth_of(video: Float[Tensor, "T 3 h w"], model: str) -> Float[Tensor, "T h w"]:
    return torch.from_numpy(result_of(find_depth(model, video.numpy(), size_of(video)))[0])


# --- all of them ------------------------------------------------------------------------------------------------------


def evaluate(
    task: str,
    sources: Sequence[Source],
    backbone_ref: str,
    *,
    methods: Sequence[str] | None = None,
    prompts: dict[str, list[str]] | None = None,
    cameras: Sequence[str] | None = None,
    steps: int | None = None,
    frames: int | None = None,
    depth_model: str | None = None,
    accepted: tuple[str, ...] = (),
    output: Path | None = None,
    ray: bool = False,
    progress: Callable[[str], None] = print,
) -> str:
    """A task of `TASKS` on clips of the user's, as Markdown tables: each row, if they are few, and means over clips.

    methods: see `scenes.method_of`; the default alone if None. prompts: see `read_prompts`; for a path they say
    what the clip shows, and may be missing. cameras: paths to take of each clip, None for one of the six each.
    output: one JSON line a row, written as they are done; what it holds already, of the same weights and settings, is
    not done again. ray: on the machines of a Ray cluster, see `on_ray`.
    A clip that cannot be used is said and left out. Raises `InputError` if that is so of all, and for arguments that
    cannot be used.
    """
    if output is not None:
        make_writable(output.parent)
    base = RenderRequest.of(
        "(clip)", backbone=backbone_ref, steps=steps, frames=frames, depth_model=depth_model, accepted=accepted
    )
    run = {"task": task, "backbone": backbone_ref, "weights": store.fingerprint(backbone_ref), "depth": depth_model}
    run |= {"steps": steps, "frames": frames}
    jobs = list(jobs_of(task, sources, base, run, methods or ["dds"], prompts=prompts, cameras=cameras))
    rows = store.kept(output, run)
    find = lambda job: next((row for row in rows if job.key.items() <= row.items()), None)
    todo = [job for job in jobs if find(job) is None]
    if len(todo) < len(jobs):
        progress(f"{len(jobs) - len(todo)} of {len(jobs)} rows are there already")
    failures: list[str] = []
    for number, (job, found) in enumerate(on_ray(todo) if ray else ((job, outcome(job)) for job in todo), 1):
        name = f"{number}/{len(todo)} {job.source.name}, {job.request.guidance.prompt or job.request.camera}"
        if isinstance(found, str):
            failures.append(f"{job.source.name}: {found}")
            progress(f"{name}: left out: {found}")
            continue
        rows.append(found)
        store.append(output, found)
        progress(f"{name}: done in {found['seconds']:.1f} s")
    done = [row for row in map(find, jobs) if row is not None]
    if not done:
        raise InputError(f"No clip could be used. {failures[0] if failures else 'There is nothing to do.'}")
    return report(done) + (f"\n\nLeft out: {'; '.join(failures)}" if failures else "")


def report(rows: Sequence[store.Row]) -> str:
    """The tables of the rows of one task."""
    columns = store.columns_of(rows, without=("bytes", "steps", "frames", "object"))
    several = [name for name in ("clip", "object", "path", "prompt", "method") if len({row[name] for row in rows}) > 1]
    parts = []
    if len(rows) <= AT_MOST:
        parts.append(store.table(rows, several or ["clip"], columns, TITLES))
    if len(rows) > 1:
        parts.append("Means over clips, with 95 % confidence intervals (Student's t):")
        parts.append(store.summary(rows, ["method"], columns, TITLES, sets={scores.FVD: scores.fvd}))
        if 1 < len({row["path"] for row in rows}) < len(rows):
            parts.append(store.summary(rows, ["method", "path"], columns, TITLES))
    return "\n\n".join(parts)


def outcome(job: Job) -> store.Row | str:
    """The row of a job, or why there is none."""
    try:
        return row_of(job)
    except InputError as error:
        return str(error)
    except torch.OutOfMemoryError:
        return "The memory of the device is not enough; choose fewer frames or another --backbone."


def on_ray(jobs: Sequence[Job]) -> Iterator[tuple[Job, store.Row | str]]:
    """Jobs and their outcomes as they come back from a Ray cluster: the one of $RAY_ADDRESS, else of this machine.

    Each job has a processor core, and a GPU where there are some; workers keep their model from job to job. The clips
    and the program have to be at the same place on every machine. Raises `InputError` if Ray is not installed.
    """
    import importlib
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        api: Any = importlib.import_module("ray")
    except ImportError as error:
        raise InputError("Ray is not installed. This gets it: pip install ray. Or leave --ray out.") from error
    if not jobs:
        return
    began = not api.is_initialized()
    if began:
        api.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        gpus = 1 if api.cluster_resources().get("GPU", 0) else 0
        # without max_calls=0 a worker with a GPU would end after each job, and load its model again
        remote = api.remote(num_cpus=1, num_gpus=gpus, max_calls=0)(outcome)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            (ready,), _ = api.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                yield job, api.get(ready)
            except api.exceptions.RayError as error:
                yield job, f"the worker failed: {str(error).strip().splitlines()[-1]}"
    finally:
        if began:
            api.shutdown()
