"""Train the nano depth network on the procedural world's exact depth.

    python -m pipeline.training.depth --data DIR --out assets/nano/depth --minutes 40

It goes on from its checkpoint, else from the weights in OUT, else it begins anew. One scale per clip is free in the
loss, because a monocular clip does not tell it; one per frame would let depth pump. The pictures are changed heavily
(colours, blur, noise, crops, strides), since the network is to serve real video, of which it sees none. Learning rate
and curriculum follow the share of `--minutes` used up, over all resumed runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from pipeline.depth.estimate import estimate_depth
from pipeline.depth.files import load_depth
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet
from pipeline.media.video import read_video
from pipeline.training import Muon, check_gradients, save_state
from pipeline.world.dataset import load

# The nearest hundredth of a clip to its farthest: the sky is as far as this, no farther.
RANGE = 40.0
SOLID = 4.0  # how much more a pixel of a solid counts than one of the surroundings: they are few, and a warp tears them
SHARED = (0.5, 1.0)  # a crop's side as a share of the picture's


@dataclass(frozen=True)
class Figures:
    """What validation finds, means over clips; every error is relative to the true depth.

    abs_rel: after one scale per clip. abs_rel_affine: after one scale and shift of disparity per clip.
    unsteadiness: mean absolute error of the change of log depth from a frame to the next, per pixel.
    """

    abs_rel: float
    abs_rel_affine: float
    unsteadiness: float


# --- what is learned from ---------------------------------------------------------------------------------------------


def cut_out(
    frames: Tensor, z: Tensor, solid: Tensor, count: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Float[Tensor, "T 3 h w"], Float[Tensor, "T h w"], Bool[Tensor, "T h w"]]:
    """A random piece of a clip (uint8 T 3 H W, depth and mask of the solids T H W): `count` frames in [0, 1] at `size`,
    their depth, and where a solid is.

    Random stride, direction, crop, aspect and mirroring; sometimes one frame repeated, which must give steady depth.
    """
    uniform = lambda low, high: low + (high - low) * float(torch.rand((), generator=generator))
    draw = lambda n: int(torch.randint(n, (), generator=generator))
    total, height, width = z.shape
    if draw(8) == 0:
        index = torch.full((count,), draw(total))
    else:
        stride = 1 + draw(min(3, max(1, (total - 1) // max(1, count - 1))))
        index = draw(max(1, total - (count - 1) * stride)) + stride * torch.arange(count)
        index = index.clamp(max=total - 1)
    if draw(2):
        index = index.flip(0)
    share, aspect = uniform(*SHARED), uniform(0.85, 1.18)
    if draw(3) == 0:
        share = 1.0
    h, w = round(height * min(1, share * aspect)), round(width * min(1, share / aspect))
    top, left = draw(height - h + 1), draw(width - w + 1)
    frames = frames[index, :, top : top + h, left : left + w].float() / 255
    frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
    both = torch.stack([z, solid], 1)[index, :, top : top + h, left : left + w].float()
    both = F.interpolate(both, size, mode="nearest-exact")  # a mean over an edge would be nowhere
    if draw(2):
        frames, both = frames.flip(-1), both.flip(-1)
    return frames, both[:, 0], both[:, 1] > 0.5


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


@dataclass(frozen=True)
class Shape:
    """Of a batch: clips, their frames, and the size of the pictures."""

    clips: int
    frames: int
    height: int
    width: int


def curriculum(progress: float, height: int, width: int, clips: int, stills_until: float = 0.5) -> list[Shape]:
    """What to draw batches from when `progress` in [0, 1] of the training is over, all at about equal cost.

    Stills first, `clips` in a batch: many scenes teach more than many frames. Then clips as well.
    """
    of = lambda frames: Shape(max(1, clips // frames), frames, height, width)
    return [of(1)] if progress < stills_until else [of(1), of(2), of(4), of(8)]


class Clips:
    """Random augmented batches from a folder that may still be growing, whose scenes stay in memory once read.

    Of another folder, `stills`, come three quarters of the single frames: its scenes are short, and many more.
    """

    def __init__(
        self, folder: Path, held_out: int, seed: int, *, stills: Path | None = None, workers: int = 1, keep: int = 400
    ):
        self.folder, self.stills_folder, self.held_out = folder, stills, held_out
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = ThreadPoolExecutor(workers)
        self.kept: dict[Path, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.keep = keep
        self.paths: list[Path] = []
        self.stills: list[Path] = []
        self.refresh()

    def refresh(self) -> None:
        """Look again which scenes there are."""
        self.paths = sorted(self.folder.glob("*.npz"))[self.held_out :]
        if not self.paths:
            raise SystemExit(f"{self.folder} has no scenes besides the {self.held_out} held out")
        if self.stills_folder is not None:
            self.stills = sorted(self.stills_folder.glob("*.npz"))
            if not self.stills:
                raise SystemExit(f"{self.stills_folder} has no scenes")

    def _views(self, path: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
        if path not in self.kept:
            while len(self.kept) >= self.keep:
                self.kept.pop(next(iter(self.kept)), None)
            stored = load(path)
            self.kept[path] = [
                (stored.source, stored.source_z, stored.source_objects.any(1)),
                (stored.target, stored.target_z, stored.target_objects.any(1)),
            ]
        return self.kept[path]

    def _one(self, seed: int, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = lambda n: int(torch.randint(n, (), generator=generator))
        paths = self.stills if self.stills and shape.frames == 1 and draw(4) else self.paths
        try:
            view = self._views(paths[draw(len(paths))])[draw(2)]
        except KeyError:  # another thread has just dropped it
            return self._one(seed + 1, shape)
        frames, z, solid = cut_out(*view, shape.frames, (shape.height, shape.width), generator)
        return recolour(frames, generator), z, solid

    def draw(self, shapes: list[Shape]) -> list[Future]:
        """Start on a batch of one of `shapes`."""
        draw = lambda n: int(torch.randint(n, (), generator=self.generator))
        shape = shapes[draw(len(shapes))]
        return [self.pool.submit(self._one, draw(2**31), shape) for _ in range(shape.clips)]

    @staticmethod
    def collect(jobs: list[Future]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch that `draw` has started on: frames B T 3 h w in [0, 1], depth and mask of the solids B T h w."""
        frames, z, solid = zip(*(job.result() for job in jobs), strict=True)
        return torch.stack(frames), torch.stack(z), torch.stack(solid)


# --- what is asked of it ----------------------------------------------------------------------------------------------


def relative_log(z: Float[Tensor, "B T h w"]) -> Float[Tensor, "B T h w"]:
    """Log depth with its median at 0 and the sky at RANGE times the nearest hundredth."""
    log_z = z.log().flatten(1)
    sample = log_z[:, :: max(1, log_z.shape[1] // 10_000)]
    log_z = torch.minimum(log_z, sample.quantile(0.01, dim=1, keepdim=True) + math.log(RANGE))
    return (log_z - sample.median(dim=1, keepdim=True).values).view_as(z)


def depth_loss(
    predicted: Float[Tensor, "B T h w"], truth: Float[Tensor, "B T h w"], solid: Bool[Tensor, "B T h w"] | None = None
) -> Tensor:
    """Distance of log depths up to one offset (scale) per clip: of values, slopes at several scales, changes in time.

    The values count both as they are and as disparity: a warp moves pixels by disparity, so near things matter more.
    solid: where pixels count SOLID times.
    """
    error = predicted - truth
    offset = error.detach().flatten(1)
    offset = offset[:, :: max(1, offset.shape[1] // 10_000)].median(dim=1).values.view(-1, 1, 1, 1)
    error = error - offset
    disparity = torch.exp(-(predicted - offset).clamp(-4, 4)) - torch.exp(-truth)
    weight = 1.0 if solid is None else (1 + (SOLID - 1) * solid) / (1 + (SOLID - 1) * solid.float().mean())
    loss = (weight * (error.abs() + 0.5 * disparity.abs())).mean()
    pyramid = error.flatten(0, 1)[:, None]
    for level in range(4):
        if level:
            pyramid = F.avg_pool2d(pyramid, 2)
        slopes = pyramid.diff(dim=-1).abs().mean() + pyramid.diff(dim=-2).abs().mean()
        loss = loss + 0.25 * slopes
    if error.shape[1] > 1:
        loss = loss + error.diff(dim=1).abs().mean()
    return loss


# --- how good it is ---------------------------------------------------------------------------------------------------


def affine_disparity(z: Tensor, truth: Tensor) -> Tensor:
    """Depth whose disparity is that of `z` after the least-squares scale and shift of the clip towards `truth`."""
    x, y = 1 / z.flatten(), 1 / truth.flatten()
    centred = x - x.mean()
    slope = (centred * (y - y.mean())).mean() / centred.square().mean().clamp(min=1e-12)
    return 1 / (slope * (1 / z - x.mean()) + y.mean()).clamp(min=1 / truth.max())


@torch.no_grad()
def validate(model: DepthNet, folder: Path, held_out: int) -> Figures:
    """Both views of the first `held_out` scenes of a folder, whole clips at their own size."""
    rows = []
    for path in sorted(folder.glob("*.npz"))[:held_out]:
        stored = load(path)
        for frames, z in ((stored.source, stored.source_z), (stored.target, stored.target_z)):
            truth = z.float()
            found = estimate_depth(frames.float() / 255, model).z
            scaled = found * (truth / found).median()
            affine = affine_disparity(found, truth)
            change = found.log().diff(dim=0) - truth.log().diff(dim=0)
            relative = lambda estimate, truth=truth: ((estimate - truth).abs() / truth).mean().item()
            rows.append((relative(scaled), relative(affine), change.abs().mean().item()))
    return Figures(*torch.tensor(rows).mean(0).tolist())


@torch.no_grad()
def agreement(model: DepthNet, video: Path, given: Path) -> float:
    """Spearman's rank correlation, over a whole clip, of estimated depth with depth or disparity given in a file."""
    frames = read_video(video, max_side=416).frames
    found = estimate_depth(frames, model).z.flatten()[::7]
    truth = load_depth(given, len(frames), (frames.shape[-2], frames.shape[-1])).z.flatten()[::7]
    return float(np.corrcoef(rankdata(found.numpy()), rankdata(truth.numpy()))[0, 1])


# --- training ---------------------------------------------------------------------------------------------------------


def average(mean: DepthNet, model: DepthNet, step: int) -> None:
    """Move the running mean of the weights towards the model's; quickly at first."""
    keep = min(0.998, (1 + step) / (20 + step))
    with torch.no_grad():
        for a, b in zip(mean.parameters(), model.parameters(), strict=True):
            a.lerp_(b, 1 - keep)


def loss_of(
    model: Callable[[Tensor], Tensor], frames: Tensor, z: Tensor, solid: Tensor, *, bf16: bool = False
) -> Tensor:
    """`depth_loss` of a batch, see `train_step`."""
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):
        predicted = model(frames)
    return depth_loss(predicted.float(), relative_log(z), solid)


def train_step(
    model: Callable[[Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    frames: Tensor,
    z: Tensor,
    solid: Tensor,
    *,
    bf16: bool = False,
) -> Tensor:
    """One step of the optimiser on frames B T 3 h w in [0, 1], depth and solids B T h w; the loss before it."""
    loss = loss_of(model, frames, z, solid, bf16=bf16)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    return loss.detach()


def train(args: argparse.Namespace) -> Figures:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    model, best = DepthNet(pixels=math.prod(args.crop), attentions=args.attentions).to(device), math.inf
    if (args.out / "config.json").exists() and not args.checkpoint.exists():
        given = load_depth_model(str(args.out), args.device)
        assert isinstance(given, DepthNet)
        # what the given network has not begins as the identity
        missing, unexpected = model.load_state_dict(given.state_dict(), strict=False)
        if unexpected or not all(name.startswith("fine_") for name in missing):
            raise SystemExit(f"The weights in {args.out} are of another network: give its --attentions, or more.")
        best = validate(model.eval(), args.data, args.held_out).abs_rel_affine
        print(f"from the weights in {args.out}, held out {best:.4f}", flush=True)
    model.train().requires_grad_(True)
    mean = copy.deepcopy(model)
    outer = ("stem", "places", "fine_places", "head")
    optimiser = Muon(model, outer=outer, lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    step, elapsed = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed, best = state["step"], state["elapsed"], state["best"]
    begun = step
    clips = Clips(args.data, args.held_out, args.seed + step, stills=args.stills, workers=args.workers, keep=args.keep)
    forward = torch.compile(model, dynamic=False) if args.compile else model

    started, budget = time.time(), args.minutes * 60
    ran = lambda: elapsed + time.time() - started
    last_log, last_save, losses = time.time(), time.time(), []

    def save() -> Figures:
        nonlocal best
        figures = validate(mean.eval(), args.data, args.held_out)
        print(f"step {step} {ran():.0f} s held out: {figures}", flush=True)
        states = {"model": model.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        # this is the steadier one: one wall taken for sky dominates the other. Of equals the later has cooled more
        if figures.abs_rel_affine < 1.01 * best:
            best = min(best, figures.abs_rel_affine)
            half = copy.deepcopy(mean).half()
            half.save_pretrained(args.out)
            facts = {"step": step, "minutes": round(ran() / 60, 1), "seed": args.seed}
            facts |= {"scenes": len(clips.paths), "stills": len(clips.stills)}
            Path(f"{args.out}.figures.json").write_text(json.dumps(facts | asdict(figures), indent=2) + "\n")
        save_state(states | {"step": step, "elapsed": ran(), "best": best}, args.checkpoint)
        return figures

    progress = lambda: min(1.0, ran() / budget)
    height, width = args.crop
    draw = lambda: clips.draw(curriculum(progress(), height, width, args.batch, args.stills_until))
    ahead = [draw() for _ in range(2)]
    while ran() < budget and step < args.steps:
        frames, z, solid = (x.to(device) for x in clips.collect(ahead.pop(0)))
        ahead.append(draw())
        # full speed for long, and slow at the end: averages of slow steps are what is kept
        cooling = max(0.0, (progress() - 0.6) / 0.4)
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * cooling)))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * rate
        if args.compile and step == begun:
            batch = partial(loss_of, frames=frames, z=z, solid=solid, bf16=args.bf16)
            check_gradients(batch, model, forward, model.parameters())
        losses.append(train_step(forward, optimiser, frames, z, solid, bf16=args.bf16))
        step += 1
        average(mean, model, step)
        if time.time() - last_log > 30:
            last_log = time.time()
            print(f"step {step} {ran():.0f} s loss {torch.stack(losses).mean():.4f} rate {rate:.3f}", flush=True)
            losses = []
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
            clips.refresh()
    return save()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by pipeline.world.dataset")
    parser.add_argument("--stills", type=Path, help="folder of more scenes, of `--frames 1` each")
    parser.add_argument("--stills-until", type=float, default=0.5, help="share of the time that has stills alone")
    parser.add_argument("--out", type=Path, required=True, help="folder for the best weights, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=40, help="training time in all, over all resumed runs")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument("--batch", type=int, default=16, help="stills in a step; fewer clips, as they cost more")
    parser.add_argument("--crop", type=int, nargs=2, default=(64, 96), help="height and width of the pictures")
    parser.add_argument("--attentions", type=int, default=4, help="layers of attention before the coarsest level")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--held-out", type=int, default=4, help="scenes kept for validation")
    parser.add_argument("--save-every", type=float, default=240, help="seconds between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="threads that read ahead")
    parser.add_argument("--keep", type=int, default=400, help="scenes held in memory, 5 MB each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument(
        "--measure", type=Path, nargs=2, metavar=("VIDEO", "DEPTH"), help="do not train: print the figures of OUT"
    )
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args(arguments)
    if args.measure:
        model = load_depth_model(str(args.out), args.device)
        assert isinstance(model, DepthNet)
        print(validate(model, args.data, args.held_out), f"rank correlation {agreement(model, *args.measure):.3f}")
        return
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
