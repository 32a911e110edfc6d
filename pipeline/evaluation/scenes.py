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

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import PRESETS
from pipeline.evaluation import rows as store
from pipeline.evaluation import scores
from pipeline.finish.steady import settle
from pipeline.known.fill import fill_unknown, telea
from pipeline.known.gather import completed
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.video import to_uint8
from pipeline.method.latent_mask import LATENT_MASKS
from pipeline.method.methods import METHODS, solve
from pipeline.method.solvers import SOLVERS
from pipeline.prior.backbone import Backbone
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.view import show_holes
from pipeline.render.worker import decoded
from pipeline.world.scenes import Sample, render_sample

BASE = RenderRequest(clip="(world)", other_frames=False)  # every method gets the same measurement
TELEA, DEFAULT, UNGUIDED = "Telea (OpenCV)", "DDS, shown the warp (default)", "prior alone, shown the warp"
OTHERS = "the same, other frames too (the app's way)"
STRIPS = 5  # scenes in the figure
PRIORS: dict[str, RenderRequest] = {
    UNGUIDED: BASE.changed(solver="none"),
    "prior alone, shown the first frame": BASE.changed(solver="none", condition="first-frame"),
    "DDS, shown the first frame": BASE.changed(condition="first-frame"),
    "DDS, shown the warp, binary mask": BASE.changed(latent_mask="binary"),
    "DDS, shown the warp, reference mask": BASE.changed(latent_mask="reference"),
    DEFAULT: BASE,
    OTHERS: BASE.changed(other_frames=True),
    "the same, fast (cache)": BASE.changed(fast="cache"),
}
SETTINGS = (
    "method", "solver", "latent_mask", "phi", "tau", "gamma", "iterations", "step_size",
    "schedule", "guide_from", "guide_until", "condition", "steps", "guidance_scale", "strength", "other_frames",
)  # fmt: skip


def move_of(seed: int) -> str:
    """The camera move of a scene: the six in turn."""
    return tuple(PRESETS)[seed % len(PRESETS)]


def method_of(text: str) -> RenderRequest:
    """A method in words, such as "repaint,binary,iterations=3": a solver, a latent mask, settings of the request.

    What is not said is the default's, but that each frame is on its own unless it says other_frames=true. Raises
    `InputError`.
    """
    given: dict[str, Any] = {}
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        if not equals:
            name, value = "method" if name in METHODS else "solver" if name in SOLVERS else "latent_mask", name
        if name not in SETTINGS or (not equals and value not in (*METHODS, *SOLVERS, *LATENT_MASKS)):
            raise InputError(
                f"{word.strip()!r} is no part of a method; give a solver ({', '.join(SOLVERS)}), a latent mask "
                f"({', '.join(LATENT_MASKS)}) or one of {', '.join(SETTINGS)}, as in gamma=0.2."
            )
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return BASE.changed(**given)


def settings_of(request: RenderRequest) -> dict[str, Any]:
    """What tells one method from another in a request."""
    given = request.flat()
    return {name: given[name] for name in SETTINGS}


def measure_sample(sample: Sample) -> Measurement:
    """The source recording warped along the target's path, with true depth."""
    source, along = sample.source, sample.target.path
    warped = warp_to_path(source.frames, source.z, source.path, along)
    return replace(warped, z=warp_depth(source.z, source.path, along))


def known_of_sample(sample: Sample, measurement: Measurement) -> Known:
    """What is known of a sample's second view, the truth among it. measurement: of `measure_sample`."""
    source, target = sample.source, sample.target
    return Known(measurement, source.frames, source.z, source.path, target.path, truth=target.frames)


def recapture_sample(
    backbone: Backbone, sample: Sample, measurement: Measurement, request: RenderRequest
) -> tuple[Float[Tensor, "T 3 H W"], Measurement, dict[str, float]]:
    """The raw result of `request`'s method on a sample, the measurement that it was given (which other frames may have
    completed), and the seconds that it took. The sample's caption is the prompt."""
    guidance = request.changed(prompt=sample.caption).guidance
    began, known, found = _now(backbone), known_of_sample(sample, measurement), None
    if request.other_frames:
        known, found = completed(known)
    told = METHODS[guidance.method](backbone, known, guidance)
    z, ready = told.z, _now(backbone)
    for step in solve(backbone, told, fast=guidance.fast):
        z = step.z
    sampled = _now(backbone)
    video = settle(decoded(backbone, told, z, known), known, found, backbone.settings.steady)
    return video, known.measurement, {"sampling": sampled - ready, "seconds": _now(backbone) - began}


def _now(backbone: Backbone) -> float:
    """Seconds of work: of the processor on a CPU, whatever else it is busy with, else of the clock."""
    if backbone.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def evaluate(
    backbone_ref: str,
    first_seed: int,
    count: int,
    *,
    methods: list[str] | None = None,
    steps: int | None = None,
    output: Path | None = None,
    figure: Path | None = None,
    accepted: tuple[str, ...] = (),
    progress: Callable[[str], None] = print,
) -> str:
    """How methods compare, as Markdown: PSNR and time by scene-wise differences, and all else that `scores` measures.

    methods: see `method_of`; unguided sampling, the default, and that with other frames are always among them. None for
    `PRIORS`.
    output: one JSON line a scene and method, written as they are done; what it holds already, of the same weights and
    steps, is not done again. figure: a PNG to write, the last frame of the first scenes. accepted: of `scores.measure`.
    Scenes without holes (fewer than 0.5 % of the pixels) are passed over for the next one; `move_of` says their paths.
    """
    asked = PRIORS if methods is None else {name: PRIORS[name] for name in (UNGUIDED, DEFAULT, OTHERS)}
    asked = asked | {text: method_of(text) for text in methods or ()}
    backbone = get_backbone(backbone_ref)
    run = {"backbone": backbone_ref, "weights": store.fingerprint(backbone_ref), "steps": steps or backbone.steps}
    rows = store.kept(output, run)
    strips: list[np.ndarray] = []
    plain = lambda video: (video, {})
    seed, done = first_seed, 0
    while done < count:
        sample = render_sample(seed, move=move_of(seed))
        measurement = measure_sample(sample)
        holes, truth = ~measurement.mask, sample.target.frames
        if holes.float().mean() > 0.005:
            known: dict[str, Callable[[], tuple[Any, ...]]] = {
                TELEA: lambda m=measurement: plain(telea(m)),
                "smooth filling (what is encoded)": lambda m=measurement: plain(fill_unknown(m)),
                "VAE of the truth (ceiling)": lambda t=truth: plain(backbone.decode(backbone.encode(t)).cpu()),
            }
            for name, request in asked.items():
                request = request.changed(steps=request.guidance.steps or steps)
                known[name] = lambda r=request, s=sample, m=measurement: recapture_sample(backbone, s, m, r)
            strip = figure is not None and len(strips) < STRIPS
            results: dict[str, Tensor] = {}
            for name, method in known.items():
                settings = settings_of(asked[name]) if name in asked else {}
                key = {**run, "seed": seed, "method": name, "settings": settings}
                kept = any(key.items() <= row.items() for row in rows)
                if kept and not (strip and name in (TELEA, OTHERS)):
                    continue
                results[name], *_, spent = method()
                if not kept:
                    about = {"move": move_of(seed), "unknown": holes.float().mean().item()}
                    case = scores.world_case(sample, measurement, results[name])
                    figures = scores.measure(case, accepted=accepted) | scores.set_features(case, accepted=accepted)
                    rows.append(key | about | figures | spent)
                    store.append(output, rows[-1])
            if strip:
                shown = [sample.source.frames, show_holes(measurement), results[TELEA], results[OTHERS], truth]
                strips.append(np.concatenate([to_uint8(video[-1:])[0] for video in shown], axis=1))
            done += 1
            progress(f"scene {done}/{count} (seed {seed}) done")
        seed += 1
    if figure is not None:
        import imageio.v3 as iio

        iio.imwrite(figure, np.concatenate(strips))
    chosen = {TELEA, "smooth filling (what is encoded)", "VAE of the truth (ceiling)", *asked}
    return table([row for row in rows if row["method"] in chosen and first_seed <= row["seed"] < seed])


def table(rows: list[dict[str, Any]]) -> str:
    """Means over scenes, one line a method, with differences taken scene by scene: in the holes from Telea and from the
    default, on what is observed from the default. Times are ratios to unguided sampling: of the sampling alone, and of
    all from the measurement to the video. Then means of whatever else the rows hold.

    ± is half a 95 % confidence interval (Student's t). Scenes differ far more than methods do, so the differences are
    what compares.
    """
    lines = [
        "| method | scenes | holes, dB | over Telea, dB | over default, dB | observed, dB | over default, dB "
        "| whole frame, dB | sampling, ratio | all, ratio |",
        "|" + "---|" * 10,
    ]
    names = dict.fromkeys(row["method"] for row in rows)
    by_seed = {name: {row["seed"]: row for row in rows if row["method"] == name} for name in names}

    def paired(name: str, other: str, key: str, compare: Callable[[float, float], float], form: str) -> str:
        both = [(row[key], by_seed[other][seed][key]) for seed, row in by_seed[name].items() if seed in by_seed[other]]
        values = [compare(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
        if not values or name == other:
            return ""
        return store.with_error(*store.interval(values), form)

    less, ratio = (lambda a, b: a - b), (lambda a, b: a / b)
    for name in names:
        chosen = list(by_seed[name].values())
        holes, observed, whole = (
            store.mean(row[f"psnr_{part}"] for row in chosen) for part in ("holes", "observed", "whole")
        )
        cells = [name, str(len(chosen)), f"{holes:.2f}", paired(name, TELEA, "psnr_holes", less, "+.2f")]
        if "sampling" in chosen[0]:
            cells += [paired(name, DEFAULT, "psnr_holes", less, "+.2f"), _decibels(observed)]
            cells += [paired(name, DEFAULT, "psnr_observed", less, "+.2f"), f"{whole:.2f}"]
            cells += [paired(name, UNGUIDED, key, ratio, ".3f") or "1" for key in ("sampling", "seconds")]
        else:
            cells += ["", "" if "ceiling" in name else _decibels(observed), "", f"{whole:.2f}", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    others = [name for name in store.columns_of(rows) if name in scores.METRICS and not name.startswith("psnr")]
    if others:
        titles = {name: scores.METRICS[name].label for name in others}
        lines += [
            "",
            store.summary(rows, ["method"], others, titles, unit="seed", sets={scores.FVD: scores.fvd}).replace(
                "| seeds |", "| scenes |", 1
            ),
        ]
    unknown = store.mean({row["seed"]: row["unknown"] for row in rows}.values())
    lines.append(f"\n{len({row['seed'] for row in rows})} unseen scenes, {unknown:.1%} of the pixels unknown.")
    return "\n".join(lines)


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.2f}"
