"""Re-capture of unseen scenes of the procedural world, where the true second view is known.

True depth and cameras are given, so that what is measured is the filling of holes and the keeping of what is known,
not the depth network. Every method gets the same warp, prior, noise and number of steps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.evaluation.metrics import psnr
from pipeline.measurement import Measurement, fill_unknown, warp_to_path
from pipeline.render import RenderRequest, get_backbone, prepare, show_holes, solve, to_uint8
from pipeline.training.world import Sample, render_sample

BASE = RenderRequest(clip="(world)")
TELEA, DEFAULT = "Telea (OpenCV)", "DDS, shown the warp (default)"
COLUMNS = ("holes", "observed", "all", "seconds")
STRIPS = 5  # scenes in the figure
PRIORS: dict[str, RenderRequest] = {
    "prior alone, shown the warp": replace(BASE, solver="none"),
    "prior alone, shown the first frame": replace(BASE, solver="none", condition="first-frame"),
    "DDS, shown the first frame": replace(BASE, condition="first-frame"),
    "DDS, shown the warp, binary mask": replace(BASE, latent_mask="binary"),
    "DDS, shown the warp, reference mask": replace(BASE, latent_mask="reference"),
    DEFAULT: BASE,
    "the same, fast (cache)": replace(BASE, fast="cache"),
}


def telea(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """OpenCV's inpainting (Telea 2004, radius 3) of each warped frame."""
    frames = []
    for frame, known in zip(measurement.video, measurement.mask[:, 0], strict=True):
        pixels = np.ascontiguousarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
        holes = (~known).byte().numpy()
        frames.append(torch.from_numpy(cv2.inpaint(pixels, holes, 3, cv2.INPAINT_TELEA)).permute(2, 0, 1).float() / 255)
    return torch.stack(frames)


def measure_sample(sample: Sample) -> Measurement:
    """The source recording warped along the target's path, with true depth."""
    source = sample.source
    return warp_to_path(source.frames, source.z, source.path, sample.target.path)


def recapture_sample(
    backbone: Backbone, sample: Sample, measurement: Measurement, request: RenderRequest
) -> Float[Tensor, "T 3 H W"]:
    """The raw result of `request`'s method on a sample; its caption is the prompt."""
    request = replace(request, prompt=sample.caption)
    target = sample.target.frames if request.latent_mask == "reference" else None
    problem = prepare(backbone, measurement, sample.source.frames, request, target=target)
    z = problem.noise
    for step in solve(backbone, problem, request):
        z = step.z
    return backbone.decode(z).cpu()


def evaluate(
    backbone_ref: str,
    first_seed: int,
    count: int,
    *,
    steps: int | None,
    output: Path | None,
    figure: Path | None = None,
    progress: Callable[[str], None] = print,
) -> str:
    """PSNR in the holes, on what is observed and over all, per method, as a Markdown table; rows also as JSON lines.

    Scenes without holes (fewer than 0.5 % of the pixels) are passed over for the next seed. figure: a PNG to write, the
    last frame of the first scenes.
    """
    backbone = get_backbone(backbone_ref)
    rows: list[dict[str, Any]] = []
    strips: list[np.ndarray] = []
    seed, done = first_seed, 0
    while done < count:
        sample = render_sample(seed)
        measurement = measure_sample(sample)
        holes, truth = ~measurement.mask, sample.target.frames
        if holes.float().mean() > 0.005:
            methods: dict[str, Callable[[], Tensor]] = {
                TELEA: lambda m=measurement: telea(m),
                "smooth filling (what is encoded)": lambda m=measurement: fill_unknown(m),
                "nano VAE of the truth (ceiling)": lambda t=truth: backbone.decode(backbone.encode(t)).cpu(),
            }
            for name, request in PRIORS.items():
                request = replace(request, steps=steps)
                methods[name] = lambda r=request, s=sample, m=measurement: recapture_sample(backbone, s, m, r)
            results = {}
            for name, method in methods.items():
                started = time.perf_counter()
                result = results[name] = method()
                rows.append(
                    {
                        "seed": seed,
                        "method": name,
                        "unknown": holes.float().mean().item(),
                        "holes": psnr(result, truth, holes),
                        "observed": psnr(result, measurement.video, measurement.mask),
                        "all": psnr(result, truth),
                        "seconds": time.perf_counter() - started,
                    }
                )
            if len(strips) < STRIPS:
                shown = [sample.source.frames, show_holes(measurement), results[TELEA], results[DEFAULT], truth]
                strips.append(np.concatenate([to_uint8(video[-1:])[0] for video in shown], axis=1))
            done += 1
            progress(f"scene {done}/{count} (seed {seed}) done")
        seed += 1
    if figure is not None:
        import imageio.v3 as iio

        iio.imwrite(figure, np.concatenate(strips))
    if output is not None:
        output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over scenes, one line a method; "over Telea" is the mean difference in the holes, scene by scene.

    ± is the standard error of a mean. Scenes differ far more than methods do, so the difference is what compares.
    """
    lines = [
        "| method | holes, dB | over Telea, dB | observed, dB | whole frame, dB | s |",
        "|---|---|---|---|---|---|",
    ]
    telea_holes = {row["seed"]: row["holes"] for row in rows if row["method"] == TELEA}
    for name in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == name]
        holes, observed, whole, seconds = (_mean(row[key] for row in chosen) for key in COLUMNS)
        over = _with_error([row["holes"] - telea_holes[row["seed"]] for row in chosen], "+.2f")
        kept = "" if "ceiling" in name else _decibels(observed)
        over = "" if name == TELEA else over
        lines.append(f"| {name} | {holes:.2f} | {over} | {kept} | {whole:.2f} | {seconds:.1f} |")
    unknown = _mean({row["seed"]: row["unknown"] for row in rows}.values())
    lines.append(f"\n{len({row['seed'] for row in rows})} unseen scenes, {unknown:.1%} of the pixels unknown.")
    return "\n".join(lines)


def _with_error(values: list[float], form: str) -> str:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{_mean(values):{form}} ± {error:.2f}"


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.2f}"
