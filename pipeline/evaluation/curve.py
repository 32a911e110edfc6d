"""Soft, hard and hybrid as the depth grows wrong, in five ways, and where soft overtakes hard.

    python -m pipeline.evaluation.curve --backbone FOLDER --scenes 5 --output curve.jsonl
    python -m pipeline.evaluation.figures curve curve.jsonl assets/figures/depth-errors.png

The path is laid out in the true distance of the subject and the depth is scaled to have the subject there, as in a
render, whose paths use that distance as their unit: an error of scale alone changes nothing. The holes, and what is
observed, are those of the true depth throughout. Soft alone reads no depth, so that it is rendered once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import CameraPath
from pipeline.depth.estimate import estimate_depth
from pipeline.depth.load import load_depth_model
from pipeline.evaluation import rows as store
from pipeline.evaluation.scenes import known_of_sample, measure_sample, move_of
from pipeline.evaluation.soft import (
    HARD,
    HYBRID,
    SOFT,
    WAYS,
    Way,
    at_unit,
    by_depth,
    compared,
    rendered,
    size_of_text,
)
from pipeline.known.known import Known
from pipeline.method.lavr import distance_of
from pipeline.prior.backbone import Backbone
from pipeline.render.loaded import get_backbone
from pipeline.world.scenes import Sample, render_sample

NONE, ESTIMATE = "none", "estimate"  # of the kinds: true depth, and the backbone's own
CELLS = (4, 6)  # of the smooth field
MOVED = 0.1  # share of unknown pixels below which a path is too short for depth to matter; such scenes are passed over


@dataclass(frozen=True)
class Kind:
    """A way to err. levels: how far, in `unit`, the true depth left out. words: for the axis."""

    words: str
    unit: str
    levels: tuple[float, ...]


KINDS: dict[str, Kind] = {
    "shift": Kind("disparity shifted", "times the subject's", (0.3, 1.0, 3.0)),
    "unsteady": Kind("scale of each frame off", "%", (5.0, 10.0, 20.0, 40.0)),
    "field": Kind("smooth error of log depth", "standard deviation", (0.1, 0.3, 0.6, 1.2)),
    "edges": Kind("edges blurred", "pixels", (2.0, 4.0, 8.0)),
    "lens": Kind("field of view off", "%", (10.0, 20.0, 40.0)),
}


def wrong(kind: str, level: float, sample: Sample, known: Known) -> Known:
    """What is known of a scene whose depth errs. Draws follow from the scene's seed. known: by the true depth."""
    z, rng = sample.source.z, np.random.default_rng([sample.seed, 28])
    unit = distance_of(known)
    if kind == "shift":  # towards a wall at the subject's distance
        z = 1 / (1 / z + level / unit)
    elif kind == "unsteady":
        z = z * torch.from_numpy(rng.normal(0, level / 100, len(z))).to(z).exp()[:, None, None]
    elif kind == "field":
        z = z * smooth_field(z, rng, level).exp()
    elif kind == "edges":
        z = blurred(z, level)
    elif kind == "lens":
        return with_lens(sample, known, level)
    else:
        raise InputError(f"{kind!r} is no kind of error; give one of {', '.join(KINDS)}.")
    return by_depth(sample, at_unit(z, sample.source.z, known))


def smooth_field(z: Float[Tensor, "T H W"], rng: np.random.Generator, level: float) -> Float[Tensor, "1 H W"]:
    """A smooth random field that stays in time, of this standard deviation about zero."""
    coarse = torch.from_numpy(rng.normal(0, 1, (1, 1, *CELLS))).to(z)
    field = F.interpolate(coarse, z.shape[-2:], mode="bicubic", align_corners=True)[0]
    return (field - field.mean()) * (level / field.std())


def blurred(z: Float[Tensor, "T H W"], pixels: float) -> Float[Tensor, "T H W"]:
    """Disparity under a Gaussian of this standard deviation."""
    reach = int(3 * pixels)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / pixels).square()).to(z)
    weight = weight / weight.sum()
    disparity = F.pad((1 / z)[:, None], (reach, reach, reach, reach), mode="replicate")
    disparity = F.conv2d(F.conv2d(disparity, weight[None, None, None]), weight[None, None, :, None])
    return 1 / disparity[:, 0]


def with_lens(sample: Sample, known: Known, percent: float) -> Known:
    """What is known by a field of view that is taken to be so much wider, for both cameras, as a render has it."""
    K = sample.source.path.K.clone()
    half = torch.atan(K[:, 0, 2] / K[:, 0, 0])
    factor = torch.tan(half) / torch.tan((half * (1 + percent / 100)).clamp(max=1.4))
    K[:, 0, 0], K[:, 1, 1] = K[:, 0, 0] * factor, K[:, 1, 1] * factor
    source = replace(sample.source, path=CameraPath(sample.source.path.world_from_cam, K))
    target = replace(sample.target, path=CameraPath(sample.target.path.world_from_cam, K))
    return by_depth(replace(sample, source=source, target=target), known.z)


def relative_error(known: Known, sample: Sample) -> float:
    """Mean of |z - true| / true; 0 for a wrong lens."""
    true = sample.source.z
    return ((known.z - true).abs() / true).mean().item()


def evaluate(
    backbone_ref: str,
    first_seed: int,
    count: int,
    *,
    frames: int = 9,
    size: tuple[int, int] = (128, 208),
    steps: int | None = None,
    output: Path | None = None,
    progress: Callable[[str], None] = print,
) -> list[store.Row]:
    """The rows of scenes from a seed on. What `output` holds already is not done again. Raises `InputError`."""
    backbone = get_backbone(backbone_ref)
    steps = steps or backbone.steps
    run = {"weights": store.fingerprint(backbone_ref), "steps": steps, "frames": frames, "size": list(size)}
    rows, seed, done = store.kept(output, run), first_seed, 0
    ways = {name: replace(WAYS[name], request=WAYS[name].request.changed(steps=steps)) for name in (HARD, HYBRID, SOFT)}
    chosen: list[store.Row] = []
    while done < count:
        sample = render_sample(seed, frames=frames, size=size, move=move_of(seed))
        known = known_of_sample(sample, measure_sample(sample))
        seed += 1
        if known.measurement.mask.float().mean() > 1 - MOVED:
            continue
        for kind, level in asked_of(backbone):
            errs: Known | None = None
            for name, way in ways.items():
                if name == SOFT and kind != NONE:
                    continue
                key = run | {"seed": sample.seed, "method": name, "kind": kind, "level": level}
                row = next((row for row in rows if key.items() <= row.items()), None)
                if row is None:
                    errs = errs or erring(backbone, kind, level, sample, known)
                    row = key | of_way(backbone, errs, way, sample, known)
                    store.append(output, row)
                chosen.append(row)
        done += 1
        progress(f"scene {done} of {count} (seed {sample.seed}) done")
    return chosen


def asked_of(backbone: Backbone) -> list[tuple[str, float]]:
    """All kinds with their levels, among them no error and, where the backbone has a depth network, its estimate."""
    found = [(NONE, 0.0), *((kind, level) for kind, one in KINDS.items() for level in one.levels)]
    return [*found, (ESTIMATE, 0.0)] if backbone.settings.depth else found


def erring(backbone: Backbone, kind: str, level: float, sample: Sample, known: Known) -> Known:
    """`wrong`, and the two kinds that have no level."""
    if kind == NONE:
        return known
    if kind == ESTIMATE:
        assert backbone.settings.depth is not None
        z = estimate_depth(sample.source.frames, load_depth_model(backbone.settings.depth, "cpu")).z
        return by_depth(sample, at_unit(z, sample.source.z, known))
    return wrong(kind, level, sample, known)


def of_way(backbone: Backbone, errs: Known, way: Way, sample: Sample, known: Known) -> dict[str, Any]:
    """The figures of a render. errs: what it is given; known: by the true depth, whose holes count."""
    video, spent = rendered(backbone, errs, way, sample.caption)
    return {"abs_rel": relative_error(errs, sample)} | compared(video, sample, known.measurement.mask) | spent


def curve_of(rows: Sequence[store.Row], method: str, kind: str, key: str) -> list[tuple[float, list[float]]]:
    """A figure of a method at the levels of a kind, the true depth first, with the values of the scenes in order."""
    found = []
    for level in (0.0, *KINDS[kind].levels):
        asked = (NONE, 0.0) if level == 0 or method == SOFT else (kind, level)
        same = [row for row in rows if row["method"] == method and (row["kind"], row["level"]) == asked]
        found.append((level, [row[key] for row in sorted(same, key=lambda row: row["seed"]) if key in row]))
    return found


def crossing(rows: Sequence[store.Row], kind: str, key: str, higher: bool = True) -> float | None:
    """The level at which soft overtakes hard in the mean, between the measured ones linearly; None if it does not."""
    means = lambda method: [store.mean(values) for _, values in curve_of(rows, method, kind, key)]
    levels = [level for level, _ in curve_of(rows, HARD, kind, key)]
    ahead = [(s - h) * (1 if higher else -1) for s, h in zip(means(SOFT), means(HARD), strict=True)]
    for index, lead in enumerate(ahead):
        if lead >= 0:
            if index == 0:
                return 0.0
            before = ahead[index - 1]
            return levels[index - 1] + (levels[index] - levels[index - 1]) * before / (before - lead)
    return None


FIGURES = {  # with whether higher is better
    "psnr_whole": ("whole frame, dB", True),
    "psnr_holes": ("holes, dB", True),
    "ssim_whole": ("SSIM, whole", True),
    "psnr_edges": ("edges, dB", True),
    "absolute": ("Abs(t), %", False),
    "turn": ("Rel(R), °", False),
}


def report(rows: Sequence[store.Row]) -> str:
    """Markdown: a line a kind, level and method; then where soft overtakes hard. ± is half a 95 % interval."""
    titles = ["depth error", "AbsRel", "method", *(words for words, _ in FIGURES.values()), "whole, over hard"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    groups = dict.fromkeys((row["kind"], row["level"], row["method"]) for row in rows)
    for kind, level, method in groups:
        same = {row["seed"]: row for row in rows if (row["kind"], row["level"], row["method"]) == (kind, level, method)}
        hard = {row["seed"]: row for row in rows if (row["kind"], row["level"], row["method"]) == (kind, level, HARD)}
        words = f"{KINDS[kind].words}, {level:g} {KINDS[kind].unit}" if kind in KINDS else kind
        cells = [words, f"{store.mean(row['abs_rel'] for row in same.values()):.3f}", method]
        for key in FIGURES:
            cells.append(f"{store.mean(row[key] for row in same.values() if key in row):.2f}")
        gains = [same[seed]["psnr_whole"] - hard[seed]["psnr_whole"] for seed in same if seed in hard]
        cells.append("" if method == HARD else store.with_error(*store.interval(gains), "+.2f"))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| soft overtakes hard at | " + " | ".join(words for words, _ in FIGURES.values()) + " |"]
    lines.append("|" + "---|" * (1 + len(FIGURES)))
    for kind, one in KINDS.items():
        at = [crossing(rows, kind, key, higher) for key, (_, higher) in FIGURES.items()]
        cells = ["nowhere" if level is None else f"{level:.3g}" for level in at]
        lines.append(f"| {one.words}, {one.unit} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len({row['seed'] for row in rows})} scenes."])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="folder of a backbone with soft parts")
    parser.add_argument("--scenes", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=8000)
    parser.add_argument("--frames", type=int, default=9, help="of a scene; with 5 one latent spans the whole move")
    parser.add_argument("--size", type=size_of_text, default=(128, 208), help="HxW, multiples of 16; default: 128x208")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path, help="a JSON line a render; goes on where it ends")
    options = parser.parse_args(arguments)
    say = lambda message: print(message, file=sys.stderr, flush=True)
    given = {"frames": options.frames, "size": options.size, "steps": options.steps, "output": options.output}
    try:
        found = evaluate(options.backbone, options.first_seed, options.scenes, progress=say, **given)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(report(found))


if __name__ == "__main__":
    main()
