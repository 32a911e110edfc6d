"""How long the parts of a render take on this machine, compared within one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from pipeline import InputError
from pipeline.camera import CameraPath, default_intrinsics, follow, preset_motion, static_path
from pipeline.depth import resize_depth
from pipeline.measurement import warp_to_path
from pipeline.render import (
    Analysis,
    DoneEvent,
    FailedEvent,
    RenderRequest,
    analyse,
    get_backbone,
    measure,
    prepare,
    preview,
    render,
    size_of,
    solve,
)
from pipeline.solvers import dds
from pipeline.training.world import Sample, render_sample
from pipeline.video import Clip, resize, write_video

FRAMES, HEIGHT, WIDTH = 17, 480, 832


def run(backbone: str = "nano", *, depth: str | None = None, size: tuple[int, int] | None = None) -> None:
    """Print tables: a sampling step with and without guidance, the warp, a changed camera path, a render's stages.

    Steps with and without guidance alternate, and the median of the differences counts, so that other load on the
    machine falls on both. depth: of the benchmark's clip, for a backbone without a depth model.
    """
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_video(clip, synthetic_clip())
        request = RenderRequest(str(clip), frames=FRAMES, backbone=backbone, depth=depth, size=size)
        analysis = next(event for event in analyse(request) if isinstance(event, Analysis))
        working = size_of(analysis.clip.frames)

        guided, plain, consistency = step_seconds(analysis, request)
        share = 100 * (guided / plain - 1)
        _table(
            f"A sampling step of {request.backbone} at {FRAMES}x{working[0]}x{working[1]}",
            [("without guidance", plain, "1.000"), ("with guidance", guided, f"{guided / plain:.3f} ({share:+.2f} %)"),
             ("the guidance alone", consistency, f"{consistency / plain:.4f}")],
        )  # fmt: skip

        rows, scene = [], render_sample(0, frames=FRAMES)
        for height, width in ((HEIGHT, WIDTH), working):
            seconds = warp_seconds(scene, height, width)
            rows.append((f"{FRAMES}x{height}x{width}", seconds, f"{seconds / plain:.2f}"))
        _table("The warp (ratio: to a sampling step)", rows)

        # another amount each time, as while a handle is dragged; a larger working size is what a larger model has
        large = next(event for event in analyse(replace(request, size=(HEIGHT, WIDTH))) if isinstance(event, Analysis))
        rows = []
        for seen in (analysis, large):
            height, width = size_of(seen.clip.frames)
            asked = [replace(request, camera="orbit-up", amount=10.0 + i) for i in range(7)]
            first = statistics.median(_seconds(partial(preview, seen, move, 0.5)) for move in asked)
            whole = statistics.median(_seconds(partial(measure, seen, move)) for move in asked[:3])
            rows += [
                (f"first frame, {height}x{width}", first, "1.0"),
                (f"all {FRAMES} frames", whole, f"{whole / first:.1f}"),
            ]
        _table("After a change of the camera path (ratio: to the first frame)", rows)

        started = time.perf_counter()
        report = None
        for event in render(request, Path(folder) / "out"):
            if isinstance(event, FailedEvent):
                raise InputError(event.message)
            if isinstance(event, DoneEvent):
                report = event.result.report
        assert report is not None
        whole = time.perf_counter() - started
        rows = [(stage, seconds, f"{seconds / whole:.3f}") for stage, seconds in report["seconds"].items()]
        rows.append(("first preview after", report["first_preview_seconds"], ""))
        _table("A whole render, depth from the cache, model loaded (ratio: to the whole)", rows)


def synthetic_clip(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Clip:
    """Smooth noise that drifts to the right, at 8 frames a second. The same at each call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 30, 52, generator=generator)
    picture = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return Clip(torch.cat([picture.roll(2 * t, dims=-1) for t in range(frames)]), 8.0)


def step_seconds(analysis: Analysis, request: RenderRequest, *, pairs: int = 6) -> tuple[float, float, float]:
    """Median seconds of a guided step, of an unguided one, and of the data consistency alone."""
    backbone = get_backbone(request.backbone)
    problem = prepare(backbone, measure(analysis, request), analysis.clip.frames, request)
    unguided = type(problem)(None, None, problem.condition, problem.image, problem.noise)
    # the first two pairs warm up
    steps = RenderRequest(**{**vars(request), "steps": pairs + 2})
    with_it, without = solve(backbone, problem, steps), solve(backbone, unguided, steps)
    guided, plain = [], []
    for _ in range(pairs + 2):
        plain.append(_seconds(lambda: next(without)))
        guided.append(_seconds(lambda: next(with_it)))
    assert problem.y_full is not None and problem.h is not None
    y_full, h = problem.y_full, problem.h
    alone = [_seconds(lambda: dds(problem.noise, y_full, h, gamma=request.gamma)) for _ in range(20)]
    base = statistics.median(plain[2:])
    extra = statistics.median(g - p for g, p in zip(guided[2:], plain[2:], strict=True))
    return base + extra, base, statistics.median(alone)


def warp_seconds(scene: Sample, height: int, width: int, *, repeats: int = 3) -> float:
    """The fastest of a few warps of a scene of the world, enlarged to height x width, along orbit-left, 20 degrees."""
    frames, z = resize(scene.source.frames, (height, width)), resize_depth(scene.source.z, (height, width))
    source: CameraPath = static_path(default_intrinsics(height, width, len(z)))
    target = follow(source, preset_motion("orbit-left", 20, len(z), 4.0))
    return min(_seconds(lambda: warp_to_path(frames, z, source, target)) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    begun = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _table(title: str, rows: list[tuple[str, float, str]]) -> None:
    print(f"\n{title}")
    for name, seconds, ratio in rows:
        print(f"  {name:<24}{seconds * 1000:>12.1f} ms   {ratio}")
