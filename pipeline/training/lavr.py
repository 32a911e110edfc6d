"""Train the soft parts of a backbone as LaVR does (arXiv 2601.14674): adapter, poses, projector and self-attention.

    python -m pipeline.training.lavr --backbone BACKBONE --encoder ENCODER --data CLIPS --out BACKBONE/soft

CLIPS is a folder in the layout of MultiCamVideo (KwaiVGI/ReCamMaster), or folders made by `pipeline.world.dataset`,
which know depth and so teach the hybrid, too. BACKBONE is a name or folder as `--backbone` of a render takes it,
ENCODER the folder of a scene encoder. Several GPUs: `accelerate launch -m pipeline.training.lavr ...`. The defaults are
the settings of the paper; what it froze stays frozen: all but self-attention, poses, projector and adapter.

The loss is that of flow matching, on the noisy part. Scene, source and poses are left out by chance, so that one set of
weights serves without them. With asymmetric attention one context serves several noise levels. The kept weights are a
running mean. The training goes on from OUT.checkpoint.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.prior.adapter import SceneAdapter
from pipeline.prior.backbone import TRAIN_TIMESTEPS, Backbone
from pipeline.prior.load import load_backbone
from pipeline.prior.posed import Beside, PosedLayers, posed, remember
from pipeline.prior.soft import CONFIG, WEIGHTS
from pipeline.scene.latents import SceneEncoder
from pipeline.scene.weights import load_encoder
from pipeline.training import save_state
from pipeline.training.lavr_examples import Example, Examples, scenes_of, together
from pipeline.training.prior import noise_levels

NO_SCENE, NO_SOURCE, NO_POSES = 0.15, 0.05, 0.1  # how often each is left out
MEASURED = 32  # scenes by which tokens are centred and scaled
KNOWN = 0.75  # by how much less what the model's own channels show counts in the loss


@dataclass(frozen=True)
class Left:
    """What is left out in a step. source_pose: the others are told the target's pose, as `Beside` has it."""

    scene: bool = False
    source: bool = False
    poses: bool = False
    source_pose: bool = False

    @classmethod
    def drawn(cls, rng: np.random.Generator, no_scene: bool = False) -> Left:
        """By chance; with the scene goes the source's pose half of the time, which is ReCamMaster."""
        scene, source, poses = (bool(rng.uniform() < share) for share in (NO_SCENE, NO_SOURCE, NO_POSES))
        scene = scene or no_scene
        return cls(scene, source, poses, bool(rng.uniform() < (0.5 if scene else 0.1)))


class Trainee(nn.Module):
    """All that takes part in a step: the transformer, whose self-attention learns, the layers, and the adapter."""

    def __init__(self, transformer: Any, layers: PosedLayers, adapter: SceneAdapter):
        super().__init__()
        self.transformer, self.layers, self.adapter = transformer, layers, adapter
        transformer.requires_grad_(False)
        for block in transformer.blocks:
            block.attn1.requires_grad_(True)

    def learned(self) -> dict[str, Tensor]:
        """The trained tensors by their names in the file of the soft parts."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def forward(self, batch: Example, left: Left, sigmas: Tensor, noise: Tensor) -> Tensor:
        """The loss. sigmas: L B noise levels; noise: L B C t h w."""
        beside = self.beside(batch, left)
        z_t = (1 - sigmas[..., None, None, None, None]) * batch.z + sigmas[..., None, None, None, None] * noise
        count = len(sigmas)
        many = lambda x: x.repeat(count, *[1] * (x.ndim - 1))
        noisy = torch.cat([z_t.flatten(0, 1), many(batch.channels)], 1)
        kept: dict[str, Any] = {}
        if self.layers.asymmetric:
            remember(self.transformer, self.layers, beside, text=batch.prompt)
            kept = {"": [tuple(map(many, seen)) for seen in beside.kept[""]]}
        optional = lambda x: None if x is None else many(x)
        beside = Beside(
            many(beside.source), many(beside.target_pose), optional(beside.scene), optional(beside.source_pose), kept
        )
        time = sigmas.flatten() * TRAIN_TIMESTEPS
        found = posed(self.transformer, self.layers, noisy, beside, timestep=time, text=many(batch.prompt))
        weight = torch.ones_like(noisy[:, :1])
        if batch.channels.shape[1]:
            weight = 1 - KNOWN * noisy[:, batch.z.shape[1] :][:, : -batch.z.shape[1]].mean(1, keepdim=True)
        error = (found.float() - (noise.flatten(0, 1) - many(batch.z))).square() * weight
        return (error.flatten(1).mean(1) / weight.flatten(1).mean(1)).mean()

    def beside(self, batch: Example, left: Left) -> Beside:
        """What is shown beside the noisy part, laid out as `pipeline.method.lavr.beside_of` does."""
        extra = batch.channels.shape[1]
        rest = (len(batch.z), extra, *batch.z.shape[2:])
        source = batch.source
        if extra:
            source = torch.cat([source, source.new_ones(rest)[:, : extra - source.shape[1]], source], 1)
        source = torch.zeros_like(source) if left.source else source
        scene = None
        if not left.scene:
            made = self.adapter(batch.tokens, (batch.z.shape[-2], batch.z.shape[-1]))
            scene = torch.cat([made, made.new_zeros(rest)], 1)
        target, own = batch.target_pose, None if left.source_pose else batch.source_pose
        if left.poses:
            target, own = torch.zeros_like(target), None if own is None else torch.zeros_like(own)
        return Beside(source, target, scene, own)


def begin(backbone: Backbone, encoder: SceneEncoder, args: argparse.Namespace) -> Trainee:
    """The prior with layers and an adapter that change nothing yet."""
    config = backbone.transformer.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers = PosedLayers(width, config["num_layers"], asymmetric=args.asymmetric, shared=not args.running)
    grid = args.grid or [side // (2 * backbone.spatial) for side in args.size]
    heads = next(n for n in (12, 8, 6, 4, 2, 1) if encoder.width % n == 0)
    adapter = SceneAdapter(encoder.width, backbone.latent_channels, (grid[0], grid[1]), heads=heads)
    return Trainee(backbone.transformer, layers, adapter)


def save_soft(mean: dict[str, Tensor], trainee: Trainee, args: argparse.Namespace) -> None:
    """Write the soft parts in float16, see `pipeline.prior.soft.load_soft`."""
    args.out.mkdir(parents=True, exist_ok=True)
    layers, adapter = trainee.layers, trainee.adapter
    config = {
        "layers": {
            "width": layers.projector[0].in_features,
            "blocks": len(layers.projector),
            "shared": layers.shared,
            "asymmetric": layers.asymmetric,
        },
        "adapter": {
            "tokens": adapter.queries.shape[1],
            "channels": adapter.out.out_features // adapter.cell**2,
            "grid": list(adapter.queries.shape[-2:]),
            "heads": adapter.heads,
        },
        "encoder": os.path.relpath(args.encoder.resolve(), args.out.resolve()),
    }
    (args.out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    fixed = {f"adapter.{name}": value for name, value in adapter.named_buffers()}
    save_file({name: value.half().contiguous().cpu() for name, value in (mean | fixed).items()}, args.out / WEIGHTS)


@torch.no_grad()
def validate(trainee: Trainee, examples: Examples, device: torch.device) -> dict[str, float]:
    """Squared velocity error on the scenes held out, at fixed noise: soft, and what leaving out a part costs."""
    asked = {
        "soft": ("nothing", Left()),
        "no scene": ("nothing", Left(scene=True)),
        "no source": ("nothing", Left(source=True)),
        "no poses": ("nothing", Left(poses=True)),
        "no source pose": ("nothing", Left(source_pose=True)),
        "recammaster": ("nothing", Left(scene=True, source_pose=True)),
        "warp": ("warp", Left()),
    }
    rows: dict[str, list[float]] = {name: [] for name in asked}
    for number, name in enumerate(examples.unseen):
        pair = examples.scenes.pair(name, np.random.default_rng([7, number]))
        made = {
            kind: examples.make(pair, np.random.default_rng([8, number]), kind).to(device)
            for kind in ("nothing", "warp")
        }
        for label, (kind, left) in asked.items():
            if examples.encoder is None and not left.scene:
                left = replace(left, scene=True)
            batch = made[kind]
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(3, *batch.z.shape, generator=generator).to(device)
            sigmas = torch.tensor([[1.0], [0.85], [0.5]], device=device)
            rows[label].append(trainee(batch, left, sigmas, noise).item())
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items() if values}


def train(args: argparse.Namespace) -> dict[str, float]:
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=args.precision, kwargs_handlers=handlers)
    device = accelerator.device
    torch.manual_seed(args.seed)
    backbone = load_backbone(args.backbone, device, torch.float32)
    encoder = load_encoder(str(args.encoder), str(device))
    scenes = scenes_of(args.data, args.size, args.frames or backbone.frames, args.stride)
    examples = Examples(scenes, backbone, None if args.no_scene else encoder, args.held_out, args.cache)
    trainee = begin(backbone, encoder, args).to(device)
    if examples.encoder is not None:
        trainee.adapter.measure(examples.tokens(MEASURED).to(device))
    learned = trainee.learned()
    adapter = [value for name, value in learned.items() if name.startswith("adapter.")]
    rest = [value for name, value in learned.items() if not name.startswith("adapter.")]
    rates = (args.adapter_lr, args.lr)
    optimiser = torch.optim.AdamW([{"params": adapter}, {"params": rest}], args.lr, (0.9, 0.99), weight_decay=0.01)
    mean = {name: value.detach().clone() for name, value in learned.items()}
    step, elapsed = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True, map_location=device)
        for name, value in learned.items():
            value.data.copy_(state["learned"][name])
            mean[name].copy_(state["mean"][name])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]
    run, optimiser = accelerator.prepare(trainee, optimiser)
    started = time.time()
    spent = lambda: elapsed + time.time() - started
    share = lambda: min(1.0, spent() / (60 * args.minutes)) if args.minutes else min(1.0, step / max(1, args.steps))
    levels = args.levels if trainee.layers.asymmetric else 1
    last_log, last_save, losses = time.time(), time.time(), []

    def save() -> dict[str, float]:
        own = {name: value.detach().clone() for name, value in learned.items()}
        figures: dict[str, float] = {}
        if accelerator.is_main_process:
            _put(learned, mean)
            figures = validate(trainee, examples, device)
            _put(learned, own)
            print(f"step {step} {share():.0%} {len(scenes.names)} scenes, held out {figures}", flush=True)
            save_soft(mean, trainee, args)
            facts = {"step": step, "minutes": round(spent() / 60, 1), "seed": args.seed}
            Path(f"{args.out}.figures.json").write_text(json.dumps(facts | figures, indent=2) + "\n")
            states = {"learned": own, "mean": mean, "optimiser": optimiser.state_dict()}
            save_state(states | {"step": step, "elapsed": spent()}, args.checkpoint)
        accelerator.wait_for_everyone()
        return figures

    while share() < 1 and step < args.steps:
        rng = np.random.default_rng(
            [args.seed, step, accelerator.process_index]
        )  # so that a resumed run draws the same
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        count = max(1, args.batch // accelerator.num_processes)
        batch = together([examples.draw(rng) for _ in range(count)]).to(device)
        sigmas = noise_levels(levels * count, generator, args.shift or backbone.shift).view(levels, count).to(device)
        noise = torch.randn(levels, *batch.z.shape, generator=generator).to(device)
        cooling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share())) if args.cooling else 1.0
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * cooling * min(1.0, (step + 1) / args.warm)
        loss = run(batch, Left.drawn(rng, args.no_scene), sigmas, noise)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(list(learned.values()), 1.0)
        optimiser.step()
        step += 1
        keep = min(args.mean, (1 + step) / (20 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.values()), [value.data for value in learned.values()], 1 - keep)
        losses.append(loss.detach())
        if accelerator.is_main_process and time.time() - last_log > 30:
            print(f"step {step} {share():.0%} loss {torch.stack(losses).mean():.4f}", flush=True)
            last_log, losses = time.time(), []
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    return save()


def _put(learned: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in learned.items():
        value.data.copy_(values[name])


def _size(text: str) -> tuple[int, int]:
    height, width = (int(n) for n in text.split("x"))
    return height, width


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a name or a folder, as of a render")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the scene encoder, which stays frozen")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of clips with several views")
    parser.add_argument("--out", type=Path, required=True, help="folder for the soft parts, in float16")
    parser.add_argument("--checkpoint", type=Path, help="where to go on from; default OUT.checkpoint.pt")
    parser.add_argument("--cache", type=Path, help="folder that keeps latents; default: all is encoded anew")
    parser.add_argument("--size", type=_size, default=(480, 832), help="HxW")
    parser.add_argument(
        "--grid", type=_size, help="of the adapter's queries, HxW; default: one for 2x2 latents of SIZE"
    )
    parser.add_argument("--frames", type=int, help="of a clip; default: as the backbone was made for")
    parser.add_argument("--stride", type=int, default=1, help="of how many frames one is taken")
    parser.add_argument(
        "--no-scene", action="store_true", help="leave the scene out, as in the first part of a training"
    )
    parser.add_argument("--steps", type=int, default=15_000, help="in all, over all resumed runs")
    parser.add_argument("--minutes", type=float, help="in all, in place of steps")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--adapter-lr", type=float, default=6e-5)
    parser.add_argument("--batch", type=int, default=8, help="examples of a step, over all processes")
    parser.add_argument("--levels", type=int, default=4, help="noise levels for each of them, with --asymmetric")
    parser.add_argument("--shift", type=float, help="of the noise levels; default: the backbone's")
    parser.add_argument("--asymmetric", action="store_true", help="the context never sees the noisy part")
    parser.add_argument("--running", action="store_true", help="positions run on from part to part")
    parser.add_argument("--cooling", action="store_true", help="rates fall along a cosine")
    parser.add_argument("--warm", type=int, default=100, help="steps over which the rates rise")
    parser.add_argument("--mean", type=float, default=0.998, help="share that the running mean keeps in a step")
    parser.add_argument("--held-out", type=int, default=12, help="scenes kept for validation")
    parser.add_argument("--save-every", type=float, default=600, help="seconds between checkpoints")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of accelerate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "auto"), default="auto")
    args = parser.parse_args(arguments)
    args.checkpoint = args.checkpoint or Path(f"{args.out}.checkpoint.pt")
    print(train(args))


if __name__ == "__main__":
    main()
