"""What everything around the model costs, against the model's own passes and against the field's warper, in one run.

Processor seconds of this process, so that what else runs on the machine counts little. Files are written by another
process; that stage is told by the clock on the wall.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.camera.geometry import (
    CameraPath,
    default_intrinsics,
    follow,
    invert_rigid,
    project,
    static_path,
    transform,
    unproject,
)
from pipeline.depth.estimate import resize_depth
from pipeline.known.warp import warp_to_path
from pipeline.media.video import resize
from pipeline.render.analysis import analyse
from pipeline.render.events import FailedEvent, StageEvent, StepEvent, WarpEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.world.cameras import preset_motion
from pipeline.world.scenes import Sample

MODEL = ("encode", "sample", "decode")  # the stages that are passes of the model
OUTSIDE = ("write",)  # that another process does
ROUNDS = 2  # in which each render is done, one after the other: its best stages count
_NEARNESS = 50.0  # by which depth decides, of the forward splat


@dataclass(frozen=True)
class Cost:
    """Of a render whose clip is analysed. stages: processor seconds, wall seconds for those of `OUTSIDE`. preview: wall
    seconds until something of the new view could be seen."""

    stages: dict[str, float]
    preview: float

    @property
    def model(self) -> float:
        """Seconds of the model's passes."""
        return sum(self.stages.get(name, 0.0) for name in MODEL)

    @property
    def around(self) -> float:
        """Seconds of everything else."""
        return sum(self.stages.values()) - self.model

    def at_best(self, other: Cost) -> Cost:
        """The lesser of both, stage by stage: of the same render on a machine whose pace changes."""
        least = {name: min(seconds, other.stages.get(name, seconds)) for name, seconds in self.stages.items()}
        return Cost(least, min(self.preview, other.preview))


def cost_of(request: RenderRequest, folder: Path) -> Cost:
    """What a render takes once its clip is analysed. Raises `InputError`."""
    analysis = result_of(analyse(request))
    stages: dict[str, float] = {}
    begun, preview, current, since = time.perf_counter(), 0.0, "", 0.0
    clock = lambda name: time.perf_counter() if name in OUTSIDE else time.process_time()
    for event in render(request, folder, analysis=analysis):
        if isinstance(event, FailedEvent):
            raise InputError(event.message)
        if isinstance(event, WarpEvent | StepEvent):
            preview = preview or time.perf_counter() - begun
        if isinstance(event, StageEvent) and event.stage != current:
            if current:
                stages[current] = stages.get(current, 0.0) + clock(current) - since
            current, since = event.stage, clock(event.stage)
    stages[current] = stages.get(current, 0.0) + clock(current) - since
    return Cost(stages, preview)


def exponent(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Of the power law through costs at several amounts, by least squares of their logarithms; 1 is proportional."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (amounts, seconds))
    centred = x - x.mean()
    return ((centred * (y - y.mean())).sum() / centred.square().sum()).item()


def forward_splat(
    frames: Float[Tensor, "T 3 H W"], z: Float[Tensor, "T H W"], source: CameraPath, target: CameraPath
) -> tuple[Float[Tensor, "T 3 H W"], Float[Tensor, "T 1 H W"]]:
    """The clip as the target cameras see it, by the field's usual warper, and how much of it is seen.

    Each pixel is shared out among the four around the place where it lands, by its distance to them and by
    exp(-50 log(1 + z) / max log(1 + z)), so that what is near outweighs what is behind it: the bilinear splatting of
    TrajectoryCrafter (arXiv 2503.05638) and ViewCrafter (arXiv 2409.02048), in plain PyTorch. Here to be compared with.
    """
    T, _, H, W = frames.shape
    target_from_source = invert_rigid(target.world_from_cam) @ source.world_from_cam
    place, depth = project(transform(target_from_source, unproject(z, source.K)), target.K)
    video, seen = torch.zeros_like(frames), torch.zeros_like(frames[:, :1], dtype=torch.bool)
    for t in range(T):
        log = torch.log1p(depth[t].clamp(0, 1000))
        near = torch.exp(-_NEARNESS * log / log.max()) * (depth[t] > 0)
        x, y = (place[t] - 0.5).unbind(-1)
        left, top = x.floor(), y.floor()
        total, weight = frames.new_zeros(H * W, 3), frames.new_zeros(H * W)
        colours = frames[t].permute(1, 2, 0).reshape(-1, 3)
        for i in (0, 1):
            for j in (0, 1):
                column, row = left + j, top + i
                share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * near
                share = share * ((column >= 0) & (column < W) & (row >= 0) & (row < H))
                at = (row.clamp(0, H - 1) * W + column.clamp(0, W - 1)).long().view(-1)
                total.index_put_((at,), colours * share.view(-1, 1), accumulate=True)
                weight.index_put_((at,), share.view(-1), accumulate=True)
        video[t] = (total / weight.clamp_min(1e-30)[:, None]).view(H, W, 3).permute(2, 0, 1)
        seen[t] = (weight > 0).view(1, H, W)
    return video, seen


def warps(scene: Sample, height: int, width: int, *, repeats: int = 3) -> tuple[float, float]:
    """Processor seconds a frame of the warp and of `forward_splat`, each the fastest of a few, of a scene of the world
    that is enlarged to height x width, along orbit-left, 20 degrees."""
    frames, z = resize(scene.source.frames, (height, width)), resize_depth(scene.source.z, (height, width))
    source = static_path(default_intrinsics(height, width, len(z)))
    target = follow(source, preset_motion("orbit-left", 20, len(z), 4.0))
    ours, theirs = (lambda: warp_to_path(frames, z, source, target)), (lambda: forward_splat(frames, z, source, target))
    moved = len(z) - 1  # the first camera is the one that filmed
    return _least(ours, repeats) / moved, _least(theirs, repeats) / len(z)


def print_costs(
    write: Callable[[Path, int, tuple[int, int]], Path],
    request: RenderRequest,
    scene: Sample,
    folder: Path,
    *,
    lengths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Print the stages of a render over the model's passes, the warp over the splat, and how costs grow.

    write: puts a clip of so many frames of that size at a path; request: of everything else. lengths: of clips, the
    first of which is the one whose stages are shown. sizes: (H, W) of clips of that length, the second of them that of
    the others. Raises `InputError`.
    """
    base = sizes[min(1, len(sizes) - 1)]
    clips = {(n, base) for n in lengths} | {(lengths[0], size) for size in sizes}
    cost_of(_of(write, request, folder, lengths[0], base), folder / "warm")  # what is loaded and compiled once
    costs: dict[tuple[int, tuple[int, int]], Cost] = {}
    for clip in sorted(clips) * ROUNDS:
        found = cost_of(_of(write, request, folder, *clip), folder / "out")
        costs[clip] = found.at_best(costs.get(clip, found))

    first = costs[lengths[0], base]
    print(f"\nA render of {lengths[0]}x{base[0]}x{base[1]} (ratio: to the model's passes)")
    for name, seconds in first.stages.items():
        _row(name, seconds, seconds / first.model)
    _row("all but the model", first.around, first.around / first.model)
    print(f"  {'first preview after':<24}{first.preview * 1000:>12.1f} ms")

    ours, theirs = warps(scene, *base)
    print(f"\nA frame of {base[0]}x{base[1]} (ratio: of the splat to the warp)")
    _row("the warp", ours, 1.0)
    _row("a forward splat", theirs, theirs / ours)

    for title, chosen, amount in (
        ("frames", [(n, base) for n in lengths], lambda clip: clip[0]),
        ("pixels", [(lengths[0], size) for size in sizes], lambda clip: math.prod(clip[1])),
    ):
        print(f"\nAgainst the number of {title} (ratio: to the first row)")
        begins = sum(costs[chosen[0]].stages.values())
        for clip in chosen:
            whole = sum(costs[clip].stages.values())
            _row(f"{clip[0]}x{clip[1][0]}x{clip[1][1]}", whole, whole / begins)
        if len(chosen) > 1:
            amounts = [amount(clip) for clip in chosen]
            power = lambda value, chosen=chosen, amounts=amounts: exponent(amounts, [value(costs[c]) for c in chosen])
            whole, around = power(lambda cost: sum(cost.stages.values())), power(lambda cost: cost.around)
            print(f"  grows with the power {whole:.2f}, without the model {around:.2f}; its stages:")
            for name in first.stages:
                if all(costs[clip].stages.get(name, 0.0) > 0 for clip in chosen):
                    print(f"  {name:<24}{power(lambda cost, name=name: cost.stages[name]):.2f}")


def _of(
    write: Callable[[Path, int, tuple[int, int]], Path],
    request: RenderRequest,
    folder: Path,
    frames: int,
    size: tuple[int, int],
) -> RenderRequest:
    clip = folder / f"{frames}x{size[0]}x{size[1]}.mp4"
    return request.changed(clip=str(write(clip, frames, size)), frames=frames)


def _least(work: Callable[[], object], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def _row(name: str, seconds: float, ratio: float) -> None:
    print(f"  {name:<24}{seconds * 1000:>12.1f} ms   {ratio:.3f}")
