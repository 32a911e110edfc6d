"""Train the network that finds an object by clicks on it: `assets/nano/click`.

    python -m pipeline.training.cutouts --model isnet.onnx --pairs PAIRS --clips CLIPS --out CUTOUTS
    python -m pipeline.training.click --cutouts CUTOUTS --stills STILLS --depth assets/nano --out assets/nano/click

CUTOUTS has real pictures with the masks of what stands out in them, as a larger network found them. STILLS is a folder
made by `pipeline.world.dataset`, whose objects are exact. Onto a part of the pictures things cut out of others are
pasted, whose masks are exact, too; of a part four stand in one, so that things are small.

Clicks are drawn as in RITM (arXiv 2102.06583): the first anywhere inside, the next where the answer errs most. In a
part of the batches the clicks correct a mask that is off. The trunk, of the depth network in DEPTH, does not learn. The
training goes on from OUT.checkpoint.pt.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet
from pipeline.masks.click import ClickNet, answers, first_click, next_click, see
from pipeline.training import average, save_state
from pipeline.training.depth import recolour
from pipeline.world.dataset import load

SIZES = ((224, 384), (192, 320), (256, 320), (288, 288), (320, 224))
LEAST = 0.004  # share of the picture that an object covers at least
SURE = 0.35  # of a cut-out: the largest share of it that may be between object and surroundings
WORLD, PASTED, FOUR = 0.15, 0.35, 0.25  # shares of the examples
CORRECTED = 0.2  # share of the batches in which a mask is corrected
ROUNDS = (0.4, 0.25, 0.15, 0.1, 0.1)  # how often 1 to 5 clicks


@dataclass(frozen=True, eq=False)
class Cutout:
    """A real picture. image: uint8 H W 3. parts: the masks of what stands out in it, each in one piece."""

    image: np.ndarray
    parts: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Example:
    """picture: in [0, 1]. mask: of the object."""

    picture: Float[Tensor, "3 h w"]
    mask: Bool[Tensor, "h w"]


def read_cutouts(folder: Path, split: str) -> list[Cutout]:
    """All cut-outs of a split that hold an object and are sure of it. Raises SystemExit where there are none."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as data:
            if str(data["split"]) != split:
                continue
            image, soft = data["image"], data["mask"].astype(np.float32) / 255
        between = ((soft > 0.15) & (soft < 0.85)).sum() / max(1, (soft > 0.5).sum())
        count, labels, areas, _ = cv2.connectedComponentsWithStats((soft > 0.5).astype(np.uint8))
        parts = [labels == n for n in range(1, count) if areas[n, cv2.CC_STAT_AREA] >= LEAST * soft.size]
        if between < SURE and parts and sum(p.sum() for p in parts) < 0.8 * soft.size:
            found.append(Cutout(image, parts))
    if not found:
        raise SystemExit(f"{folder} has no cut-outs of the split {split}")
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------


def cropped(image: np.ndarray, mask: np.ndarray, size: tuple[int, int], rng: random.Random) -> Example:
    """A random piece with some of the object in it, mirrored by chance. image: uint8 H W 3; mask: bool H W."""
    (h, w), (H, W) = size, mask.shape
    scale = max(h / H, w / W) * math.exp(rng.uniform(0, 0.5))
    resized = (max(w, round(W * scale)), max(h, round(H * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, resized, interpolation=how)
    mask = cv2.resize(mask.astype(np.float32), resized, interpolation=how) > 0.5
    rows, columns = np.nonzero(mask)
    if len(rows):
        at = rng.randrange(len(rows))
        top = min(max(0, rows[at] - rng.randrange(h)), resized[1] - h)
        left = min(max(0, columns[at] - rng.randrange(w)), resized[0] - w)
        image, mask = image[top : top + h, left : left + w], mask[top : top + h, left : left + w]
    image, mask = image[:h, :w], mask[:h, :w]
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    return Example(picture, torch.from_numpy(np.ascontiguousarray(mask)))


def pasted(under: Cutout, over: Cutout, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A thing cut out of one picture, on another: the picture, and the mask of that thing or of one that it hides."""
    H, W = under.image.shape[:2]
    part = rng.choice(over.parts)
    rows, columns = np.nonzero(part)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    thing, alpha = over.image[box], part[box].astype(np.float32)
    side = max(alpha.shape)
    scale = math.exp(rng.uniform(math.log(0.12), math.log(0.85))) * min(H, W) / side
    shape = (max(6, round(alpha.shape[1] * scale)), max(6, round(alpha.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    thing, alpha = cv2.resize(thing, shape, interpolation=how), cv2.resize(alpha, shape, interpolation=how)
    if rng.random() < 0.5:
        thing, alpha = thing[:, ::-1], alpha[:, ::-1]
    alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, 1.2))
    top, left = rng.randint(-shape[1] // 4, H - shape[1] * 3 // 4), rng.randint(-shape[0] // 4, W - shape[0] * 3 // 4)
    whole = np.zeros((H, W, 4), np.float32)
    shift = np.array([[1, 0, left], [0, 1, top]], np.float32)
    layer = np.dstack([thing.astype(np.float32) * rng.uniform(0.7, 1.2), alpha])
    whole = cv2.warpAffine(layer, shift, (W, H), borderMode=cv2.BORDER_CONSTANT)
    share = whole[..., 3:]
    image = (under.image * (1 - share) + whole[..., :3].clip(0, 255) * share).round().astype(np.uint8)
    hides = share[..., 0] > 0.5
    left_of = [p & ~hides for p in under.parts]
    left_of = [p for p in left_of if p.sum() >= LEAST * p.size]
    if left_of and rng.random() < 0.4:
        return image, rng.choice(left_of)
    return image, hides


def four_in_one(cutouts: list[Cutout], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Four pictures, each at half its size, as one; and the largest thing of the first, which is in any of the four."""
    H, W = cutouts[0].image.shape[:2]
    half = (W // 2, H // 2)
    tiles = [cv2.resize(cutout.image, half, interpolation=cv2.INTER_AREA) for cutout in cutouts]
    part = max(cutouts[0].parts, key=np.sum).astype(np.float32)
    masks = [cv2.resize(part, half, interpolation=cv2.INTER_AREA) > 0.5, *[np.zeros(half[::-1], bool)] * 3]
    shift = rng.randrange(4)
    together = lambda four: np.vstack([np.hstack(four[:2]), np.hstack(four[2:])])
    return together(tiles[shift:] + tiles[:shift]), together(masks[shift:] + masks[:shift])


def of_world(file: Path, rng: random.Random) -> tuple[np.ndarray, np.ndarray] | None:
    """A still of the procedural world and one of its objects; None where there is none that is large enough."""
    stored = load(file)
    frame = rng.randrange(len(stored.source))
    masks = [mask.numpy() for mask in stored.source_objects[frame] if mask.float().mean() >= LEAST]
    if not masks:
        return None
    return stored.source[frame].permute(1, 2, 0).numpy(), rng.choice(masks)


def draw(cutouts: list[Cutout], stills: list[Path], size: tuple[int, int], rng: random.Random) -> Example:
    """A random example."""
    while True:
        kind, one = rng.random(), rng.choice(cutouts)
        pair = (one.image, rng.choice(one.parts))
        if kind < WORLD and stills:
            pair = of_world(rng.choice(stills), rng)
        elif kind < WORLD + PASTED:
            pair = pasted(one, rng.choice(cutouts), rng)
        elif kind < WORLD + PASTED + FOUR:
            pair = four_in_one([one, *rng.choices(cutouts, k=3)], rng)
        if pair is None:
            continue
        example = cropped(*pair, size, rng)
        if LEAST <= example.mask.float().mean() <= 0.8:
            generator = torch.Generator().manual_seed(rng.randrange(2**31))
            return Example(recolour(example.picture[None], generator)[0], example.mask)


def spoilt(mask: np.ndarray, rng: random.Random) -> np.ndarray:
    """A mask H W as it may be off: wider or narrower, moved, cut, or with a blob too much."""
    h, w = mask.shape
    found = mask.astype(np.uint8)
    radius = rng.randint(1, 6)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    if rng.random() < 0.5:
        found = (cv2.dilate if rng.random() < 0.5 else cv2.erode)(found, disc)
    if rng.random() < 0.3:
        shift = np.array([[1, 0, rng.uniform(-8, 8)], [0, 1, rng.uniform(-8, 8)]], np.float32)
        found = cv2.warpAffine(found, shift, (w, h), flags=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(mask)
    at = rng.randrange(len(rows))
    blob = np.zeros_like(found)
    place = (int(columns[at]) + rng.randint(-20, 20), int(rows[at]) + rng.randint(-20, 20))
    side = math.sqrt(len(rows))
    axes = (max(3, int(side * rng.uniform(0.15, 0.5))), max(3, int(side * rng.uniform(0.15, 0.5))))
    cv2.ellipse(blob, place, axes, rng.uniform(0, 180), 0, 360, 1, -1)
    given, too_much = np.asarray(found) > 0, blob > 0
    return given & ~too_much if rng.random() < 0.5 else given | too_much


# --- what is asked of it ----------------------------------------------------------------------------------------------


def click_loss(logits: Float[Tensor, "B 1 h w"], mask: Float[Tensor, "B 1 h w"]) -> Tensor:
    """Cross entropy of each pixel, and one minus the soft intersection over union."""
    p = logits.sigmoid()
    both, either = (p * mask).flatten(1).sum(1), (p + mask - p * mask).flatten(1).sum(1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - (both + 1) / (either + 1)).mean()


@torch.no_grad()
def validate(net: ClickNet, depth: DepthNet, cutouts: list[Cutout], clicks: int = 5) -> list[float]:
    """Mean intersection over union after 1, 2 ... clicks, each in the middle of the largest error."""
    rows = []
    for cutout in cutouts:
        picture = torch.from_numpy(cutout.image).permute(2, 0, 1)[None].float() / 255
        seen, truth = see(picture, depth), max(cutout.parts, key=np.sum)
        given, row = [first_click(truth)], []
        for _ in range(clicks):
            found = (answers(net, seen, given) > 0.5).numpy()
            row.append(float((found & truth).sum() / max(1, (found | truth).sum())))
            given.append(next_click(found, truth) or given[0])
        rows.append(row)
    return [round(float(value), 4) for value in np.mean(rows, 0)]


# --- training ---------------------------------------------------------------------------------------------------------


def step_of(net: ClickNet, depth: DepthNet, batch: list[Example], rng: random.Random) -> Tensor:
    """The loss of a batch, after a random number of clicks."""
    pictures, masks = torch.stack([e.picture for e in batch]), torch.stack([e.mask for e in batch])
    with torch.no_grad():
        seen = see(pictures, depth)
    clicks, before = [[first_click(mask.numpy(), rng)] for mask in masks], None
    if rng.random() < CORRECTED:
        off = [spoilt(mask.numpy(), rng) for mask in masks]
        before = torch.from_numpy(np.stack(off))[:, None].float()
        clicks = [
            [next_click(given, mask.numpy(), rng) or first]
            for given, mask, (first,) in zip(off, masks, clicks, strict=True)
        ]
    for _ in range(rng.choices(range(len(ROUNDS)), ROUNDS)[0]):
        with torch.no_grad():
            before = net(seen, clicks, before).sigmoid()
        for given, found, mask in zip(clicks, before[:, 0] > 0.5, masks, strict=True):
            given.append(next_click(found.numpy(), mask.numpy(), rng) or given[0])
    return click_loss(net(seen, clicks, before), masks[:, None].float())


def train(args: argparse.Namespace) -> list[float]:
    torch.manual_seed(args.seed)
    depth = load_depth_model(str(args.depth))
    assert isinstance(depth, DepthNet)
    cutouts, held = read_cutouts(args.cutouts, "train"), read_cutouts(args.cutouts, "val")[: args.held_out]
    stills = sorted(args.stills.glob("*.npz")) if args.stills else []
    net = ClickNet()
    mean = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), args.lr, (0.9, 0.99), weight_decay=0.01)
    step, elapsed = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        net.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]
    started = time.time()
    share = lambda: min(1.0, (elapsed + time.time() - started) / (60 * args.minutes))
    last_log, last_save, losses = time.time(), time.time(), []
    print(f"{len(cutouts)} cut-outs, {len(held)} held out, {len(stills)} stills", flush=True)

    def save() -> list[float]:
        ious = validate(mean.eval(), depth, held)
        print(f"step {step} {share():.0%} IoU after 1 to 5 clicks {ious}", flush=True)
        copy.deepcopy(mean).half().save_pretrained(args.out)
        facts = {"step": step, "minutes": round(share() * args.minutes, 1), "seed": args.seed, "iou": ious}
        Path(f"{args.out}.figures.json").write_text(json.dumps(facts, indent=2) + "\n")
        states = {"model": net.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        save_state(states | {"step": step, "elapsed": share() * 60 * args.minutes}, args.checkpoint)
        return ious

    while share() < 1 and step < args.steps:
        rng = random.Random(f"{args.seed} {step}")
        size = rng.choice(SIZES)
        batch = [draw(cutouts, stills, size, rng) for _ in range(args.batch)]
        rate = args.lr * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share())))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = step_of(net, depth, batch, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        average(mean, net, step, 0.995)
        losses.append(loss.item())
        if time.time() - last_log > 30:
            print(f"step {step} {share():.0%} loss {np.mean(losses):.4f}", flush=True)
            last_log, losses = time.time(), []
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    return save()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutouts", type=Path, required=True, help="folder made by pipeline.training.cutouts")
    parser.add_argument("--stills", type=Path, help="folder made by pipeline.world.dataset")
    parser.add_argument("--depth", type=Path, required=True, help="folder of the depth network, whose trunk is used")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=60, help="training time in all, over all resumed runs")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--held-out", type=int, default=60, help="cut-outs of the split val that are measured")
    parser.add_argument("--save-every", type=float, default=480, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
