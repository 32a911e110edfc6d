"""What grain does to paint at a clip's own resolution: its texture beside that of the truth, and what it costs.

    python -m pipeline.evaluation.grain [--scenes 16]

Unseen scenes of the procedural world, three times as large as the model works, with true depth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pipeline.camera.geometry import CameraPath, scale_intrinsics
from pipeline.depth.estimate import resize_depth
from pipeline.evaluation.metrics import flicker, texture_distance
from pipeline.evaluation.nano import SIZE, mean_with_error
from pipeline.evaluation.scenes import BASE, measure_sample, move_of, recapture_sample
from pipeline.finish.composite import composite
from pipeline.finish.grain import match_grain
from pipeline.known.gather import depth_of_all
from pipeline.media.quality import psnr
from pipeline.media.video import resize
from pipeline.prior.backbone import Backbone
from pipeline.render.loaded import get_backbone
from pipeline.render.request import seam_of
from pipeline.world.raycast import View
from pipeline.world.scenes import render_sample

TIMES = 3  # as large as the model works
LEAST = 0.02  # share of the picture that is unknown


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args(arguments)
    say = lambda words: print(words, file=sys.stderr, flush=True)
    print(evaluate(get_backbone(args.backbone), args.first_seed, args.scenes, say))


if __name__ == "__main__":
    main()
