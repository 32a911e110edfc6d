"""Train the nano video VAE: `AutoencoderKLWan` at a small size, 4x in time, 8x in space, causal.

    python -m pipeline.training.vae --data DIR --out assets/nano/vae --minutes 40

The encoder starts, in closed form, as a hierarchical block transform: two levels of principal components over 2x2
pixels and two frames, then principal components of the whole 4x8x8 block. Residual branches begin at zero, plus/minus
channel pairs pass SiLU linearly (silu(u) - silu(-u) = u), and one large constant channel makes the RMS norm a constant
factor. So training starts on the floor that a linear transform sets; the decoder has to invert it and then improve.
With `--photos`, half of the clips are photographs set in motion (`photos.photo_clip`), for the texture of real video;
with `--clips`, half of the clips are pieces of real ones (`clips.real_clip`), and those of the world share the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor

from pipeline.training import check_gradients, save_half, save_state
from pipeline.training.clips import read_clips, real_clip
from pipeline.training.photos import load_photos, photo_clip
from pipeline.world.dataset import load

RENEW = 4  # steps after which a clip of the pool is replaced by another one
CONFIG: dict[str, Any] = dict(
    z_dim=48,
    base_dim=32,
    dim_mult=[1, 2, 4],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_temporal=4,
    scale_factor_spatial=8,
)


# --- the network in one pass ------------------------------------------------------------------------------------------


def encode_once(vae: Any, x: Tensor) -> Tensor:
    """Posterior mean of clips B 3 T H W in [-1, 1], T = 4n + 1, without chunking: B C t h w.

    Equal to `vae.encode(x).latent_dist.mode()`, faster to train through.
    """
    return moments_once(vae, x)[:, : vae.config.z_dim]


def moments_once(vae: Any, x: Tensor) -> Tensor:
    """Means, then logarithms of the variances, B 2C t h w: `vae.encode(x).latent_dist.parameters`."""
    encoder = vae.encoder
    h = encoder.conv_in(patchify(x, vae.config.patch_size) if vae.config.patch_size else x)
    for layer in encoder.down_blocks:
        h = _downsample(layer, h) if isinstance(layer, WanResample) else _residual(layer, h)
    first, second = encoder.mid_block.resnets
    h = _residual(second, _attention(encoder.mid_block.attentions[0], _residual(first, h)))
    h = encoder.conv_out(F.silu(encoder.norm_out(h)))
    return vae.quant_conv(h)


def decode_once(vae: Any, z: Tensor) -> Tensor:
    """Clips B 3 T H W (not clamped) from latents B C t h w, in one pass: `vae.decode(z).sample` before its clamp."""
    decoder = vae.decoder
    h = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            h = resnet(h)
        for layer in block.upsamplers or ():
            h = _upsample(layer, h)
    h = decoder.conv_out(F.silu(decoder.norm_out(h)))
    return unpatchify(h, vae.config.patch_size)


def _residual(block: Any, h: Tensor) -> Tensor:
    """A residual block; a branch that is still exactly zero, as at the start, need not be computed."""
    if not torch.is_grad_enabled() and not block.conv2.weight.any() and not block.conv2.bias.any():
        return block.conv_shortcut(h)
    return block(h)


def _attention(block: Any, h: Tensor) -> Tensor:
    idle = not torch.is_grad_enabled() and not block.proj.weight.any() and not block.proj.bias.any()
    return h if idle else block(h)


def _in_space(layer: Any, h: Tensor) -> Tensor:
    b = h.shape[0]
    h = layer.resample(h.transpose(1, 2).flatten(0, 1))
    return h.unflatten(0, (b, -1)).transpose(1, 2)


def _downsample(layer: Any, h: Tensor) -> Tensor:
    h = _in_space(layer, h)
    # where time is halved too, the first frame stands for itself; the others are merged in pairs
    halved = layer.mode == "downsample3d" and h.shape[2] > 1
    return torch.cat([h[:, :, :1], layer.time_conv(h)], 2) if halved else h


def _upsample(layer: Any, h: Tensor) -> Tensor:
    if h.shape[2] > 1:
        first, rest = h[:, :, :1], layer.time_conv(h[:, :, 1:])
        rest = rest.unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)
        h = torch.cat([first, rest], 2)
    return _in_space(layer, h)


# --- the closed-form start --------------------------------------------------------------------------------------------


def _components(x: Tensor, count: int) -> Tensor:
    """The first `count` principal directions of rows of x (uncentred: the mean is the strongest of them): count x D."""
    _, vectors = torch.linalg.eigh(x.T.double() @ x.double())
    return vectors.flip(1)[:, :count].T.float()


@torch.no_grad()
def linear_start(vae: Any, clips: Tensor, *, constant: float = 200.0) -> None:
    """Set the encoder of `vae` to the block transform fitted on `clips` (B 3 T H W in [-1, 1]), latents whitened.

    The decoder becomes its least-squares inverse, as far as nearest-neighbour upsampling allows.
    """
    for part in (vae.encoder, vae.decoder):
        for name, parameter in part.named_parameters():
            if "conv2." in name or "proj." in name:
                parameter.zero_()  # residual branches and attention start as identities
    encoder = vae.encoder
    convs = [vae.quant_conv, encoder.conv_in, encoder.conv_out]
    layer: Any
    for layer in encoder.down_blocks:
        if hasattr(layer, "resample"):
            convs += [layer.resample[1], layer.time_conv]
        elif hasattr(layer.conv_shortcut, "weight"):
            convs.append(layer.conv_shortcut)
    for conv in convs:
        conv.weight.zero_()
        conv.bias.zero_()
    z_dim, last = vae.config.z_dim, encoder.conv_in.out_channels - 1
    for i in range(vae.config.in_channels):
        encoder.conv_in.weight[i, i, -1, 1, 1] = 1
    encoder.conv_in.bias[last] = constant  # survives every layer up to the norm

    h = encoder.conv_in(patchify(clips, vae.config.patch_size))
    for layer in encoder.down_blocks:
        if not hasattr(layer, "resample"):
            if hasattr(layer.conv_shortcut, "weight"):
                _widen(layer.conv_shortcut.weight, mirrored=layer is encoder.down_blocks[-1])
            h = layer(h)
            continue
        dim = layer.dim
        used = vae.config.in_channels if h.shape[1] == encoder.conv_in.out_channels else dim // 2 - 1
        # level in space: components of 2x2 neighbours (taps 0 and 1 of the 3x3, stride 2 convolution)
        in_space = int(0.62 * dim)
        cells = h[:, :used].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # b c t h 2 w 2
        cells = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(0, 3)
        basis = _components(_rows(cells), in_space)
        layer.resample[1].weight[:in_space, :used, :2, :2] = basis.unflatten(1, (used, 2, 2))
        layer.resample[1].weight[-1, -1, 0, 0] = 1
        # level in time: half sums of all, half differences of the strongest; a first frame has only sums
        differences = dim - 1 - in_space
        for i in range(in_space):
            layer.time_conv.weight[i, i, 1:] = 0.5
        for i in range(differences):
            layer.time_conv.weight[in_space + i, i, 1], layer.time_conv.weight[in_space + i, i, 2] = 0.5, -0.5
        layer.time_conv.weight[-1, -1, 1] = 1
        h = _downsample(layer, h)

    h = encoder.norm_out(encoder.mid_block(h))
    pairs = h.shape[1] // 2 - 1
    features = h[:, :pairs].permute(0, 2, 3, 4, 1).flatten(0, 3)
    basis = _components(features, z_dim)
    projected = features @ basis.T
    mean, std = projected.mean(0), projected.std(0)
    weight = basis / std[:, None]
    encoder.conv_out.weight[:z_dim, :pairs, -1, 1, 1] = weight
    encoder.conv_out.weight[:z_dim, pairs : 2 * pairs, -1, 1, 1] = -weight
    encoder.conv_out.bias[:z_dim] = -mean / std
    for i in range(z_dim):
        vae.quant_conv.weight[i, i] = 1
    vae.quant_conv.bias[z_dim:] = -10  # a narrow posterior: the mode is what is used
    vae.register_to_config(latents_mean=[0.0] * z_dim, latents_std=_spread(std))

    _linear_decoder(vae, clips)


def _linear_decoder(vae: Any, clips: Tensor, *, constant: float = 40.0) -> None:
    """Set the decoder to a chain of least-squares fits: latents to the encoder's quarter-size features to pixels.

    Nearest-neighbour upsampling followed by a 3x3 convolution cannot tell the pixels of a block apart by itself, so
    each fit sees the neighbours; the two phases in time sit in separate channels of the time convolution's output.
    """
    decoder = vae.decoder
    for conv in [vae.post_quant_conv, decoder.conv_in, decoder.conv_out]:
        conv.weight.zero_()
        conv.bias.zero_()
    z_dim = vae.config.z_dim
    for i in range(z_dim):
        vae.post_quant_conv.weight[i, i] = 1
        decoder.conv_in.weight[i, i, -1, 1, 1] = 1
    decoder.conv_in.bias[-1] = constant

    # what the encoder computed on the way: the target of each upsampling
    targets, h = [], vae.encoder.conv_in(patchify(clips, vae.config.patch_size))
    for layer in vae.encoder.down_blocks:
        if isinstance(layer, WanResample):
            targets.append(h[:, : vae.config.in_channels if not targets else layer.dim // 2 - 1])
            h = _downsample(layer, h)
        else:
            h = layer(h)
    h, used = encode_once(vae, clips), z_dim
    h = decoder.conv_in(h)
    for block, target in zip(decoder.up_blocks[:-1], reversed(targets), strict=True):
        (layer,) = block.upsamplers
        layer.time_conv.weight.zero_()
        layer.time_conv.bias.zero_()
        dim = layer.dim
        for i in range(used):
            layer.time_conv.weight[i, i, -1] = 1  # first phase
            layer.time_conv.weight[dim + used + i, i, -1] = 1  # second phase
        layer.time_conv.weight[dim - 1, -1, -1] = layer.time_conv.weight[2 * dim - 1, -1, -1] = 1
        conv = layer.resample[1]
        conv.weight.zero_()
        conv.bias.zero_()
        # frames 0, 1, 3, 5 ... are first phases, 2, 4, ... second ones
        frames = torch.arange(target.shape[2])
        first = (frames % 2 == 1) | (frames == 0)
        outputs = target.shape[1]
        for phase, chosen in ((0, first), (1, ~first)):
            source = torch.where(frames == 0, 0, (frames + 1) // 2)[chosen]
            up = F.interpolate(h[:, :used, source].transpose(1, 2).flatten(0, 1), scale_factor=2, mode="nearest-exact")
            fitted = target[:, :, chosen].transpose(1, 2).flatten(0, 1)
            weight, bias = _fit_conv2d(up, fitted)
            conv.weight[:outputs, phase * used : (phase + 1) * used] = weight
            conv.bias[:outputs] = bias  # the phases share it: features have the same mean in both
        if block is decoder.up_blocks[-2]:  # the last level carries mirrored pairs for the last SiLU
            conv.weight[outputs : 2 * outputs] = -conv.weight[:outputs]
            conv.bias[outputs : 2 * outputs] = -conv.bias[:outputs]
        conv.weight[-1, -1, 1, 1] = 1
        h, used = _upsample(layer, h), outputs
    gain = h.shape[1] ** 0.5 / constant
    for i in range(used):
        decoder.conv_out.weight[i, i, -1, 1, 1] = 1 / gain
        decoder.conv_out.weight[i, used + i, -1, 1, 1] = -1 / gain


def _fit_conv2d(x: Tensor, y: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Least-squares 3x3 convolution from x (N C H W) to y (N D H W): weight D C 3 3 and bias D."""
    channels = x.shape[1]
    size = 9 * channels + 1
    gram, cross = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, y.shape[1], dtype=torch.double)
    for xi, yi in zip(x.split(16), y.split(16), strict=True):
        patches = F.unfold(xi, 3, padding=1).transpose(1, 2).flatten(0, 1)
        patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
        gram += (patches.T @ patches).double()
        cross += (patches.T @ yi.flatten(2).transpose(1, 2).flatten(0, 1)).double()
    gram += ridge * gram.diagonal().mean() * torch.eye(size, dtype=torch.double)
    solution = torch.linalg.solve(gram, cross).T.float()
    return solution[:, :-1].unflatten(1, (channels, 3, 3)), solution[:, -1]


def _spread(std: Tensor, power: float = 0.4) -> list[float]:
    """Standard deviations to divide whitened latents by, so that coarse components stay stronger than fine ones.

    The sampler then settles the coarse picture first, as it does in pixels, where the spectrum falls as 1/f.
    """
    profile = std**power
    profile = profile / profile.square().mean().sqrt()
    return [float(1 / p) for p in profile]


def _widen(weight: Tensor, *, mirrored: bool) -> None:
    """A 1x1x1 shortcut that copies all channels, the constant one to the last place; mirrored: with their negatives."""
    inner = weight.shape[1]
    for i in range(inner - 1):
        weight[i, i] = 1
        if mirrored:
            weight[inner - 1 + i, i] = -1
    weight[-2 if mirrored else -1, -1] = 1


def _rows(x: Tensor, most: int = 400_000) -> Tensor:
    return x if len(x) <= most else x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:most]]


# --- training ---------------------------------------------------------------------------------------------------------


def psnr(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of clips in [-1, 1]."""
    return 10 * math.log10(4 / F.mse_loss(x.float().clamp(-1, 1), y.float()).item())


def load_clips(folder: Path, limit: int | None = None) -> list[Tensor]:
    """All recordings (source and target) of a folder of scenes as uint8 T 3 H W."""
    paths = sorted(folder.glob("*.npz"))[:limit]
    return [clip for path in paths for stored in [load(path)] for clip in (stored.source, stored.target)]


def to_model(clips: list[Tensor], device: str | torch.device = "cpu") -> Tensor:
    """uint8 T 3 H W clips to a batch B 3 T H W in [-1, 1]."""
    return torch.stack(clips).to(device).float().div(127.5).sub(1).transpose(1, 2)


def augment(clip: Tensor, generator: torch.Generator) -> Tensor:
    """A mirrored and shifted cut-out (eight pixels smaller each way), sometimes with its colour channels mixed."""
    draw = lambda high: int(torch.randint(high, (1,), generator=generator))
    if draw(2):
        clip = clip.flip(-1)
    if draw(4) == 0:
        clip = clip[:, torch.randperm(3, generator=generator)]
    if draw(6) == 0:
        clip = clip.flip(0)
    dy, dx = draw(9), draw(9)
    return clip[..., dy : dy + clip.shape[-2] - 8, dx : dx + clip.shape[-1] - 8]


def channels_last(vae: Any) -> None:
    """Lay out the convolutions' weights as processors like them: a step takes little more than half the time."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)


@torch.no_grad()
def latents_of(vae: Any, clips: list[Tensor], device) -> list[Tensor]:
    """Posterior means C t h w of uint8 clips, one by one."""
    return [encode_once(vae, to_model([clip], device))[0] for clip in clips]


@torch.no_grad()
def validate(vae: Any, clips: list[Tensor], device) -> float:
    """Mean reconstruction PSNR in dB, through the public encode and decode."""
    total = 0.0
    for clip in clips:
        x = to_model([clip], device)
        total += psnr(vae.decode(vae.encode(x).latent_dist.mode()).sample, x)
    return total / len(clips)


def _begun(
    args: argparse.Namespace, checkpoint: Path, clips: list[Tensor], generator: torch.Generator
) -> tuple[Any, dict[str, Any] | None]:
    """The weights that the training goes on from, and its state, None for a new one."""
    vae: Any = AutoencoderKLWan(**CONFIG)
    state = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None
    if state is None and (args.out / "config.json").exists():
        vae = AutoencoderKLWan.from_pretrained(args.out, torch_dtype=torch.float32)  # go on from given weights
    elif state is None:
        sample = [clips[i] for i in torch.randperm(len(clips), generator=generator)[:64].tolist()]
        linear_start(vae, to_model(sample))
        save_half(vae, args.out)
    else:
        vae.load_state_dict(state["weights"])
        vae.register_to_config(**state["config"])
    return vae, state


def _crops(
    pool: list[tuple[Tensor, Tensor | None]], args: argparse.Namespace, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """A batch of crops of the clips in a pool, and of their latents, as far as they have any."""
    xs, zs = [], []
    for i in torch.randint(len(pool), (args.batch,), generator=generator).tolist():
        clip, z = pool[i]
        cells = args.crop // 8
        top = int(torch.randint(clip.shape[-2] // 8 - cells + 1, (1,), generator=generator))
        left = int(torch.randint(clip.shape[-1] // 8 - cells + 1, (1,), generator=generator))
        xs.append(clip[..., 8 * top : 8 * top + args.crop, 8 * left : 8 * left + args.crop])
        if z is not None:
            zs.append(z[..., top : top + cells, left : left + cells])
    return xs, zs


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    clips = load_clips(args.data, args.scenes)
    photos = load_photos(args.photos) if args.photos else []
    film = read_clips(args.clips, "train") if args.clips else []
    held_out, clips = clips[: args.held_out], clips[args.held_out :]
    checkpoint = args.out.parent / f"{args.out.name}.checkpoint.pt"
    vae, state = _begun(args, checkpoint, clips, generator)
    vae.to(device).eval()
    channels_last(vae)
    joint = args.train == "all"
    vae.encoder.requires_grad_(joint)
    vae.quant_conv.requires_grad_(joint)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    step, elapsed = 0, 0.0
    if state is not None:
        step, elapsed = state["step"], state["elapsed"]
    begun = step
    rng = np.random.default_rng([args.seed, step])

    decode = torch.compile(decode_once) if args.compile else decode_once
    pool: list[tuple[Tensor, Tensor | None]] = []
    budget, last_save, last_log, losses = args.minutes * 60, time.time(), time.time(), []
    started = time.time()
    ran = lambda: elapsed + time.time() - started
    while ran() < budget:
        # a pool of augmented clips with their latents; an encoding costs as much as a step, so a few steps share one
        for _ in range(args.batch if not pool else int(len(pool) < args.pool or step % RENEW == 0)):
            clip = clips[int(torch.randint(len(clips), (1,), generator=generator))]
            if film and rng.uniform() < 0.5:
                clip = real_clip(film, rng, len(clip), (clip.shape[-2], clip.shape[-1]))
            elif photos and rng.uniform() < 0.5:
                clip = photo_clip(photos, rng, len(clip), (clip.shape[-2], clip.shape[-1]))
            clip = augment(clip, generator)
            entry = (clip, None if joint else latents_of(vae, [clip], device)[0])
            if len(pool) < args.pool:
                pool.append(entry)
            else:
                pool[step // RENEW % args.pool] = entry
        xs, zs = _crops(pool, args, generator)
        x = to_model(xs, device)
        progress = min(ran() / budget, 1.0)
        rate = args.lr * min(1.0, (step - begun + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        z = (torch.stack(zs) if zs else encode_once(vae, x)).to(memory_format=torch.channels_last_3d)
        precision = torch.autocast(device.type, torch.bfloat16, enabled=not args.fp32)
        if args.compile and step == begun:
            loss_of = lambda run, z=z, x=x: F.smooth_l1_loss(run(vae, z).float(), x, beta=args.beta)
            with precision:
                check_gradients(loss_of, decode_once, decode, trained)
        with precision:
            y = decode(vae, z).float()
        loss = F.smooth_l1_loss(y, x, beta=args.beta)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimiser.step()
        losses.append(F.mse_loss(y.detach(), x))
        step += 1
        if time.time() - last_log > 60:
            last_log = time.time()
            train_db = 10 * math.log10(4 / torch.stack(losses).mean().item())
            losses = []
            print(f"step {step} {ran():.0f} s train {train_db:.2f} dB lr {rate:.1e}", flush=True)
        if time.time() - last_save > args.save_every:
            last_save = time.time()
            print(f"step {step} held-out {validate(vae, held_out[:4], device):.2f} dB", flush=True)
            _checkpoint(checkpoint, vae, step, ran())
            save_half(vae, args.out)
    result = validate(vae, held_out, device)
    _checkpoint(checkpoint, vae, step, ran())
    save_half(vae, args.out)
    figures = {
        "step": step,
        "minutes": ran() / 60,
        "seed": args.seed,
        "scenes": len(clips) // 2,
        "photos": len(photos),
        "clips": len(film),
        "held_out_psnr": result,
    }
    (args.out.parent / f"{args.out.name}.figures.json").write_text(json.dumps(figures, indent=2))
    print(figures)


def _checkpoint(path: Path, vae, step: int, elapsed: float) -> None:
    # without the moments of the optimiser, which the warm-up finds again: small enough to travel
    config = {k: list(vae.config[k]) for k in ("latents_mean", "latents_std")}
    state = {
        "weights": vae.state_dict(),
        "config": config,
        "step": step,
        "elapsed": elapsed,
    }
    save_state(state, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by pipeline.world.dataset")
    parser.add_argument("--scenes", type=int, help="use only so many scenes of the folder: each takes 2.7 MB of memory")
    parser.add_argument("--photos", type=Path, help="folder of photographs: half of the clips are made of them")
    parser.add_argument("--clips", type=Path, help="folder of real clips: half of the clips are pieces of them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="training time in all, over all resumed runs")
    parser.add_argument("--train", choices=["decoder", "all"], default="decoder")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--beta", type=float, default=0.05, help="error, in half the range of a pixel, from which the loss is linear"
    )
    parser.add_argument("--held-out", type=int, default=8, help="recordings kept for validation")
    parser.add_argument("--save-every", type=float, default=240, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
