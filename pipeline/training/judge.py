"""Train the classifier that checks replacements, see `pipeline.evaluation.judge`.

    python -m pipeline.training.judge --out assets/nano/classifier --scenes 1800 --minutes 10

It learns from objects of the procedural world that are one solid, in single frames of scenes of its own seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.evaluation.judge import SMALLEST, Classifier, cut_outs, labels
from pipeline.training import Muon
from pipeline.world.objects import object_name
from pipeline.world.scenes import render_sample

BATCH, HELD_OUT = 64, 100
FIRST_SEED = 700_000  # of its scenes, apart from those that the other models learn from


def examples(seed: int, repeat: int = 2) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Cut-outs 1 3 S S uint8 of the well seen solids in a frame of a scene, from its two cameras, and their labels.

    `repeat`: boxes of other widths around each, as painted masks are wider than the object.
    """
    torch.set_num_threads(1)
    generator, sample = torch.Generator().manual_seed(seed), render_sample(seed, frames=1, supersample=1)
    found, numbers = [], []
    for view in (sample.source, sample.target):
        for i, solid in enumerate(sample.scene.solids):
            label, share = labels(object_name(solid)), view.objects[:, i].float().mean()
            if label is None or not SMALLEST < share < 0.35:
                continue
            for _ in range(repeat):
                reach = int(torch.randint(1, 9, (), generator=generator))
                hidden = F.max_pool2d(view.objects[:, i].float(), 2 * reach + 1, 1, reach) > 0
                found.append((cut_outs(view.frames, hidden)[:1] * 255).round().byte())
                numbers.append(label)
    return found, numbers


def gather(seeds: range, workers: int) -> tuple[Tensor, Tensor]:
    """`examples` of many scenes: cut-outs N 1 3 S S uint8 and labels N 2."""
    found: list[Tensor] = []
    numbers: list[tuple[int, int]] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, (some, named) in enumerate(pool.map(examples, seeds, chunksize=4), 1):
            found += some
            numbers += named
            if done % 100 == 0:
                print(f"{done} scenes of {len(seeds)}, {len(found)} cut-outs", flush=True)
    return torch.stack(found), torch.tensor(numbers)


@torch.no_grad()
def accuracy(model: Classifier, inputs: Tensor, numbers: Tensor) -> dict[str, float]:
    """Share of examples with the right colour, the right shape, and both."""
    right = []
    for x, n in zip(inputs.split(256), numbers.split(256), strict=True):
        colour, shape = model(x.float() / 255)
        right.append(torch.stack([colour.argmax(1) == n[:, 0], shape.argmax(1) == n[:, 1]], 1))
    both = torch.cat(right)
    return {
        "colour": both[:, 0].float().mean().item(),
        "shape": both[:, 1].float().mean().item(),
        "both": both.all(1).float().mean().item(),
    }


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """As a decoder might have left it: mirrored, shifted in brightness, blurred, noisy."""
    x = x.float() / 255
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1, 1), x.flip(-1), x)
    each = lambda low, high: low + (high - low) * torch.rand(len(x), 1, 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(x.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(x)
    x = torch.lerp(x, soft, each(0, 1))
    x = x * each(0.8, 1.2) + each(-0.08, 0.08)
    return (x + each(0, 0.06) * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def train(args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    seeds = range(FIRST_SEED, FIRST_SEED + args.scenes)
    inputs, numbers = gather(seeds[HELD_OUT:], args.workers)
    held_out = gather(seeds[:HELD_OUT], args.workers)
    print(f"{len(inputs)} cut-outs to learn from, {len(held_out[0])} held out", flush=True)
    model = Classifier().to(args.device)
    mean = Classifier().to(args.device).eval()
    mean.load_state_dict(model.state_dict())
    optimiser = Muon(model, outer=("layers.0", "colour", "shape"), lr=2e-3, weight_decay=0.05)
    started, last, step = time.time(), time.time(), 0
    while (progress := (time.time() - started) / (60 * args.minutes)) < 1 and step < args.steps:
        picked = torch.randint(len(inputs), (BATCH,), generator=generator)
        x, n = _augment(inputs[picked], generator).to(args.device), numbers[picked].to(args.device)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        colour, shape = model(x)
        loss = F.cross_entropy(colour, n[:, 0], label_smoothing=0.05)
        loss = loss + F.cross_entropy(shape, n[:, 1], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
        with torch.no_grad():
            keep = min(0.995, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - keep)
        if time.time() - last > 30:
            last = time.time()
            print(f"step {step} loss {loss.item():.3f} held out {accuracy(mean, *held_out)}", flush=True)
    figures = accuracy(mean, *held_out)
    mean.half().save_pretrained(args.out)
    facts = {
        "step": step,
        "minutes": args.minutes,
        "seed": args.seed,
        "scenes": args.scenes,
        "cut_outs": len(inputs),
    } | figures
    Path(f"{args.out}.figures.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(facts)
    return figures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, in float16")
    parser.add_argument("--scenes", type=int, default=1800, help="of one frame each, rendered first")
    parser.add_argument("--workers", type=int, default=2, help="processes that render them")
    parser.add_argument("--minutes", type=float, default=10, help="of training, after that")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
