"""Train the nano scene encoder on the procedural world, whose second view, depth and cameras are known.

    python -m pipeline.training.scene --data WORLD --depth assets/nano/depth --out assets/nano/soft/scene --minutes 25

WORLD are folders made by `pipeline.world.dataset`. Losses: log depth, the point map and the pose in the camera of the
first frame, each weighed by the confidence that the network gives itself, and the ray query of CUT3R (arXiv
2501.12387): from the state and the rays of the other camera its depth and colours. The unit is the subject's distance.
The training goes on from its checkpoint OUT.checkpoint.pt. The kept weights are a running mean.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from pipeline.camera.geometry import invert_rigid, pixel_rays, transform
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet
from pipeline.scene.recurrent import (
    CELL,
    CONFIG,
    WEIGHTS,
    RecurrentScene,
    Said,
    Sizes,
    config_of,
    inputs_of,
    patches,
    rays_of,
    shortened,
)
from pipeline.training import average, save_state
from pipeline.training.views import Pair, Recording, read_world, varied

FRAMES = 17  # of a clip
FAR = 15.0  # the farthest distance that counts, in those of the subject
SURE = 0.2  # weight of the logarithm of the confidence
POSE, QUERY, COLOUR = 4.0, 1.0, 1.5  # weights in the loss


@dataclass(frozen=True, eq=False)
class Views:
    """B clips as G kept frames. depth, points, colour: of cells, as `Said` has them; first_from_cam in the unit."""

    pictures: Float[Tensor, "B G 3 H W"]
    log_depth: Float[Tensor, "B G h w"]
    points: Float[Tensor, "B G h w 3"]
    colour: Float[Tensor, "B G 3 h w"]
    first_from_cam: Float[Tensor, "B G 4 4"]
    rays: Float[Tensor, "B G 6 h w"]


def views_of(pair: Pair, every: int) -> tuple[Views, Views]:
    """The source and the target of one pair with depth, both as seen from the source's first camera."""
    first = invert_rigid(pair.source.path.world_from_cam[:1])

    def seen(view: Recording) -> Views:
        frames, K = view.frames[::every], view.path.K[::every]
        pose = (first @ view.path.world_from_cam[::every]).clone()
        pose[:, :3, 3] /= pair.unit
        assert view.z is not None
        height, width = frames.shape[-2:]
        z = (view.z[::every, CELL // 2 :: CELL, CELL // 2 :: CELL] / pair.unit).clamp(1 / FAR, FAR)
        scaled = K.clone()
        scaled[:, :2] /= CELL
        points = transform(pose, pixel_rays(height // CELL, width // CELL, scaled) * z[..., None])
        rays = rays_of(pose, K, (height, width))
        told = (frames, z.log(), shortened(points), F.avg_pool2d(frames, CELL), pose, rays)
        return Views(*(part[None] for part in told))

    return seen(pair.source), seen(pair.target)


def together(views: list[Views]) -> Views:
    """Several as one batch."""
    return Views(*(torch.cat([getattr(v, name) for v in views]) for name in Views.__dataclass_fields__))


class Pairs:
    """Random pairs of folders; the first `held_out` files of the first folder are not drawn."""

    def __init__(self, folders: list[Path], held_out: int, size: tuple[int, int]):
        self.folders, self.size = folders, size
        self.unseen = sorted(folders[0].glob("*.npz"))[:held_out]
        self.files: list[Path] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in what was rendered since."""
        found = [path for folder in self.folders for path in sorted(folder.glob("*.npz"))]
        self.files = [path for path in found if path not in self.unseen]
        if not self.files:
            raise SystemExit(f"{self.folders[0]} has no scenes besides the {len(self.unseen)} held out")

    def draw(self, rng: np.random.Generator) -> Pair:
        pair = read_world(self.files[int(rng.integers(len(self.files)))], FRAMES, self.size)
        swap, mirror, reverse = (bool(rng.integers(2)) for _ in range(3))
        return varied(pair, swap=swap, mirror=mirror, reverse=reverse)


def loss_of(
    network: RecurrentScene, trunk: DepthNet, source: Views, target: Views, asked: list[int]
) -> dict[str, Tensor]:
    """The parts of the loss on a batch. asked: the kept frames whose state is asked for the target's view."""
    batch, count = source.pictures.shape[:2]
    given = patches(trunk, source.pictures.flatten(0, 1)).unflatten(0, (batch, count))
    states, said = network(given)
    parts = [_geometry(one, source, index) for index, one in enumerate(said)]
    total = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    state = torch.cat([states[index] for index in asked])
    found = network.query(state, torch.cat([target.rays[:, index] for index in asked]))
    wanted = lambda name: torch.cat([getattr(target, name)[:, index] for index in asked])
    total["query depth"] = (found.log_depth - wanted("log_depth")).abs().mean()
    total["query colour"] = (found.colour - wanted("colour")).abs().mean()
    return total


def _geometry(said: Said, given: Views, index: int) -> dict[str, Tensor]:
    depth = (said.log_depth - given.log_depth[:, index]).abs()
    points = (said.points - given.points[:, index]).abs().sum(-1)
    sure = said.confidence.exp() + 1
    pose = given.first_from_cam[:, index]
    turned = (said.first_from_cam[:, :3, :3] - pose[:, :3, :3]).abs().sum((1, 2)).mean()
    moved = (shortened(said.first_from_cam[:, :3, 3]) - shortened(pose[:, :3, 3])).abs().sum(-1).mean()
    return {
        "depth": depth.mean(),
        "points": points.mean(),
        "sure": (sure * (depth + points) - SURE * sure.log()).mean(),
        "turned": turned,
        "moved": moved,
        "colour": (said.colour - given.colour[:, index]).abs().mean(),
    }


def whole(parts: dict[str, Tensor]) -> Tensor:
    """The loss."""
    pose = POSE * (parts["turned"] + parts["moved"])
    query = QUERY * (parts["query depth"] + COLOUR * parts["query colour"])
    return 0.5 * parts["sure"] + pose + query + 0.5 * COLOUR * parts["colour"]


@torch.no_grad()
def validate(network: RecurrentScene, trunk: DepthNet, pairs: Pairs) -> dict[str, float]:
    """The parts of the loss on the scenes held out, both views in turn, the target asked for at the last frame.

    Beside them what a still camera at the start is off by: "turned still" and "moved still".
    """
    rows = []
    for path in pairs.unseen:
        for swap in (False, True):
            pair = varied(read_world(path, FRAMES, pairs.size), swap=swap)
            source, target = views_of(pair, network.sizes.every)
            row = loss_of(network, trunk, source, target, [source.pictures.shape[1] - 1])
            still = copy.copy(source.first_from_cam)
            row["turned still"] = (still[..., :3, :3] - torch.eye(3)).abs().sum((2, 3)).mean()
            row["moved still"] = shortened(still[..., :3, 3]).abs().sum(-1).mean()
            rows.append({name: value.item() for name, value in row.items()})
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]} if rows else {}


def save_recurrent(network: RecurrentScene, folder: Path, depth: Path) -> None:
    """Write the encoder in float16, see `pipeline.scene.recurrent.load_recurrent`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(network.sizes, os.path.relpath(depth.resolve(), folder.resolve()))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, folder / WEIGHTS)


def train(args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    trunk = load_depth_model(str(args.depth), args.device)
    assert isinstance(trunk, DepthNet)
    height, width = (int(n) for n in args.size.split("x"))
    sizes = Sizes(width=args.width, heads=max(1, args.width // 32), pixels=height * width)
    network = RecurrentScene(inputs_of(trunk), sizes).to(args.device)
    mean = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), args.lr, (0.9, 0.99), weight_decay=0.01)
    pairs = Pairs(args.data, args.held_out, (height, width))
    step, elapsed = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True, map_location=args.device)
        network.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]
    started, budget = time.time(), args.minutes * 60
    progress = lambda: min(1.0, (elapsed + time.time() - started) / budget)
    last_log, last_save, parts = time.time(), time.time(), []

    def save() -> dict[str, float]:
        figures = validate(mean.eval(), trunk, pairs)
        print(f"step {step} {progress():.0%} {len(pairs.files)} scenes, held out {figures}", flush=True)
        save_recurrent(mean, args.out, args.depth)
        facts = {"step": step, "minutes": round(progress() * args.minutes, 1), "seed": args.seed}
        Path(f"{args.out}.figures.json").write_text(json.dumps(facts | figures, indent=2) + "\n")
        states = {"model": network.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        save_state(states | {"step": step, "elapsed": progress() * budget}, args.checkpoint)
        return figures

    while progress() < 1 and step < args.steps:
        rng = np.random.default_rng([args.seed, step])  # of the step alone, so that a resumed run draws the same
        drawn = [views_of(pairs.draw(rng), sizes.every) for _ in range(args.batch)]
        source, target = together([view for view, _ in drawn]), together([view for _, view in drawn])
        asked = sorted(rng.choice(source.pictures.shape[1], min(2, source.pictures.shape[1]), replace=False).tolist())
        rate = args.lr * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress())))
        for group in optimiser.param_groups:
            group["lr"] = rate
        found = loss_of(network, trunk, source, target, asked)
        optimiser.zero_grad(set_to_none=True)
        whole(found).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        average(mean, network, step, 0.998)
        parts.append({name: value.item() for name, value in found.items()})
        if time.time() - last_log > 30:
            means = {name: round(float(np.mean([part[name] for part in parts])), 3) for name in parts[0]}
            print(f"step {step} {progress():.0%} rate {rate:.1e} {means}", flush=True)
            last_log, parts = time.time(), []
        if time.time() - last_save > args.save_every:
            pairs.refresh()
            save()
            last_save = time.time()
    return save()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders made by pipeline.world.dataset")
    parser.add_argument("--depth", type=Path, required=True, help="folder of the depth network, whose trunk is frozen")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=25, help="training time in all, over all resumed runs")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps")
    parser.add_argument("--size", default="64x112", help="HxW, multiples of 16")
    parser.add_argument("--width", type=int, default=192, help="of the tokens")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--held-out", type=int, default=12, help="scenes kept for validation")
    parser.add_argument("--save-every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
