"""Pictures for the README.

    python -m pipeline.evaluation.figures example
    python -m pipeline.evaluation.figures tradeoff rows.jsonl tradeoff.png
    python -m pipeline.evaluation.figures curve curve.jsonl depth-errors.png
    python -m pipeline.evaluation.figures methods FOLDER hard.webp soft.webp

`example` renders an example as the app does; `tradeoff` draws what `python -m pipeline evaluate --output` wrote, and
`curve` what `python -m pipeline.evaluation.curve --output` did. `methods` shows what InverseCrafter and LaVR are given
of an unseen scene, and what they make of it, with a backbone that has soft parts.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pipeline import InputError
from pipeline.evaluation import curve as errors
from pipeline.evaluation import rows as store
from pipeline.evaluation.scenes import DEFAULT, known_of_sample, measure_sample
from pipeline.evaluation.soft import HARD, HYBRID, SOFT, WAYS, rendered
from pipeline.media.video import read_video, resize, to_uint8
from pipeline.method.lavr import beside_of
from pipeline.method.problem import prepare
from pipeline.render.events import DoneEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import show_holes
from pipeline.world.scenes import Sample, render_sample

ROOT = Path(__file__).parents[2]
EXAMPLE = "astronaut"
HEIGHT = 300  # of each picture


def example() -> None:
    """Source, warp with its holes, and result side by side, as an animated WebP."""
    request = RenderRequest.from_json((ROOT / "examples" / f"{EXAMPLE}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(ROOT / "examples" / file) for name in ("clip", "mask") if (file := getattr(request, name))}
        *_, done = render(request.changed(**files), folder)
        assert isinstance(done, DoneEvent), done
        clips = [read_video(path) for path in (done.result.source, done.result.warp, done.result.video)]
    height, width = clips[0].frames.shape[-2:]
    size = HEIGHT, round(HEIGHT * width / height)
    shown = torch.cat([resize(clip.frames, size) for clip in clips], -1).clamp(0, 1)
    pictures = [Image.fromarray(frame) for frame in to_uint8(shown)]
    target = ROOT / "assets" / "figures" / "example.webp"
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=round(1000 / clips[0].fps), loop=0, quality=80
    )
    print(f"wrote {target} ({target.stat().st_size // 1024} kB)")


def tradeoff(rows: Path, picture: Path) -> None:
    """Consistency against quality, as InverseCrafter's Figure 7 (arXiv 2512.05672): PSNR on what is observed and in the
    holes, both as differences from the default taken scene by scene, means with 95 % confidence intervals.

    Raises `InputError` where the file has no rows of the default, or matplotlib is missing.
    """
    pyplot = _pyplot()
    kept = store.kept(rows, {})
    by_method: dict[str, dict[int, dict]] = {}
    for row in kept:
        if "sampling" in row:
            by_method.setdefault(row["method"], {})[row["seed"]] = row
    default = by_method.pop(DEFAULT, None)
    if not default:
        raise InputError(f"{rows} has no rows of the default; write it with python -m pipeline evaluate --output.")
    points = {DEFAULT: [(0.0, 0.0), (0.0, 0.0)]}
    for name, of_seed in by_method.items():
        if both := [(row, default[seed]) for seed, row in of_seed.items() if seed in default]:
            differences = ([a[key] - b[key] for a, b in both] for key in ("psnr_observed", "psnr_holes"))
            points[name] = [store.interval(values) for values in differences]
    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    axes.axhline(0, color="0.85", zorder=0)
    axes.axvline(0, color="0.85", zorder=0)
    ranked = sorted(points.items(), key=lambda point: -point[1][1][0])
    for number, (name, (x, y)) in enumerate(ranked, 1):
        colour = f"C{number % 10}"
        axes.errorbar(x[0], y[0], xerr=x[1], yerr=y[1], elinewidth=0.4, color=colour, alpha=0.6)
        axes.plot(x[0], y[0], "o", color=colour, markersize=5, label=f"{number}  {name}")
        axes.annotate(str(number), (x[0], y[0]), textcoords="offset points", xytext=(4, 4), fontsize=8, color=colour)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.set_xlabel("consistency: PSNR on what is observed, dB over the default")
    axes.set_ylabel("quality: PSNR in the holes, dB over the default")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    print(f"wrote {picture}")


def curve(rows: Path, picture: Path) -> None:
    """Hard and hybrid over soft as the depth grows wrong, a column a kind of error, over all and in the holes.

    Differences of PSNR to the true view, taken scene by scene, means with 95 % confidence intervals. Below zero soft is
    ahead; a dotted line stands where it overtakes hard.
    Raises `InputError` where the file has no rows, or matplotlib is missing.
    """
    pyplot, kept = _pyplot(), store.kept(rows, {})
    if not kept:
        raise InputError(f"{rows} has no rows; write it with python -m pipeline.evaluation.curve --output.")
    shown = ("psnr_whole", "psnr_holes")
    figure, axes = pyplot.subplots(
        len(shown), len(errors.KINDS), figsize=(13, 4.6), sharey="row", sharex="col", layout="constrained"
    )
    for row, key in enumerate(shown):
        for column, (kind, one) in enumerate(errors.KINDS.items()):
            place = axes[row, column]
            place.axhline(0, color="C1", label=SOFT)
            base = errors.curve_of(kept, SOFT, kind, key)
            for method, colour, line, size in ((HARD, "C0", "-", 6), (HYBRID, "C2", "--", 3)):
                of_level = zip(errors.curve_of(kept, method, kind, key), base, strict=True)
                points = [
                    (level, *store.interval([a - b for a, b in zip(mine, soft, strict=True)]))
                    for (level, mine), (_, soft) in of_level
                ]
                levels, means, halves = zip(*points, strict=True)
                place.errorbar(levels, means, halves, color=colour, ls=line, label=method, marker="o", ms=size, lw=1)
            at = errors.crossing(kept, kind, key)
            if at is not None:
                place.axvline(at, color="0.6", linestyle=":")
            if column == 0:
                place.set_ylabel(f"{errors.FIGURES[key][0]} over soft")
            if row == len(shown) - 1:
                place.set_xlabel(f"{one.words}, {one.unit}", fontsize=8)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)
    print(f"wrote {picture} ({picture.stat().st_size // 1024} kB)")


def methods(backbone_ref: str, seed: int, hard: Path, soft: Path) -> None:
    """A picture of each method on an unseen scene: what it is given, what it makes of it, and the true view; last
    frames of five.

    Raises `InputError` where the backbone has no soft parts, or matplotlib is missing.
    """
    backbone, sample = get_backbone(backbone_ref), render_sample(seed, frames=5, move="orbit-left")
    if backbone.soft is None:
        raise InputError(f"The model {backbone_ref!r} has no soft parts; give a folder of one that has.")
    known = known_of_sample(sample, measure_sample(sample))
    made = {name: rendered(backbone, known, WAYS[name], sample.caption)[0] for name in (HARD, SOFT)}
    guidance = WAYS[HARD].request.changed(prompt=sample.caption).guidance
    h = prepare(backbone, known, guidance).h
    assert h is not None
    beside = beside_of(backbone, backbone.soft, known)
    latents = beside.source if beside.scene is None else beside.scene
    last = lambda video: to_uint8(video[-1:].clamp(0, 1))[0]
    source, truth = ("source", last(sample.source.frames)), ("true view", last(sample.target.frames))
    _strip(
        hard,
        [source, ("warp by depth, holes grey", last(show_holes(known.measurement))),
         ("latent mask: how far known", h.mean(0)[-1].cpu().numpy()), ("result", last(made[HARD])), truth],
    )  # fmt: skip
    _strip(
        soft,
        [source, ("latents of the scene", components(latents[0, : backbone.latent_channels, -1])),
         ("both cameras, from above", sample), ("result", last(made[SOFT])), truth],
    )  # fmt: skip


def components(latents: Float[Tensor, "C h w"]) -> Any:
    """The three strongest components of latents as colours, h w 3 in [0, 1]."""
    flat = latents.flatten(1).mT.double().cpu()
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    found = flat @ directions[:3].mT
    found = found / (3 * found.std(0).clamp_min(1e-9)) + 0.5
    return found.clamp(0, 1).view(*latents.shape[1:], 3).numpy()


def _strip(target: Path, shown: list[tuple[str, Any]]) -> None:
    """Pictures side by side under their titles; of a sample, its cameras from above."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(shown), figsize=(2.1 * len(shown), 1.6), layout="constrained")
    for place, (title, picture) in zip(axes, shown, strict=True):
        place.set_title(title, fontsize=8)
        place.set_xticks([])
        place.set_yticks([])
        if isinstance(picture, Sample):
            for view, colour in ((picture.source, "C0"), (picture.target, "C1")):
                poses = view.path.world_from_cam
                x, z = poses[:, 0, 3], poses[:, 2, 3]
                place.plot(x, z, "o-", color=colour, ms=3)
                place.quiver(x, z, poses[:, 0, 2], poses[:, 2, 2], color=colour, width=0.008, scale=6)
            place.margins(0.4)
            place.set_aspect("equal", adjustable="datalim")
        else:
            place.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").save(target, quality=85)
    print(f"wrote {target} ({target.stat().st_size // 1024} kB)")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError("Drawing needs matplotlib: pip install matplotlib.") from error
    return pyplot


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("example", help="assets/figures/example.webp")
    drawn = kinds.add_parser("tradeoff", help="consistency against quality of all methods in a file of rows")
    drawn.add_argument("rows", type=Path)
    drawn.add_argument("picture", type=Path)
    drawn = kinds.add_parser("curve", help="soft, hard and hybrid against depth errors, of a file of rows")
    drawn.add_argument("rows", type=Path)
    drawn.add_argument("picture", type=Path)
    shown = kinds.add_parser("methods", help="a picture of InverseCrafter, and one of LaVR")
    shown.add_argument("backbone", help="folder of a backbone with soft parts")
    shown.add_argument("hard", type=Path)
    shown.add_argument("soft", type=Path)
    shown.add_argument("--seed", type=int, default=7002)
    options = parser.parse_args(arguments)
    try:
        if options.kind == "example":
            example()
        elif options.kind == "methods":
            methods(options.backbone, options.seed, options.hard, options.soft)
        else:
            {"tradeoff": tradeoff, "curve": curve}[options.kind](options.rows, options.picture)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
