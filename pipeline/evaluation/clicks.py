"""How well an object is found by clicks on it: `python -m pipeline.evaluation.clicks`.

The first click is on the object's innermost pixel, each next one in the middle of the largest piece that is missing or
too much. The figure is the mean intersection over union (IoU) with the true mask after 1, 3 and 5 clicks. Beside our
network stands GrabCut (Rother, Kolmogorov and Blake 2004), which is given the same clicks as dots.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.masks.click import first_click, next_click, select
from pipeline.masks.files import load_mask
from pipeline.masks.shape import Click
from pipeline.media.video import read_video
from pipeline.world.scenes import render_sample

COUNTS = (1, 3, 5)
LEAST = 0.005  # of the frame that an object covers
DOT = 0.01  # radius of a dot, of the frame's longer side

Method = Callable[[Float[Tensor, "3 H W"], Sequence[Click]], Bool[Tensor, "H W"]]


def grabcut(frame: Float[Tensor, "3 H W"], clicks: Sequence[Click]) -> Bool[Tensor, "H W"]:
    """The object from dots on it and beside it. What is far from the dots is surroundings for certain; it begins with
    what looks like the dots."""
    from scipy import ndimage
    from scipy.spatial import KDTree

    bgr = np.ascontiguousarray((frame.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))
    height, width = bgr.shape[:2]
    dots = np.zeros((2, height, width), np.uint8)
    for click in clicks:
        cv2.circle(dots[int(click.positive)], (click.column, click.row), max(2, round(DOT * max(height, width))), 1, -1)
    on, beside = dots[1] > 0, dots[0] > 0
    rows, columns = np.nonzero(on)
    extent = max(np.ptp(rows), np.ptp(columns), max(height, width) / 4)
    near = cv2.distanceTransform(1 - dots[1], cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < extent
    labels = np.where(on, cv2.GC_FGD, np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD)).astype(np.uint8)
    lab = cv2.cvtColor(cv2.GaussianBlur(bgr, (0, 0), 1.0), cv2.COLOR_BGR2Lab).astype(np.float32)
    alike = KDTree(lab[on][:: max(1, on.sum() // 500)]).query(lab.reshape(-1, 3))[0].reshape(on.shape) < 18
    labels[near & ~on & alike] = cv2.GC_PR_FGD
    labels[beside & ~on] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(bgr, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)  # type: ignore
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    parts = cv2.connectedComponents(found.astype(np.uint8))[1]
    found = ndimage.binary_fill_holes(np.isin(parts, np.unique(parts[on])) & found)
    return torch.from_numpy(found & ~(beside & ~on))


METHODS: dict[str, Method] = {"GrabCut": grabcut, "click network": select}
Case = tuple[str, Tensor, Tensor]  # name, frame 3 H W, true mask H W


def clicked(method: Method, frame: Float[Tensor, "3 H W"], truth: Bool[Tensor, "H W"]) -> list[float]:
    """The IoU after each of COUNTS clicks."""
    clicks, scores = [first_click(truth.numpy())], []
    for count in range(1, max(COUNTS) + 1):
        found = method(frame, clicks)
        if count in COUNTS:
            scores.append(float((found & truth).sum() / (found | truth).sum().clamp(min=1)))
        clicks.append(next_click(found.numpy(), truth.numpy()) or clicks[0])
    return scores


def evaluate(cases: Sequence[Case], methods: dict[str, Method] = METHODS) -> str:
    """A Markdown table, a line a method: mean IoU, and processor seconds for each click."""
    heads = [f"{count} click{'s' if count > 1 else ''}" for count in COUNTS]
    lines = [f"| method | {' | '.join(heads)} | s |", "|---" * (len(heads) + 2) + "|"]
    for name, method in methods.items():
        started = time.process_time()
        scores = np.array([clicked(method, frame, truth) for _, frame, truth in cases])
        seconds = (time.process_time() - started) / (len(cases) * max(COUNTS))
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in scores.mean(0))} | {seconds:.2f} |")
    return "\n".join(lines)


def video_cases(video: str, masks: str, every: int) -> list[Case]:
    """Every so many frames of a clip in which the object of a mask file is to be seen."""
    frames = read_video(video).frames
    truth = load_mask(masks, len(frames), (frames.shape[2], frames.shape[3]))
    shown = [t for t in sorted(truth) if truth[t].float().mean() >= LEAST][::every]
    return [(f"frame {t}", frames[t], truth[t]) for t in shown]


def cutout_cases(folder: Path) -> list[Case]:
    """The largest thing in each of the pictures of the split val of a folder of `pipeline.training.cutouts`."""
    cases = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as data:
            if str(data["split"]) != "val":
                continue
            image, soft = data["image"], data["mask"].astype(np.float32) / 255
        between = ((soft > 0.15) & (soft < 0.85)).sum() / max(1, (soft > 0.5).sum())
        count, labels, areas, _ = cv2.connectedComponentsWithStats((soft > 0.5).astype(np.uint8))
        if count > 1 and between < 0.2:
            truth = labels == 1 + areas[1:, cv2.CC_STAT_AREA].argmax()
            if LEAST <= truth.mean() <= 0.8:
                frame = torch.from_numpy(image).permute(2, 0, 1).float() / 255
                cases.append((file.stem, frame, torch.from_numpy(truth)))
    return cases


def world_cases(first_seed: int, count: int) -> list[Case]:
    """Each object of the first frames of scenes of the world that is large enough."""
    cases = []
    for seed in range(first_seed, first_seed + count):
        view = render_sample(seed, frames=1, size=(192, 320)).source
        for n, truth in enumerate(view.objects[0]):
            if truth.float().mean() >= LEAST:
                cases.append((f"seed {seed}, object {n}", view.frames[0], truth))
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation.clicks", description=__doc__)
    parser.add_argument("--video", help="a clip, with --masks")
    parser.add_argument("--masks", help="the object's true masks in its frames")
    parser.add_argument("--every", type=int, default=4, help="of the clip's frames one in so many is used")
    parser.add_argument("--cutouts", type=Path, help="a folder of pipeline.training.cutouts, of which val is used")
    parser.add_argument("--world", type=int, default=0, metavar="N", help="scenes of the procedural world")
    parser.add_argument("--first-seed", type=int, default=1, help="of the world's scenes")
    options = parser.parse_args(arguments)
    if bool(options.video) != bool(options.masks) or not (options.video or options.world or options.cutouts):
        parser.error("give --video with --masks, --cutouts, --world N, or several of these")
    groups: dict[str, list[Case]] = {}
    try:
        if options.video:
            groups[Path(options.video).name] = video_cases(options.video, options.masks, options.every)
        if options.cutouts:
            groups["cut-outs held out"] = cutout_cases(options.cutouts)
        if options.world:
            groups["world"] = world_cases(options.first_seed, options.world)
        for name, cases in groups.items():
            if not cases:
                raise InputError(f"{name}: there is no object that covers {LEAST:.1%} of a frame.")
            print(f"{name}: {len(cases)} pictures\n\n{evaluate(cases)}\n", flush=True)
    except InputError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
