"""Pictures for the README.

    python -m pipeline.evaluation.figures example
    python -m pipeline.evaluation.figures tradeoff rows.jsonl tradeoff.png

`example` renders an example as the app does; `tradeoff` draws what `python -m pipeline evaluate --output` wrote.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from pipeline import InputError
from pipeline.evaluation import rows as store
from pipeline.evaluation.scenes import DEFAULT
from pipeline.media.video import read_video, resize, to_uint8
from pipeline.render.events import DoneEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

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
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError("Drawing needs matplotlib: pip install matplotlib.") from error

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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("example", help="assets/figures/example.webp")
    drawn = kinds.add_parser("tradeoff", help="consistency against quality of all methods in a file of rows")
    drawn.add_argument("rows", type=Path)
    drawn.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    try:
        example() if options.kind == "example" else tradeoff(options.rows, options.picture)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
