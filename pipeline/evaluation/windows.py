"""Clips longer than the model's: sampled in overlapping windows, in one piece, or cut into clips, and what seams show.

    python -m pipeline.evaluation.windows [--frames 33] [--scenes 8]

Unseen scenes of the procedural world, whose true second view, depth and cameras are known. A seam is a pair of frames
between which a window begins or ends.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluation.metrics import flow_errors
from pipeline.evaluation.nano import SIZE, mean_with_error
from pipeline.evaluation.scenes import BASE, known_of_sample, measure_sample
from pipeline.evaluation.soft import size_of_text
from pipeline.known.measurement import Measurement
from pipeline.media.quality import psnr
from pipeline.method.inversecrafter import tell
from pipeline.method.methods import solve
from pipeline.method.problem import prepare
from pipeline.method.windows import windows
from pipeline.prior.backbone import Backbone
from pipeline.render.loaded import get_backbone
from pipeline.world.scenes import Sample, render_sample

ONE, CUT = "all at once", "clips of the model's length, joined"


@dataclass(frozen=True)
class Row:
    """One result. holes, observed: PSNR in dB against the true view. seams, elsewhere: change of colour along the true
    motion inside of holes, at the method's seams and at all other pairs of frames, as multiples of that of the same
    clip sampled all at once, at the same pairs."""

    holes: float
    observed: float
    seconds: float
    seams: float
    elsewhere: float


def recapture(
    backbone: Backbone,
    sample: Sample,
    measurement: Measurement,
    spans: tuple[slice, ...],
    seed: int = 0,
    steps: int | None = None,
) -> Float[Tensor, "T 3 H W"]:
    """The raw result of sampling in the windows of latents that are given."""
    guidance = BASE.changed(prompt=sample.caption, seed=seed, steps=steps).guidance
    known = replace(known_of_sample(sample, measurement), truth=None)
    told = tell(backbone, prepare(backbone, known, guidance), guidance, spans=spans)
    z = told.z
    for step in solve(backbone, told):
        z = step.z
    return backbone.decode(z).cpu()


def joined(
    backbone: Backbone, sample: Sample, measurement: Measurement, spans: tuple[slice, ...], steps: int | None = None
) -> Float[Tensor, "T 3 H W"]:
    """Each window as a clip by itself, with noise of its own, beginning with the frame at which the last one ended."""
    parts = []
    for seed, span in enumerate(spans):
        first, last = (max(0, latent - 1) * backbone.temporal for latent in (span.start, span.stop))
        cut = slice(first, min(last, len(measurement.video) - 1) + 1)
        known = Measurement(measurement.video[cut], measurement.mask[cut])
        part = replace(sample, source=replace(sample.source, frames=sample.source.frames[cut]))
        whole = (slice(0, (len(known.video) - 1) // backbone.temporal + 1),)
        result = recapture(backbone, part, known, whole, seed, steps)
        parts.append(result if seed == 0 else result[1:])
    return torch.cat(parts)


def seams_of(spans: tuple[slice, ...], temporal: int) -> list[int]:
    """The frames after which a window begins or ends."""
    edges = {span.start for span in spans[1:]} | {span.stop for span in spans[:-1]}
    return sorted((edge - 1) * temporal for edge in edges)


def evaluate(
    backbone: Backbone,
    first_seed: int,
    count: int,
    frames: int,
    overlaps: list[int],
    say: Callable[[str], None],
    steps: int | None = None,
    size: tuple[int, int] = SIZE,
) -> dict[str, list[Row]]:
    """Rows per method, a scene each. Scenes without holes (fewer than 0.5 % of the pixels) are passed over."""
    latents, length = ((n - 1) // backbone.temporal + 1 for n in (frames, backbone.frames))
    ways: dict[str, tuple[slice, ...]] = {ONE: (slice(0, latents),)}
    ways[CUT] = (slice(0, length), *(slice(i, i + length - 1) for i in range(length, latents, length - 1)))
    for overlap in overlaps:
        ways[f"windows of {length} latents that share {overlap} or more"] = windows(latents, length, overlap)
    found: dict[str, list[Row]] = {name: [] for name in ways}
    for sample, measurement in with_holes(first_seed, count, frames, size):
        truth, holes, view = sample.target.frames, ~measurement.mask, sample.target
        counted = holes[:, 0] & view.standing
        change_of_one = None
        for name, spans in ways.items():
            begun = time.perf_counter()
            result = (joined if name == CUT else recapture)(backbone, sample, measurement, spans, steps=steps)
            seconds = time.perf_counter() - begun
            change, _ = flow_errors(result, view.z, view.path, counted)
            change_of_one = change if change_of_one is None else change_of_one
            seam = torch.zeros(len(change), dtype=torch.bool)
            seam[seams_of(spans, backbone.temporal)] = True
            ratio = lambda chosen, a=change, b=change_of_one: (a[chosen].sum() / b[chosen].sum()).item()
            decibels = psnr(result, truth, holes), psnr(result, truth, measurement.mask)
            found[name].append(Row(*decibels, seconds, ratio(seam), ratio(~seam)))
            say(f"{name}: {decibels[0]:.2f} dB in {seconds:.0f} s")
    return found


def with_holes(first_seed: int, count: int, frames: int, size: tuple[int, int]) -> Iterator[tuple[Sample, Measurement]]:
    seed = first_seed
    while count:
        sample = render_sample(seed, frames=frames, size=size)
        measurement = measure_sample(sample)
        if (~measurement.mask).float().mean() > 0.005:
            count -= 1
            yield sample, measurement
        seed += 1


def table(found: dict[str, list[Row]]) -> str:
    """Means over scenes ± their standard error; differences and ratios are taken scene by scene."""
    lines = [
        "| sampled | holes, dB | against all at once, dB | observed, dB | change at seams | elsewhere | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        column = lambda key, rows=rows: [value for row in rows if math.isfinite(value := getattr(row, key))]
        holes, observed, seconds = (np.mean(column(key)) for key in ("holes", "observed", "seconds"))
        over, seams, elsewhere = "", "", "1"
        if name != ONE:
            over = mean_with_error([row.holes - one.holes for row, one in zip(rows, found[ONE], strict=True)], "+.2f")
            seams, elsewhere = (mean_with_error(column(key)) for key in ("seams", "elsewhere"))
        lines.append(f"| {name} | {holes:.2f} | {over} | {observed:.2f} | {seams} | {elsewhere} | {seconds:.1f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--frames", type=int, default=33, help="4n + 1, more than the model's own (default 33)")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--size", type=size_of_text, default=SIZE, help="HxW, multiples of 16; default: 128x208")
    parser.add_argument("--overlaps", type=int, nargs="+", default=[2], help="latents that windows share at least")
    args = parser.parse_args(arguments)
    backbone = get_backbone(args.backbone)
    if args.frames % backbone.temporal != 1 or args.frames <= backbone.frames:
        parser.error(f"--frames must be 4n + 1 and more than {backbone.frames}")
    say = lambda words: print(words, file=sys.stderr, flush=True)
    how = (args.first_seed, args.scenes, args.frames, args.overlaps, say, args.steps, args.size)
    print(table(evaluate(backbone, *how)))
    print(
        f"\n{args.scenes} unseen scenes of {args.frames} frames. Changes are those of the clip sampled all at once = 1."
    )


if __name__ == "__main__":
    main()
