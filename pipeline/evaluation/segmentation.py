"""How well an object is followed from its true mask in the first frame: `python -m pipeline.evaluation.segmentation`.

The figure is the mean intersection over union (IoU) of all later frames. Frames in which the object is in truth not to
be seen count 1 if nothing was found, else 0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.masks.files import load_mask
from pipeline.masks.flow import propagate
from pipeline.media.video import read_video
from pipeline.world.scenes import render_sample

LEAST = 0.005  # of the first frame that an object of the world has to cover

Method = Callable[[Float[Tensor, "T 3 H W"], Bool[Tensor, "H W"]], Bool[Tensor, "T H W"]]


def static(frames: Float[Tensor, "T 3 H W"], first: Bool[Tensor, "H W"]) -> Bool[Tensor, "T H W"]:
    """The first mask (True = the object) in every frame."""
    return first.expand(len(frames), -1, -1)


def plain_flow(frames: Float[Tensor, "T 3 H W"], first: Bool[Tensor, "H W"]) -> Bool[Tensor, "T H W"]:
    """The mask carried from frame to frame by dense optical flow (DIS), unchecked. True = the object."""
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    bytes_ = (frames.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    greys = [cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in bytes_]
    y, x = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)
    p = first.float().numpy()
    masks = [first]
    for before, now in pairwise(greys):
        flow = dis.calc(now, before, None)
        p = cv2.remap(p, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
        masks.append(torch.from_numpy(p > 0.5))
    return torch.stack(masks)


def ours(frames: Float[Tensor, "T 3 H W"], first: Bool[Tensor, "H W"]) -> Bool[Tensor, "T H W"]:
    """`propagate` from the first frame."""
    return result_of(propagate(frames, {0: first}))


METHODS: dict[str, Method] = {"static mask": static, "plain flow (DIS)": plain_flow, "propagate": ours}


def mean_iou(found: Bool[Tensor, "T H W"], truth: Bool[Tensor, "T H W"]) -> float:
    """Over the frames after the first."""
    both, either = (found & truth).flatten(1).sum(1), (found | truth).flatten(1).sum(1)
    return float(torch.where(either > 0, both / either.clamp_min(1), 1.0)[1:].mean())


def evaluate(cases: list[tuple[str, Tensor, Tensor]], methods: dict[str, Method] = METHODS) -> str:
    """A Markdown table of (name, frames T 3 H W, true masks T H W): a line a method, the mean and the worst case."""
    lines = ["| method | mean IoU | worst | s per frame |", "|---|---|---|---|"]
    for name, method in methods.items():
        scores, frames, started = [], 0, time.perf_counter()
        for _, clip, truth in cases:
            scores.append(mean_iou(method(clip, truth[0]), truth))
            frames += len(clip) - 1
        seconds = (time.perf_counter() - started) / max(frames, 1)
        worst = int(np.argmin(scores))
        lines.append(f"| {name} | {np.mean(scores):.3f} | {scores[worst]:.2f} ({cases[worst][0]}) | {seconds:.3f} |")
    return "\n".join(lines)


def world_cases(first_seed: int, count: int) -> list[tuple[str, Tensor, Tensor]]:
    """Objects of the world that cover at least LEAST of the first frame: one case each, over 17 frames."""
    cases = []
    for seed in range(first_seed, first_seed + count):
        view = render_sample(seed).source
        for n in range(view.objects.shape[1]):
            truth = view.objects[:, n]
            if truth[0].float().mean() >= LEAST:
                cases.append((f"seed {seed}, object {n}", view.frames, truth))
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation.segmentation", description=__doc__)
    parser.add_argument("--video", help="a clip, with --masks")
    parser.add_argument("--masks", help="its true masks in every frame, .npz with True = the object")
    parser.add_argument("--start", type=int, default=0, help="first frame, whose true mask is given")
    parser.add_argument("--frames", type=int, default=31, help="frames of the clip that are used")
    parser.add_argument("--world", type=int, default=0, metavar="N", help="scenes of the procedural world")
    parser.add_argument("--first-seed", type=int, default=1, help="of the world's scenes")
    options = parser.parse_args(arguments)
    if bool(options.video) != bool(options.masks) or not (options.video or options.world):
        parser.error("give --video with --masks, or --world N, or all three")
    try:
        if options.video:
            frames = read_video(options.video, start=options.start, frames=options.frames).frames
            size = (frames.shape[2], frames.shape[3])
            masks = load_mask(options.masks, len(frames), size, start=options.start)
            truth = torch.stack([masks[t] for t in range(len(frames))])
            name = Path(options.video).name
            print(f"{name}, frames {options.start + 1} to {options.start + len(frames) - 1}\n")
            print(evaluate([(name, frames, truth)]), flush=True)
        if options.world:
            cases = world_cases(options.first_seed, options.world)
            seeds = f"seeds {options.first_seed} to {options.first_seed + options.world - 1}"
            print(
                f"\nWorld, {seeds}: {len(cases)} objects of at least {LEAST:.1%} of the first frame, 16 frames each\n"
            )
            print(evaluate(cases))
    except InputError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
