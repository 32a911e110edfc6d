"""What grain does to paint at a clip's own resolution: its texture beside that of the truth, and what it costs.

    python -m pipeline.evaluation.grain [--scenes 16]
    python -m pipeline.evaluation.grain --clips FOLDER

Unseen scenes of the procedural world, three times as large as the model works, with true depth; or real clips, in whose
background the holes of a new camera are softened as a model's paint is, so that the truth is known.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.camera.geometry import CameraPath, default_intrinsics, scale_intrinsics, static_path
from pipeline.depth.estimate import resize_depth
from pipeline.evaluation.metrics import flicker, texture_distance
from pipeline.evaluation.nano import SIZE, mean_with_error
from pipeline.evaluation.real import clips_of
from pipeline.evaluation.scenes import BASE, measure_sample, move_of, recapture_sample
from pipeline.finish.composite import composite
from pipeline.finish.grain import match_grain
from pipeline.known.gather import depth_of_all
from pipeline.media.quality import psnr
from pipeline.media.video import resize, size_of
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import analyse
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest, seam_of
from pipeline.render.view import warped
from pipeline.world.raycast import View
from pipeline.world.scenes import render_sample

TIMES = 3  # as large as the model works
LEAST = 0.02  # share of the picture that is unknown
BEHIND = 1.3  # of a real clip: what is farther than the subject by that factor is background
FAINT = 1e-3  # standard deviation of grey that nobody sees


def smaller(view: View, size: tuple[int, int]) -> View:
    """A view at the size at which the model works; its objects are not needed and stay as they are."""
    own = (view.z.shape[-2], view.z.shape[-1])
    path = CameraPath(view.path.world_from_cam, scale_intrinsics(view.path.K, own, size))
    return replace(view, frames=resize(view.frames, size), z=resize_depth(view.z, size), path=path)


def evaluate(backbone: Backbone, first_seed: int, count: int, say: Callable[[str], None]) -> str:
    """The table: means over scenes ± their standard error, differences and ratios scene by scene."""
    size = (TIMES * SIZE[0], TIMES * SIZE[1])
    without, grained, seconds = [], [], []
    seed = first_seed
    while len(without) < count:
        sample = render_sample(seed, size=size, move=move_of(seed), supersample=1)
        seed += 1
        measurement, truth, view = measure_sample(sample), sample.target.frames, sample.target
        painted = ~measurement.mask
        if painted.float().mean() < LEAST:
            continue
        small = replace(sample, source=smaller(sample.source, SIZE), target=smaller(view, SIZE))
        raw, _, _ = recapture_sample(backbone, small, measure_sample(small), BASE)
        plain = composite(raw, measurement, seam_pixels=seam_of(BASE, size))
        started = time.perf_counter()
        z = depth_of_all(small.source.z, small.source.path, small.target.path)
        softness = TIMES * backbone.settings.softness
        grain = match_grain(plain.clone(), painted, z, small.target.path, softness)
        seconds.append(time.perf_counter() - started)
        for video, rows in ((plain, without), (grain, grained)):
            shown = torch.where(painted, video, truth)  # what is known is not to be judged
            unsteady = flicker(shown, truth, view.z, view.path, painted[:, 0] & view.standing)
            rows.append([*texture_distance(shown, truth, painted), psnr(shown, truth, painted), unsteady or math.nan])
        say(f"scene {len(without)} of {count}")
    a, b = np.array(without), np.array(grained)
    lines = ["| in the holes, against the true view | smooth | with grain | change |", "|---|---|---|---|"]
    for level, name in enumerate(("finest", "middle", "coarse")):
        change = mean_with_error(list(100 * (b[:, level] / a[:, level] - 1)), "+.0f")
        name = f"texture distance, {name} level"
        lines.append(f"| {name} | {a[:, level].mean():.1f} | {b[:, level].mean():.1f} | {change} % |")
    change = mean_with_error(list(b[:, 3] - a[:, 3]), "+.2f")
    lines.append(f"| PSNR, dB | {a[:, 3].mean():.2f} | {b[:, 3].mean():.2f} | {change} |")
    medians = np.nanmedian(a[:, 4]), np.nanmedian(b[:, 4])
    lines.append(f"| flicker, times the true video's (median) | {medians[0]:.2f} | {medians[1]:.2f} | |")
    return "\n".join(lines) + f"\n\n{count} scenes at {size[0]}x{size[1]}; grain takes {np.mean(seconds):.1f} s."


def softened(
    frame: Float[Tensor, "1 3 H W"], painted: Bool[Tensor, "1 1 H W"], softness: float
) -> Float[Tensor, "1 3 H W"]:
    """The frame, blurred where it is painted, by what is painted alone."""
    share = painted[0, 0].numpy().astype(np.float32)
    smooth = lambda part: cv2.GaussianBlur(part * share, (0, 0), softness)
    soft = torch.from_numpy(np.stack([smooth(channel) for channel in frame[0].numpy()]))
    return torch.where(painted, soft / torch.from_numpy(smooth(np.ones_like(share))).clamp_min(1e-4), frame)


def louder(
    shown: Float[Tensor, "1 3 H W"], truth: Float[Tensor, "1 3 H W"], painted: Bool[Tensor, "1 1 H W"], softness: float
) -> float:
    """Share of what is painted whose detail is more than twice as strong as the true one, within 25 pixels."""
    share = painted[0, 0].numpy().astype(np.float32)

    def strength(video: Tensor) -> np.ndarray:
        grey = video[0].mean(0).numpy()
        detail = np.square(grey - cv2.GaussianBlur(grey, (0, 0), softness)) * share
        return np.sqrt(np.maximum(cv2.blur(detail, (25, 25)), 0) / np.maximum(cv2.blur(share, (25, 25)), 1e-3))

    return float((strength(shown) + FAINT > 2 * (strength(truth) + FAINT))[painted[0, 0].numpy()].mean())


def evaluate_real(backbone: Backbone, folder: str, count: int, say: Callable[[str], None]) -> str:
    """The table of so many clips of a folder, a frame each. Raises `InputError` where none has holes."""
    rows = []
    for source in clips_of(folder):
        request = RenderRequest.of(str(source.clip), frames=5, camera="orbit-right", amount=20)
        analysis = result_of(analyse(request))
        truth, last = analysis.full.frames[-1:], len(analysis.clip.frames) - 1
        size, working = size_of(truth), size_of(analysis.clip.frames)
        z = resize_depth(analysis.depth.z[-1:].float(), size)
        painted = (
            ~warped(analysis, request, size, slice(last, last + 1)).mask & (z > BEHIND * analysis.distance)[:, None]
        )
        if painted.float().mean() < LEAST:
            continue
        softness = backbone.settings.softness * math.sqrt(math.prod(size) / math.prod(working))
        smooth = softened(truth, painted, softness)
        path = static_path(default_intrinsics(*size, 1))
        grain = match_grain(smooth.clone(), painted, z, path, softness)
        rows.append(
            [[*texture_distance(a, truth, painted), louder(a, truth, painted, softness)] for a in (smooth, grain)]
        )
        say(f"clip {len(rows)} of {count}")
        if len(rows) == count:
            break
    if not rows:
        raise InputError("No clip of the folder loses enough of its background; give other clips.")
    a, b = np.moveaxis(np.array(rows), 1, 0)
    lines = ["| in holes of the background | smooth | with grain | change |", "|---|---|---|---|"]
    for level, name in enumerate(("finest", "middle", "coarse")):
        change = mean_with_error(list(100 * (b[:, level] / a[:, level] - 1)), "+.0f")
        lines.append(
            f"| texture distance, {name} level | {a[:, level].mean():.1f} | {b[:, level].mean():.1f} | {change} % |"
        )
    shares = f"{a[:, 3].mean():.1%} | {b[:, 3].mean():.1%}"
    return (
        "\n".join([*lines, f"| louder than twice the truth | {shares} | |"]) + f"\n\n{len(rows)} clips, a frame each."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clips", metavar="FOLDER", help="real clips instead, as many as --scenes")
    args = parser.parse_args(arguments)
    say = lambda words: print(words, file=sys.stderr, flush=True)
    backbone = get_backbone(args.backbone)
    if args.clips:
        print(evaluate_real(backbone, args.clips, args.scenes, say))
    else:
        print(evaluate(backbone, args.first_seed, args.scenes, say))


if __name__ == "__main__":
    main()
