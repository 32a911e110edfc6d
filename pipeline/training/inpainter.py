"""Train the inpainter on real pictures: what a new camera hides of them, filled, against the pictures themselves.

    python -m pipeline.training.inpainter --pairs PAIRS --clips CLIPS --out assets/nano/inpainter --minutes 75

PAIRS is a folder as `pipeline.training.pairs` reads it, whose depth says what a moved camera would not see. CLIPS is
one as `pipeline.training.clips` reads it, for pictures with holes of random shapes. The network begins with the
checkpoint OUT.checkpoint.pt, if there is one.

The loss is the error in the holes, its square and that of its slopes, so that the result is the mean of what could be
there: it is closest to the truth, and softer than film.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.known.fill import fill_unknown, telea
from pipeline.known.measurement import Measurement
from pipeline.media.quality import psnr
from pipeline.prior.inpainter import Inpainter
from pipeline.training import average, save_state
from pipeline.training.clips import read_clips, read_frames
from pipeline.training.pairs import Pair, read_index, read_pair

SIZES = ((96, 160), (112, 144), (128, 208), (144, 112))
EVERY = 4  # of a clip's frames one is kept: neighbours teach the same
REAL = 0.6  # share of the pictures whose holes come from their depth
FEWEST, MOST = 0.004, 0.5  # share of a picture that holes may be
SQUARE, SLOPES = 2.0, 0.3  # weights in the loss


@dataclass(frozen=True, eq=False)
class Example:
    """picture: in [0, 1]. filled: its holes filled smoothly. mask: True = known. B pictures, or one without B."""

    picture: Float[Tensor, "*B 3 h w"]
    filled: Float[Tensor, "*B 3 h w"]
    mask: Bool[Tensor, "*B 1 h w"]


# --- holes ------------------------------------------------------------------------------------------------------------


def unseen(disparity: Float[Tensor, "h w"], shift: tuple[float, float]) -> Bool[Tensor, "h w"]:
    """What a camera aside does not see of a picture: hidden behind something nearer, or out of sight.

    shift: pixels to the right and down by which disparity 1 moves; the median stays in its place.
    """
    h, w = disparity.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    moved = disparity - disparity.median()
    x, y = x + moved * shift[0], y + moved * shift[1]
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    place = (y.round().clamp(0, h - 1).long() * w + x.round().clamp(0, w - 1).long()).view(-1)
    nearest = torch.full((h * w,), -1.0)
    nearest.scatter_reduce_(0, place, torch.where(inside, disparity, -1.0).view(-1), "amax")
    hidden = disparity < nearest[place].view(h, w) - max(0.03, 1.2 / max(*map(abs, shift), 1))
    holes = (~inside | hidden).float()[None]
    holes = F.max_pool2d(-F.max_pool2d(-holes, 2, 1), 2, 1)  # without single pixels
    holes = F.pad(holes, (1, 1, 1, 1), mode="replicate")[..., :h, :w]
    return F.max_pool2d(holes, 3, 1, 1)[0] > 0


def random_holes(h: int, w: int, rng: random.Random) -> Bool[Tensor, "h w"]:
    """A slanted band along a side, ellipses, and strips along curves, as a moved camera opens them."""
    holes, kind = np.zeros((h, w), np.uint8), rng.random()
    if kind < 0.45:
        a, b = (rng.uniform(0.03, 0.3) for _ in range(2))
        corners = [(0, 0), (w * a, 0), (w * b, h), (0, h)] if rng.random() < 0.5 else [(0, 0), (w, 0), (w, h * a)]
        corners = corners if len(corners) == 4 else [*corners, (0, h * b)]
        mirrored = rng.random() < 0.5
        corners = [(w - x, h - y) if mirrored else (x, y) for x, y in corners]
        cv2.fillPoly(holes, [np.array(corners, np.int32)], 1)
    for _ in range(rng.randint(1, 4) if kind > 0.3 else 0):
        if rng.random() < 0.5:
            centre, axes = (rng.randrange(w), rng.randrange(h)), (rng.randint(3, w // 6), rng.randint(3, h // 4))
            cv2.ellipse(holes, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
        else:
            top, length = rng.uniform(0, h * 0.6), rng.uniform(0.2, 0.9) * h
            x = np.cumsum([rng.uniform(0, w), *(rng.gauss(0, w / 20) for _ in range(4))])
            line = np.stack([x, np.linspace(top, top + length, 5)], 1).astype(np.int32)
            cv2.polylines(holes, [line], False, 1, rng.randint(2, max(3, w // 12)))
    return torch.from_numpy(holes) > 0


# --- what is learned from ---------------------------------------------------------------------------------------------


class Pictures:
    """Random examples of a split of real pictures, read ahead by threads."""

    def __init__(self, pairs: Path, clips: Path, split: str, seed: int, workers: int = 1):
        self.folder, self.pairs = pairs, read_index(pairs, split)
        self.clips = read_clips(clips, split)
        self.rng, self.pool = random.Random(seed), ThreadPoolExecutor(workers)
        self.kept: dict[object, list[np.ndarray] | tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Future[Example]]:
        """Start on a batch of one of `sizes`."""
        size = self.rng.choice(sizes)
        return [self.pool.submit(self.one, self.rng.randrange(2**31), size) for _ in range(count)]

    @staticmethod
    def collect(jobs: list[Future[Example]]) -> Example:
        """The batch that `draw` has started on."""
        examples = [job.result() for job in jobs]
        return Example(*(torch.stack([getattr(e, name) for e in examples]) for name in ("picture", "filled", "mask")))

    def one(self, seed: int, size: tuple[int, int]) -> Example:
        """An example: the same for the same seed."""
        rng = random.Random(seed)
        tries = (self._with_holes(rng, size) for _ in range(8))
        usable = (found for found in tries if FEWEST < found[2].float().mean() < MOST)
        picture, z, holes = next(usable, None) or self._with_holes(rng, size)
        mask = ~holes[None, None]
        told = None if z is None or rng.random() < 0.25 else torch.where(mask[:, 0], z, torch.nan)
        filled = fill_unknown(Measurement(picture[None] * mask, mask, told))[0]
        if rng.random() < 0.3:
            bend = math.exp(rng.uniform(-0.3, 0.3))
            picture, filled = picture.pow(bend), filled.clamp(0, 1).pow(bend)
        return Example(picture, filled, mask[0])

    def _with_holes(self, rng: random.Random, size: tuple[int, int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """A piece of a picture (3 h w), how far it is (h w, if that is known), and its holes."""
        if rng.random() >= REAL:
            picture = self._cut(rng.choice(self._frames(rng.choice(self.clips))), None, size, rng)[0]
            return picture, None, random_holes(*size, rng)
        frames, disparities = self._pair(rng.choice(self.pairs))
        t = rng.randrange(len(frames))
        picture, disparity = self._cut(frames[t], disparities[t].astype(np.float32), size, rng)
        disparity = (disparity / disparity.quantile(0.98).clamp(min=0.05)).clamp(0, 1.2)
        angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.28) * size[1]
        holes = unseen(disparity, (reach * math.cos(angle), 0.5 * reach * math.sin(angle)))
        if rng.random() < 0.15:
            holes |= random_holes(*size, rng)
        return picture, 1 / (disparity + 0.05), holes

    def _frames(self, path: Path) -> list[np.ndarray]:
        if path not in self.kept:
            self.kept[path] = read_frames(path, EVERY)
        return list(self.kept[path])

    def _pair(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        if pair.id not in self.kept:
            frames, disparity = read_pair(self.folder, pair)
            self.kept[pair.id] = frames[::EVERY], np.nan_to_num(disparity[::EVERY])
        frames, disparity = self.kept[pair.id]
        return frames, disparity

    @staticmethod
    def _cut(
        frame: np.ndarray, disparity: np.ndarray | None, size: tuple[int, int], rng: random.Random
    ) -> tuple[Tensor, Tensor]:
        """A random piece of a picture (uint8 H W 3) and of its disparity (H W; None: zero) at a size."""
        height, width = size
        share, aspect = rng.uniform(0.6, 1), math.exp(rng.uniform(-0.1, 0.1)) * width / height
        full = min(frame.shape[1], frame.shape[0] * aspect)
        w, h = max(1, int(share * full)), max(1, int(share * full / aspect))
        top, left = rng.randint(0, frame.shape[0] - h), rng.randint(0, frame.shape[1] - w)
        area, flip = np.s_[top : top + h, left : left + w], -1 if rng.random() < 0.5 else 1
        small = cv2.resize(np.ascontiguousarray(frame[area]), (width, height), interpolation=cv2.INTER_AREA)
        picture = torch.from_numpy(small[:, ::flip].copy()).permute(2, 0, 1).float() / 255
        if disparity is None:
            return picture, torch.zeros(size)
        near = cv2.resize(disparity[area], (width, height), interpolation=cv2.INTER_NEAREST)
        return picture, torch.from_numpy(near[:, ::flip].copy())


# --- training ---------------------------------------------------------------------------------------------------------


def hole_loss(result: Float[Tensor, "B 3 h w"], example: Example) -> Tensor:
    """Error in the holes, its square and its slopes, each picture alike however large its holes are."""
    holes, error = (~example.mask).float(), result - example.picture
    count = 3 * holes.sum((1, 2, 3)).clamp(min=20)
    total = lambda part, where: (part * where).sum((1, 2, 3)) / count
    slopes = total(error.diff(dim=-1).abs(), holes[..., 1:]) + total(error.diff(dim=-2).abs(), holes[..., 1:, :])
    return (total(error.abs(), holes) + SQUARE * total(error.square(), holes) + SLOPES * slopes).mean()


@dataclass(frozen=True)
class Figures:
    """PSNR in the holes of pictures that nothing was trained on, means over the pictures, in dB."""

    telea: float
    smooth: float
    inpainter: float


@torch.no_grad()
def validate(model: Inpainter, pictures: Pictures, count: int) -> Figures:
    """On the first `count` examples of a split."""
    rows = []
    for seed in range(count):
        one = pictures.one(seed, SIZES[2])
        mask = one.mask[None]
        found = model(one.filled[None], mask).clamp(0, 1)
        measured = Measurement(one.picture[None] * mask, mask)
        rows.append([psnr(x, one.picture[None], ~mask) for x in (telea(measured), one.filled[None], found)])
    return Figures(*(float(np.mean(column)) for column in zip(*rows, strict=True)))


def train(args: argparse.Namespace) -> Figures:
    torch.manual_seed(args.seed)
    model = Inpainter()
    mean = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.99), weight_decay=0.01)
    step, elapsed = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]
    learned = Pictures(args.pairs, args.clips, "train", args.seed + step)
    unknown = Pictures(args.pairs, args.clips, "val", args.seed)
    started, budget = time.time(), args.minutes * 60
    progress = lambda: min(1.0, (elapsed + time.time() - started) / budget)
    last_log, last_save, losses = time.time(), time.time(), []

    def save() -> Figures:
        figures = validate(mean.eval(), unknown, args.validate)
        print(f"step {step} {progress():.0%} {figures}", flush=True)
        copy.deepcopy(mean).half().save_pretrained(args.out)
        facts = {"step": step, "minutes": round(progress() * args.minutes, 1), "seed": args.seed}
        Path(f"{args.out}.figures.json").write_text(json.dumps(facts | asdict(figures), indent=2) + "\n")
        states = {"model": model.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        save_state(states | {"step": step, "elapsed": progress() * budget}, args.checkpoint)
        return figures

    ahead = [learned.draw(args.batch) for _ in range(2)]
    while progress() < 1 and step < args.steps:
        example = Pictures.collect(ahead.pop(0))
        ahead.append(learned.draw(args.batch))
        rate = min(1.0, (step + 1) / 100) * (0.005 + 0.5 * (1 + math.cos(math.pi * progress())))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * rate
        loss = hole_loss(model(example.filled, example.mask), example)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        average(mean, model, step, 0.998)
        losses.append(loss.detach())
        if time.time() - last_log > 30:
            print(f"step {step} {progress():.0%} loss {torch.stack(losses).mean():.4f}", flush=True)
            last_log, losses = time.time(), []
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    return save()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder of real pictures and clips with depth")
    parser.add_argument("--clips", type=Path, required=True, help="folder of real clips with an index.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=75, help="training time in all, over all resumed runs")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16, help="pictures of a step")
    parser.add_argument("--validate", type=int, default=100, help="pictures that the figures are made on")
    parser.add_argument("--save-every", type=float, default=600, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
