"""One table of what can be measured of a result, and the measuring: each figure where it applies and its weights are at
hand, and plainly absent where not.

    case = Case(result, source, measurement, prompt="a red ball", z=depth.z, source_path=source, target_path=target)
    measure(case)     # {"psnr_observed": 31.2, ...}
    absent()          # {"lpips_observed": "python -m pipeline models --download vgg16", ...}
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isnan
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import CameraPath
from pipeline.evaluation import perceptual
from pipeline.evaluation.metrics import CameraError, camera_error, flicker, motion_smoothness
from pipeline.known.measurement import Measurement
from pipeline.media.quality import psnr, ssim
from pipeline.models import hub, table
from pipeline.world.scenes import Sample


@dataclass(frozen=True, eq=False)
class Case:
    """A result and what is known about it. All videos T 3 H W in [0, 1], of one size and number of frames.

    result: before compositing. source: the recording. measurement: the source seen along the target path; its mask is
    True where observed. truth: a true recording along the target path. prompt: empty if there was none. z: the
    source's depth along the optical axis, in the unit of the two paths, whose K are in pixels of the videos. truth_z
    and standing: the true depth of the target view, and what in it stands still for certain, where they are known.
    """

    result: Float[Tensor, "T 3 H W"]
    source: Float[Tensor, "T 3 H W"]
    measurement: Measurement
    truth: Float[Tensor, "T 3 H W"] | None = None
    prompt: str = ""
    z: Float[Tensor, "T H W"] | None = None
    source_path: CameraPath | None = None
    target_path: CameraPath | None = None
    truth_z: Float[Tensor, "T H W"] | None = None
    standing: Bool[Tensor, "T H W"] | None = None

    @cached_property
    def camera(self) -> CameraError:
        assert self.z is not None and self.source_path is not None and self.target_path is not None
        return camera_error(self.result, self.source, self.z, self.source_path, self.target_path)


def world_case(sample: Sample, measurement: Measurement, result: Float[Tensor, "T 3 H W"]) -> Case:
    """A result on a scene of the procedural world, where everything is known."""
    source, target = sample.source, sample.target
    return Case(
        result=result,
        source=source.frames,
        measurement=measurement,
        truth=target.frames,
        prompt=sample.caption,
        z=source.z,
        source_path=source.path,
        target_path=target.path,
        truth_z=target.z,
        standing=target.standing,
    )


Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """label: with its unit. better: which way. needs: the fields of a `Case` without which it does not apply. weights:
    the name in `table.MODELS` of what it is measured with. figure: None or NaN where it does not apply after all."""

    label: str
    better: Better
    figure: Callable[[Case, perceptual.Device], float | None]
    needs: tuple[str, ...] = ()
    weights: str | None = None


# --- the table --------------------------------------------------------------------------------------------------------

Compare = Callable[[Tensor, Tensor, Tensor | None, perceptual.Device], float]  # two videos, a mask


def _observed(compare: Compare, case: Case, device: perceptual.Device) -> float | None:
    """Of the result with the measurement where there is one; in the holes both are the result."""
    mask = case.measurement.mask
    known = torch.where(mask, case.measurement.video, case.result)
    return compare(case.result, known, mask, device) if mask.any() else None


def _holes(compare: Compare, case: Case, device: perceptual.Device) -> float | None:
    assert case.truth is not None
    holes = ~case.measurement.mask
    return compare(case.result, case.truth, holes, device) if holes.any() else None


def _whole(compare: Compare, case: Case, device: perceptual.Device) -> float | None:
    assert case.truth is not None
    return compare(case.result, case.truth, None, device)


def _close(label: str, better: Better, compare: Compare, weights: str | None = None) -> list[Metric]:
    """A closeness on what is observed, in the holes and over all."""
    return [
        Metric(f"{label}, observed, to the warp", better, partial(_observed, compare), (), weights),
        Metric(f"{label}, holes, to the truth", better, partial(_holes, compare), ("truth",), weights),
        Metric(f"{label}, whole frame, to the truth", better, partial(_whole, compare), ("truth",), weights),
    ]


def _flicker(case: Case, _: perceptual.Device) -> float | None:
    assert case.truth is not None and case.truth_z is not None and case.standing is not None and case.target_path
    counted = case.standing & ~case.measurement.mask[:, 0]
    return flicker(case.result, case.truth, case.truth_z, case.target_path, counted)


def _dino(other: Literal["source", "truth"], case: Case, device: perceptual.Device) -> float:
    return perceptual.dino_distance(case.result, getattr(case, other), device=device)


def _subject(case: Case, device: perceptual.Device) -> float:
    return perceptual.consistency(perceptual.dino_features(case.result, "dino-vitb16", device=device))


def _background(case: Case, device: perceptual.Device) -> float:
    return perceptual.consistency(perceptual.clip_features(case.result, device=device))


def _text(model: str, case: Case, device: perceptual.Device) -> float:
    return perceptual.clip_score(case.result, case.prompt, model, device=device)


def _asked(question: str, case: Case, device: perceptual.Device) -> float:
    return perceptual.yes_share(case.result, question.format(prompt=case.prompt), device=device)


_PSNR = _close("PSNR, dB", "higher", lambda a, b, mask, _: psnr(a, b, mask))
_SSIM = _close("SSIM", "higher", lambda a, b, mask, _: ssim(a, b, mask))
_LPIPS = _close("LPIPS (VGG)", "lower", lambda a, b, mask, on: perceptual.lpips(a, b, mask, device=on), "vgg16")
_CAMERA = ("z", "source_path", "target_path")
_WORLD = ("truth", "truth_z", "standing", "target_path")
METRICS: dict[str, Metric] = {
    "psnr_observed": _PSNR[0],
    "psnr_holes": _PSNR[1],
    "psnr_whole": _PSNR[2],
    "ssim_observed": _SSIM[0],
    "ssim_holes": _SSIM[1],
    "ssim_whole": _SSIM[2],
    "lpips_observed": _LPIPS[0],
    "lpips_holes": _LPIPS[1],
    "lpips_whole": _LPIPS[2],
    "flicker": Metric("flicker in the holes, times the truth's", "lower", _flicker, _WORLD),
    "motion_smoothness": Metric(
        "motion smoothness (by flow)", "higher", lambda case, _: motion_smoothness(case.result)
    ),
    "rotation_error": Metric("camera rotation error, °", "lower", lambda case, _: case.camera.rotation, _CAMERA),
    "translation_error": Metric(
        "camera translation error, % of the subject's distance",
        "lower",
        lambda case, _: 100 * case.camera.translation,
        _CAMERA,
    ),
    "cameras_found": Metric(
        "frames whose camera was found, %",
        "higher",
        lambda case, _: 100 * case.camera.found / case.camera.frames,
        _CAMERA,
    ),
    "dino_source": Metric("DINO distance to the source", "lower", partial(_dino, "source"), (), "dinov2-small"),
    "dino_truth": Metric("DINO distance to the truth", "lower", partial(_dino, "truth"), ("truth",), "dinov2-small"),
    "subject_consistency": Metric("subject consistency", "higher", _subject, (), "dino-vitb16"),
    "background_consistency": Metric("background consistency", "higher", _background, (), "clip-vit-b32"),
    "clip_score": Metric("CLIP score", "higher", partial(_text, "clip-vit-b32"), ("prompt",), "clip-vit-b32"),
    "pickscore": Metric("PickScore", "higher", partial(_text, "pickscore"), ("prompt",), "pickscore"),
    "vlm_prompt": Metric(
        "shows what the prompt says (Qwen2.5-VL), 0 to 1",
        "higher",
        partial(_asked, perceptual.FOLLOWED),
        ("prompt",),
        "qwen2.5-vl-3b",
    ),
    "vlm_real": Metric(
        "looks like a recording (Qwen2.5-VL), 0 to 1", "higher", partial(_asked, perceptual.REAL), (), "qwen2.5-vl-3b"
    ),
}
FVD = "FVD (VideoMAE)"  # lower is better; of sets of videos, see `set_features`
FVD_WEIGHTS = "videomae-base"


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    case: Case,
    names: Iterable[str] | None = None,
    *,
    accepted: Collection[str] = (),
    device: perceptual.Device = None,
) -> dict[str, float]:
    """The figures of `METRICS` (or those called `names`) that apply: nothing that lacks a truth, a prompt, a depth or
    its weights, and nothing undefined. Two equal videos have a PSNR of inf.

    accepted: names of models whose terms the user has accepted. device: for what has weights; None for CUDA if there is
    any. Loaded models are kept until `perceptual.release()`. Raises `InputError` for a name that is not in the table.
    """
    names = list(METRICS if names is None else names)
    if unknown := [name for name in names if name not in METRICS]:
        raise InputError(f"Unknown metric {', '.join(unknown)}: give some of {', '.join(METRICS)}.")
    figures: dict[str, float] = {}
    for name in names:
        metric = METRICS[name]
        known = all(getattr(case, field) is not None and getattr(case, field) != "" for field in metric.needs)
        if known and _usable(metric.weights, accepted):
            value = metric.figure(case, device)
            if value is not None and not isnan(value):
                figures[name] = value
    return figures


def set_features(
    case: Case, *, accepted: Collection[str] = (), device: perceptual.Device = None
) -> dict[str, list[float]]:
    """What a case adds to the sets that `fvd` compares: features of the result, and of the truth or else the source.
    Empty where the weights are not at hand or their terms not accepted."""
    if not _usable(FVD_WEIGHTS, accepted):
        return {}
    other = case.source if case.truth is None else case.truth
    videos = {"features": case.result, "features_other": other}
    return {key: perceptual.video_features(video, device=device).tolist() for key, video in videos.items()}


def fvd(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the rows' results to their truths (or sources), which `set_features` describes; None for fewer than two."""
    chosen = [row for row in rows if "features" in row]
    if len(chosen) < 2:
        return None
    results, others = (np.array([row[key] for row in chosen]) for key in ("features", "features_other"))
    return perceptual.frechet(results, others)


def absent(accepted: Collection[str] = ()) -> dict[str, str]:
    """What cannot be measured here for want of weights, "fvd" included: the command that gets them, by metric."""
    wanted = {name: metric.weights for name, metric in METRICS.items()} | {"fvd": FVD_WEIGHTS}
    return {
        name: hub.command_for(table.MODELS[weights])
        for name, weights in wanted.items()
        if weights is not None and not _usable(weights, accepted)
    }


def _usable(weights: str | None, accepted: Collection[str]) -> bool:
    if weights is None:
        return True
    return hub.at_hand(weights) is not None and (not table.MODELS[weights].terms or weights in accepted)
