"""Soft, hard and hybrid, and what leaving out a part of the soft methods costs, on unseen scenes.

    python -m pipeline.evaluation.soft --backbone FOLDER --scenes 32 --output rows.jsonl [--ways "soft" "hard" ...]

FOLDER is a backbone with soft parts. The true second view is known, and so is the true depth; noise, steps and seeds
are the same for all, and results are raw. Figures are against the true view, in the holes of the warp and where it is
observed. `pipeline.evaluation.curve` gives depth errors to the same methods. `--latents` says instead whether what the
adapter makes of a scene differs from scene to scene at all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.depth.estimate import estimate_depth
from pipeline.depth.load import load_depth_model
from pipeline.evaluation import rows as store
from pipeline.evaluation.direct import found_path, path_error
from pipeline.evaluation.scenes import BASE, known_of_sample, measure_sample, move_of
from pipeline.finish.steady import settle
from pipeline.known.known import Known
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.quality import psnr, ssim
from pipeline.method.inversecrafter import tell
from pipeline.method.lavr import distance_of, followed, softened
from pipeline.method.methods import METHODS, solve
from pipeline.method.told import Told
from pipeline.prior.backbone import Backbone
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.scene.weights import load_encoder
from pipeline.world.scenes import Sample, render_sample

LEAST = 0.005  # share of unknown pixels below which a scene is passed over
STEP, BAND = 0.1, 7  # of log depth between neighbours that is an edge, and the width in pixels of the band about it
HARD, SOFT, HYBRID = "hard", "soft", "hybrid"
TRUTH = "VAE of the truth (ceiling)"


@dataclass(frozen=True)
class Way:
    """A method of a row. scene, source_pose, poses: shown to the model, or left out, as `pipeline.training.lavr` leaves
    them out. estimated: the depth is the backbone's own estimate, at the true unit. cycle: goes back, too."""

    request: RenderRequest
    scene: bool = True
    source_pose: bool = True
    poses: bool = True
    estimated: bool = False
    cycle: bool = False


_SOFT, _BOTH = BASE.changed(method="lavr"), BASE.changed(method="both")
WAYS: dict[str, Way] = {
    HARD: Way(BASE, cycle=True),
    SOFT: Way(_SOFT, cycle=True),
    "soft, no scene": Way(_SOFT, scene=False, cycle=True),
    "soft, no source pose": Way(_SOFT, source_pose=False),
    "soft, neither": Way(_SOFT, scene=False, source_pose=False),
    HYBRID: Way(_BOTH, cycle=True),
    "hard, estimated depth": Way(BASE, estimated=True),
    "hybrid, estimated depth": Way(_BOTH, estimated=True),
    "soft, no poses": Way(_SOFT, poses=False),
    "soft, shown the warp": Way(_BOTH.changed(solver="none")),
    "soft, warp imposed": Way(_BOTH.changed(condition="none")),
    "hybrid, imposed until noise level 0.5": Way(_BOTH.changed(guide_until=0.5)),
}


def told_of(backbone: Backbone, known: Known, way: Way, prompt: str) -> Told:
    """How the sampler is told by a row's method, with its parts left out."""
    guidance = way.request.changed(prompt=prompt).guidance
    if way.scene and way.source_pose and way.poses:
        return METHODS[guidance.method](backbone, known, guidance)
    guidance = followed(guidance)
    problem = softened(backbone, known, guidance)
    beside = problem.conditions.beside
    assert beside is not None
    if not way.poses:
        beside = replace(beside, target_pose=torch.zeros_like(beside.target_pose))
    if not (way.source_pose and way.poses):
        beside = replace(beside, source_pose=None)
    if not way.scene:
        beside = replace(beside, scene=None)
    return tell(backbone, replace(problem, conditions=replace(problem.conditions, beside=beside)), guidance)


def rendered(
    backbone: Backbone, known: Known, way: Way, prompt: str
) -> tuple[Float[Tensor, "T 3 H W"], dict[str, float]]:
    """The raw result, and the processor seconds of the sampling and of all."""
    began = time.process_time()
    told = told_of(backbone, known, way, prompt)
    z, ready = told.z, time.process_time()
    for step in solve(backbone, told):
        z = step.z
    sampled = time.process_time()
    video = settle(backbone.decode(z).cpu(), known, None, backbone.settings.steady)
    return video, {"sampling": sampled - ready, "seconds": time.process_time() - began}


def by_depth(sample: Sample, z: Float[Tensor, "T H W"]) -> Known:
    """What is known of a scene by another depth than the true one. The path is laid out in the true unit."""
    source, target = sample.source, sample.target
    seen = warp_to_path(source.frames, z, source.path, target.path)
    seen = replace(seen, z=warp_depth(z, source.path, target.path))
    return Known(seen, source.frames, z, source.path, target.path, truth=target.frames)


def at_unit(z: Float[Tensor, "T H W"], true: Float[Tensor, "T H W"], known: Known) -> Float[Tensor, "T H W"]:
    """A depth scaled to have the subject at its true distance, as a path's unit is that. known: any of the scene."""
    return z * (distance_of(replace(known, z=true)) / distance_of(replace(known, z=z)))


def edges_of(z: Float[Tensor, "T H W"]) -> Bool[Tensor, "T 1 H W"]:
    """A band about the steps of a depth."""
    log = z.clamp_min(1e-6).log()[:, None]
    step = F.pad((log.diff(dim=-1).abs() > STEP).float(), (0, 1)) + F.pad(
        (log.diff(dim=-2).abs() > STEP).float(), (0, 0, 0, 1)
    )
    return F.max_pool2d(step, BAND, 1, BAND // 2) > 0


def compared(result: Float[Tensor, "T 3 H W"], sample: Sample, mask: Bool[Tensor, "T 1 H W"]) -> dict[str, float]:
    """A result against the true view: in the holes, where it is observed (mask), over all, about steps of depth; and
    the camera that it shows, lengths in percent of the subject's distance."""
    source, target = sample.source, sample.target
    truth, found = target.frames, {}
    parts = {"holes": ~mask, "observed": mask, "whole": None, "edges": edges_of(target.z)}
    for name, part in parts.items():
        if part is None or part.float().mean() > LEAST:
            found |= {f"psnr_{name}": psnr(result, truth, part), f"ssim_{name}": ssim(result, truth, part)}
    unit = distance_of(known_of_sample(sample, measure_sample(sample)))
    path = found_path(result, source.frames, source.z, source.path, target.path, unit)
    error = path_error(path, source.path, target.path, unit)
    lengths = {"absolute": 100 * error.absolute, "step": 100 * error.step, "turn": error.turn}
    nearness = {"asked": error.asked, "own": error.own, "follows": int(error.follows)}
    return found | lengths | nearness | {"psnr_source": psnr(result, source.frames)}


def back(backbone: Backbone, sample: Sample, result: Float[Tensor, "T 3 H W"], way: Way) -> float:
    """Cycle PSNR in dB: the result filmed anew along the source's path, by the true depth of the second view, against
    the source."""
    source, target = sample.source, sample.target
    turned = replace(sample, source=replace(target, frames=result), target=source)
    known = known_of_sample(turned, measure_sample(turned))
    return psnr(rendered(backbone, known, way, sample.caption)[0], source.frames)


def evaluate(
    backbone_ref: str,
    first_seed: int,
    count: int,
    *,
    ways: Sequence[str] = tuple(WAYS),
    frames: int = 9,
    size: tuple[int, int] = (128, 208),
    steps: int | None = None,
    output: Path | None = None,
    progress: Callable[[str], None] = print,
) -> list[store.Row]:
    """The rows of scenes from a seed on, one for each way and one of the VAE. What `output` holds already is not done
    again. Raises `InputError`."""
    if unknown := [name for name in ways if name not in WAYS]:
        raise InputError(f"{', '.join(unknown)}: give some of {', '.join(WAYS)}.")
    backbone = get_backbone(backbone_ref)
    steps = steps or backbone.steps
    run = {"weights": store.fingerprint(backbone_ref), "steps": steps, "frames": frames, "size": list(size)}
    rows, seed, done = store.kept(output, run), first_seed, 0
    chosen: list[store.Row] = []
    while done < count:
        of_seed = {row["method"]: row for row in rows if row["seed"] == seed}
        if any(name not in of_seed for name in (TRUTH, *ways)):
            sample = render_sample(seed, frames=frames, size=size, move=move_of(seed))
            known = known_of_sample(sample, measure_sample(sample))
            if known.measurement.mask.float().mean() > 1 - LEAST:
                seed += 1
                continue
            for name in (TRUTH, *ways):
                if name not in of_seed:
                    key = run | {"seed": seed, "method": name, "move": move_of(seed)}
                    of_seed[name] = key | measured(backbone, sample, known, name, steps)
                    store.append(output, of_seed[name])
            progress(f"scene {done + 1} of {count} (seed {seed}) done")
        chosen += [of_seed[name] for name in (TRUTH, *ways)]
        seed, done = seed + 1, done + 1
    return chosen


def measured(backbone: Backbone, sample: Sample, known: Known, name: str, steps: int) -> dict[str, Any]:
    """The figures of a row. known: by the true depth."""
    if name == TRUTH:
        mask = known.measurement.mask
        return compared(backbone.decode(backbone.encode(sample.target.frames)).cpu(), sample, mask)
    way = replace(WAYS[name], request=WAYS[name].request.changed(steps=steps))
    if way.estimated:
        folder = backbone.settings.depth
        if folder is None:
            raise InputError(f"The model {backbone.name!r} brings no depth network, which {name!r} needs.")
        z = estimate_depth(sample.source.frames, load_depth_model(folder, "cpu")).z
        known = by_depth(sample, at_unit(z, sample.source.z, known))
    video, spent = rendered(backbone, known, way, sample.caption)
    mask = known.measurement.mask
    found: dict[str, Any] = {"unknown": 1 - mask.float().mean().item()} | compared(video, sample, mask) | spent
    return found | ({"psnr_cycle": back(backbone, sample, video, way)} if way.cycle else {})


def difference(rows: Sequence[store.Row], name: str, other: str, key: str, *, ratio: bool = False) -> str:
    """A figure of a method over that of another, scene by scene, in words; empty where it is of neither."""
    of = lambda method: {row["seed"]: row[key] for row in rows if row["method"] == method and key in row}
    mine, theirs = of(name), of(other)
    values = [mine[s] / theirs[s] if ratio else mine[s] - theirs[s] for s in mine if s in theirs]
    return store.with_error(*store.interval(values), ".2f" if ratio else "+.2f") if values and name != other else ""


def report(rows: Sequence[store.Row]) -> str:
    """Markdown: closeness to the true view, the camera (medians in brackets), and what leaving out a part costs.

    ± is half a 95 % interval.
    """
    names = list(dict.fromkeys(row["method"] for row in rows))
    of = lambda name, key: [row[key] for row in rows if row["method"] == name and key in row]
    mean = lambda name, key, form: f"{store.mean(of(name, key)):{form}}" if of(name, key) else ""
    head = lambda titles: ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    parts, lines = ("holes", "observed", "whole", "edges"), []
    lines += head(["method", *(f"{part}, dB | over hard" for part in parts), "cycle, dB | over hard"])
    lines[1] = "|" + "---|" * (1 + 2 * 5)
    for name in names:
        cells = [name]
        for key in (*(f"psnr_{part}" for part in parts), "psnr_cycle"):
            cells += [mean(name, key, ".2f"), difference(rows, name, HARD, key)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *head(["method", *(f"SSIM, {part}" for part in parts), "sampling, ratio", "all, ratio"])]
    for name in names:
        cells = [name, *(mean(name, f"ssim_{part}", ".3f") for part in parts)]
        cells += [difference(rows, name, HARD, key, ratio=True) for key in ("sampling", "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    titles = ["method", "Abs(t), %", "Rel(t), %", "Rel(R), °", "nearer to the asked path", "to the source, dB"]
    lines += ["", *head(titles)]
    for name in names:
        cells = [name]
        for key in ("absolute", "step", "turn"):
            words = store.with_error(*store.interval(of(name, key)), ".2f")
            cells.append(f"{words} ({median(of(name, key)):.2f})")
        follows = of(name, "follows")
        cells += [f"{sum(follows)} of {len(follows)}", mean(name, "psnr_source", ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    pairs = [(SOFT, other) for other in names if other.startswith("soft, no") or other == "soft, neither"]
    pairs += [("hybrid, estimated depth", "hard, estimated depth")]
    lines += ["", *head(["difference, dB", *parts, "cycle"])]
    for name, other in pairs:
        keys = (*(f"psnr_{part}" for part in parts), "psnr_cycle")
        lines.append(f"| {name} - {other} | {' | '.join(difference(rows, name, other, key) for key in keys)} |")
    unknown = store.mean(of(HARD, "unknown")) if of(HARD, "unknown") else float("nan")
    return "\n".join([*lines, "", f"{len({row['seed'] for row in rows})} scenes, {unknown:.1%} unknown."])


def told_apart(backbone: Backbone, samples: Sequence[Sample]) -> tuple[float, float]:
    """How far scenes differ for the soft parts, as shares of a variance: of the scene encoder's tokens from scene to
    scene, and of the adapter's latents, what is left of them without the pattern of a query's latents that all scenes
    and places have in common. Raises `InputError` for a backbone without an adapter."""
    soft = backbone.soft
    if soft is None or soft.adapter is None or soft.encoder is None:
        raise InputError(f"The model {backbone.name!r} reads no scene.")
    encoder = load_encoder(soft.encoder, str(backbone.device))
    tokens = torch.stack([encoder.encode(sample.source.frames).tokens for sample in samples])
    height, width = samples[0].source.frames.shape[-2:]
    with torch.no_grad():
        made = soft.adapter(tokens, (height // backbone.spatial, width // backbone.spatial))
    cell = soft.adapter.cell
    cells = rearrange(made, "n c t (h p) (w q) -> (n t h w) (c p q)", p=cell, q=cell)
    return (tokens.var(0).mean() / tokens.var()).item(), (cells.var(0).mean() / cells.var()).item()


def size_of_text(text: str) -> tuple[int, int]:
    """HxW in words. Raises ValueError, which a parser tells as a wrong argument."""
    height, width = (int(side) for side in text.split("x"))
    return height, width


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="folder of a backbone with soft parts")
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--frames", type=int, default=9, help="of a scene; with 5 one latent spans the whole move")
    parser.add_argument("--size", type=size_of_text, default=(128, 208), help="HxW, multiples of 16; default: 128x208")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), metavar="WAY", help=f"some of: {'; '.join(WAYS)}")
    parser.add_argument("--output", type=Path, help="a JSON line a scene and way; goes on where it ends")
    parser.add_argument("--latents", action="store_true", help="how far the latents of the scenes differ, and no more")
    options = parser.parse_args(arguments)
    say = lambda message: print(message, file=sys.stderr, flush=True)
    given = {"ways": options.ways, "frames": options.frames, "size": options.size, "steps": options.steps}
    try:
        if options.latents:
            seeds = range(options.first_seed, options.first_seed + options.scenes)
            samples = [
                render_sample(seed, frames=options.frames, size=options.size, move=move_of(seed)) for seed in seeds
            ]
            tokens, latents = told_apart(get_backbone(options.backbone), samples)
            print(
                f"{len(samples)} scenes differ in {tokens:.1e} of the tokens' variance, {latents:.1e} of the latents'."
            )
            return
        found = evaluate(
            options.backbone, options.first_seed, options.scenes, output=options.output, progress=say, **given
        )
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(report(found))


if __name__ == "__main__":
    main()
