"""Train the mask encoder of a VAE: the latent mask that a clean video would give, from the pixels' mask.

    python -m pipeline.training.mask_encoder --backbone nano --data DIR --pairs DIR --out DIR
    accelerate launch --multi_gpu -m pipeline.training.mask_encoder --backbone MODEL --data DIR --pairs DIR --out DIR

InverseCrafter (arXiv 2512.05672), section 3: L1 and SSIM against the reference mask 1 - phi(|E(x) - E(m * x)|), on
double-reprojected pairs (TrajectoryCrafter, arXiv 2503.05638): a clip x is warped along a random camera path and back;
m is what survives, so it has the shape of what a warp leaves unknown, and the clean video is known.

--data holds videos, whose depth is estimated, or scenes of `training.dataset` with true depth. The pairs are made
first, into --pairs; then the network is trained on them. Both go on where they were interrupted, and both are shared
out among the processes of accelerate.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline import result_of
from pipeline.camera.geometry import PRESETS, CameraPath, follow
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.method.latent_mask import TAU, difference_mask
from pipeline.prior.backbone import Backbone
from pipeline.prior.mask_encoder import MaskEncoder
from pipeline.render.analysis import analyse
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.training import save_state
from pipeline.training.vae import moments_once
from pipeline.world.cameras import preset_motion
from pipeline.world.dataset import load

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
HELD_OUT = 0.1  # of the clips: the first ones


def seen_again(z: Float[Tensor, "T H W"], source: CameraPath, target: CameraPath) -> Bool[Tensor, "T 1 H W"]:
    """Which pixels of a clip survive a warp to the target cameras and back. z: their depth in the source cameras."""
    there = warp_depth(z, source, target)
    return warp_to_path(there.new_zeros(len(z), 3, *z.shape[1:]), there, target, source).mask


def random_path(rng: np.random.Generator, source: CameraPath, z: Float[Tensor, "T H W"]) -> CameraPath:
    """One of the six moves, by an amount between a third of its default and half more than it."""
    name = str(rng.choice(list(PRESETS)))
    amount = PRESETS[name].default * float(rng.uniform(0.3, 1.5))
    distance = float(z[torch.isfinite(z)].median())
    return follow(source, preset_motion(name, amount, len(z), distance))


@dataclass(frozen=True, eq=False)
class Recording:
    """frames T 3 H W in [0, 1], their depth z T H W, and the path of the camera; T = 4n + 1."""

    frames: Tensor
    z: Tensor
    path: CameraPath


def recordings(file: Path, backbone_ref: str, frames: int) -> Iterator[Recording]:
    """The clips in a file: both views of a scene of the world, or the analysed start of a video."""
    if file.suffix == ".npz":
        stored = load(file)
        for video, z, path in (
            (stored.source, stored.source_z, stored.source_path),
            (stored.target, stored.target_z, stored.target_path),
        ):
            span = slice(min(frames, (len(video) - 1) // 4 * 4 + 1))
            path = CameraPath(path.world_from_cam[span].float(), path.K[span].float())
            yield Recording(video[span].float() / 255, z[span].float(), path)
        return
    analysis = result_of(analyse(RenderRequest(str(file), backbone=backbone_ref, frames=frames)))
    span = slice((len(analysis.clip.frames) - 1) // 4 * 4 + 1)
    path = CameraPath(analysis.source.world_from_cam[span].float(), analysis.source.K[span].float())
    yield Recording(analysis.clip.frames[span], analysis.depth.z[span].float().cpu(), path)


def make_pairs(
    files: list[Path], folder: Path, backbone: Backbone, args: argparse.Namespace, accelerator: Accelerator
) -> None:
    """A safetensors file for each clip and path: mask, the filled measurement, and the reference latent mask."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = range(accelerator.process_index, len(files), accelerator.num_processes)
    for number in mine:
        if (folder / f"{number:06d}.done").exists():
            continue
        rng = np.random.default_rng((args.seed, number))
        for view, clip in enumerate(recordings(files[number], args.backbone, args.frames or backbone.frames)):
            for repeat in range(args.paths):
                mask = seen_again(clip.z, clip.path, random_path(rng, clip.path, clip.z))
                known = Measurement(torch.where(mask, clip.frames, 0.0), mask)
                h = difference_mask(backbone.encode, clip.frames, mask, phi=args.phi, tau=args.tau).h
                pair = {
                    "mask": torch.from_numpy(np.packbits(mask.numpy(), axis=-1)),
                    "video": (255 * fill_unknown(known)).round().byte(),
                    "h": h.cpu().half(),
                }
                save_file(pair, folder / f"{number:06d}-{view}-{repeat}.safetensors")
        (folder / f"{number:06d}.done").touch()
    accelerator.wait_for_everyone()


class Pairs(torch.utils.data.Dataset):
    """mask T 1 H W bool, video T 3 H W in [0, 1], h C t h w of each file; `crop` latents wide and high, if given."""

    def __init__(self, files: list[Path], crop: int | None = None) -> None:
        self.files, self.crop = files, crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        pair = load_file(self.files[index])
        width = pair["video"].shape[-1]
        mask = torch.from_numpy(np.unpackbits(pair["mask"].numpy(), axis=-1)[..., :width].copy()).bool()
        video, h = pair["video"].float() / 255, pair["h"].float()
        if self.crop is None:
            return mask, video, h
        unit = width // h.shape[-1]
        places = [int(torch.randint(max(0, n - self.crop) + 1, ())) for n in h.shape[-2:]]
        rows, columns = (slice(unit * at, unit * (at + self.crop)) for at in places)
        cells = [slice(at, at + self.crop) for at in places]
        return mask[..., rows, columns], video[..., rows, columns], h[..., cells[0], cells[1]]


def structural(a: Float[Tensor, "B C t h w"], b: Float[Tensor, "B C t h w"]) -> Float[Tensor, ""]:
    """Mean SSIM (Wang et al. 2004) over the maps of each channel and moment, windows of 7 by 7, values in [0, 1]."""
    blur = lambda x: F.avg_pool2d(x.flatten(0, 2)[:, None], 7, 1, 3, count_include_pad=False)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return (luminance * (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)).mean()


def predict(model: MaskEncoder, mask: Tensor, video: Tensor) -> Float[Tensor, "B C t h w"]:
    """As `MaskEncoder.forward`, for a batch, with gradients."""
    return moments_once(model.wan, model.inputs(mask, video)).sigmoid()


@torch.no_grad()
def validate(model: MaskEncoder, loader) -> dict[str, float]:
    """L1 and SSIM on pairs of clips that are not trained on; for comparison, L1 of the best constant."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for mask, video, h in loader:
        found = predict(model, mask.to(model.device), video.to(model.device)).cpu()
        l1 = (found - h).abs().mean()
        sums += torch.stack([l1, structural(found, h), (h - h.median()).abs().mean()]).double() * len(h)
        count += len(h)
    return dict(zip(("l1", "ssim", "l1_of_a_constant"), (sums / max(count, 1)).tolist(), strict=True))


def train(args: argparse.Namespace) -> dict[str, float]:
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision="no")
    set_seed(args.seed)
    backbone = get_backbone(args.backbone)
    kinds = (".npz", *VIDEOS)
    files = sorted(path for path in args.data.rglob("*") if path.suffix.lower() in kinds)[: args.clips]
    if not files:
        raise SystemExit(f"{args.data} has no videos ({', '.join(VIDEOS)}) and no scenes of training.dataset.")
    make_pairs(files, args.pairs, backbone, args, accelerator)
    held_out = max(1, round(HELD_OUT * len(files)))
    pairs = sorted(args.pairs.glob("*.safetensors"))
    known = lambda path: int(path.name.split("-")[0]) < held_out
    validation = torch.utils.data.DataLoader(Pairs([p for p in pairs if known(p)]), batch_size=1)
    examples = torch.utils.data.DataLoader(
        Pairs([p for p in pairs if not known(p)], args.crop), batch_size=args.batch, shuffle=True, drop_last=True
    )
    if len(examples) < accelerator.num_processes:
        raise SystemExit(f"{len(pairs)} pairs are too few for batches of {args.batch} on every process.")

    vae = backbone.vae.config
    model = MaskEncoder(
        latent_channels=backbone.latent_channels,
        base_dim=args.base_dim,
        dim_mult=list(vae["dim_mult"]),
        num_res_blocks=vae["num_res_blocks"],
        temporal_downsample=list(vae["temperal_downsample"]),
        patch_size=vae["patch_size"],
        sees_video=args.sees_video,
        phi=args.phi,
        tau=args.tau,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01)
    ramp = lambda step: (
        min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, step / args.steps))))
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, ramp)
    checkpoint = Path(f"{args.out}.checkpoint.pt")
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
    # the loop calls `predict`, not `forward`, so it is what the processes' gradients are averaged over
    network = accelerator.prepare(_Predict(model))
    optimiser, examples = accelerator.prepare(optimiser, examples)
    started = last = time.time()
    while step < args.steps:
        for mask, video, h in examples:
            found = network(mask, video)
            loss = (found - h).abs().mean() + 1 - structural(found, h)
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            if accelerator.is_main_process and (time.time() - last > 60 or step == args.steps):
                last = time.time()
                print(f"step {step} loss {loss.item():.4f}, {(last - started) / 60:.1f} min", flush=True)
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                save_state(state | {"schedule": schedule.state_dict(), "step": step}, checkpoint)
            if step >= args.steps:
                break
    figures: dict[str, float] = {}
    if accelerator.is_main_process:
        figures = validate(model.eval(), validation)
        model.half().save_pretrained(args.out)
        facts = figures | {
            "steps": step, "seed": args.seed, "clips": len(files), "pairs": len(pairs),
            "parameters": sum(p.numel() for p in model.parameters()), "processes": accelerator.num_processes,
        }  # fmt: skip
        Path(f"{args.out}.figures.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps(facts), flush=True)
    # before the process group goes: the reducer in `network`, as its last owner, was once seen to wait forever for it
    network, optimiser = accelerator.free_memory(network, optimiser)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


class _Predict(torch.nn.Module):
    """`predict` as a module, since accelerate wraps modules."""

    def __init__(self, model: MaskEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, mask: Tensor, video: Tensor) -> Tensor:
        return predict(self.model, mask, video)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano", help="whose latents are to be masked")
    parser.add_argument("--data", type=Path, required=True, help="folder of videos, or of scenes of training.dataset")
    parser.add_argument("--pairs", type=Path, required=True, help="folder for the pairs that are trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, in float16")
    parser.add_argument("--clips", type=int, default=None, help="use so many files (default all)")
    parser.add_argument("--paths", type=int, default=1, help="camera paths for each clip")
    parser.add_argument("--frames", type=int, default=None, help="of a clip, 4n + 1 (default: what the model takes)")
    parser.add_argument("--base-dim", type=int, default=16, help="width of the first layer")
    parser.add_argument("--sees-video", action="store_true", help="let it see the measurement too")
    parser.add_argument("--phi", default="wiener")
    parser.add_argument("--tau", type=float, default=TAU)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=4, help="on each process")
    parser.add_argument("--crop", type=int, default=None, help="train on squares of so many latents (default: all)")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
