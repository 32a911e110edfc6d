"""Train the nano prior: `WanTransformer3DModel` as an inpainting video model, with its text encoder.

    python -m pipeline.training.prior --data DIR --vae assets/nano/vae --out assets/nano --minutes 60

Flow matching on the frozen VAE's latents. The input is packed as for Wan2.1-Fun-InP: noisy latent, four mask channels,
latent of the masked video, whose unknown pixels are filled smoothly here (`fill_condition`). What is known varies:
another view's warp onto this path (as in re-capture), all but one object (as in replacement; the prompt may then name
that object alone), the first frame, first and last, random frames, boxes and ellipses, or nothing; prompts are dropped
for classifier-free guidance.

It goes on from its checkpoint, or else from the weights in `--out`. Latents are cached beside the data (`--cache`), and
scenes that are rendered while the training runs join it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from pipeline.prior.backbone import TRAIN_TIMESTEPS
from pipeline.prior.preview import fit_latent_rgb
from pipeline.training import check_gradients, save_half, save_state, text
from pipeline.training.prior_examples import (
    SIZES,
    STILLS,
    Examples,
    draw,
    draw_objects,
    fill_cache,
    fingerprint,
    normalise,
    other_shape,
)
from pipeline.training.vae import encode_once
from pipeline.world.dataset import load
from pipeline.world.objects import COMPOUNDS, SHAPES, short_name

SHORT = 16  # tokens that the name of an object takes at most
SHIFT = 1.6  # stock samplers apply it twice: noise levels are spread as by a shift of 2.56


def transformer_config(latent_channels: int, temporal: int = 4) -> dict[str, Any]:
    """The nano transformer: an inpainting Wan without an image branch."""
    return dict(
        patch_size=(1, 2, 2),
        in_channels=2 * latent_channels + temporal,
        out_channels=latent_channels,
        text_dim=text.TEXT_CONFIG["d_model"],
        freq_dim=256,
        cross_attn_norm=True,
        rope_max_seq_len=256,
        **SIZES,
    )


def embed(encoder: Any, tokenizer, captions: list[str], device, tokens: int = text.TEXT_TOKENS) -> Tensor:
    """The first `tokens` of prompts as `pipeline.backbone.Backbone.embed` gives them: B L D, zero after the end."""
    ids = tokenizer(captions, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").to(device)
    hidden = encoder(ids.input_ids, ids.attention_mask).last_hidden_state
    return torch.where(ids.attention_mask[..., None] > 0, hidden, 0.0)


class ShortPrompts(WanAttnProcessor):
    """Cross-attention to the first tokens of a prompt that weighs as if all `TEXT_TOKENS` were there.

    Wan attends to the zeros after a prompt too. They are all alike, so that one of them stands for n others once log n
    is added to its score: a prompt of eight words costs a quarter, and nothing changes.
    """

    scores: Tensor | None = None  # B 1 1 L, what is added

    def expect(self, prompt: Tensor) -> None:
        """Prompts B L D from `embed`, of any L: shorter than L, or else the last token counts more than it should."""
        length = (prompt != 0).any(-1).sum(1, keepdim=True)  # B 1
        place = torch.arange(prompt.shape[1], device=prompt.device)
        first = (text.TEXT_TOKENS - length).clamp_min(1).float().log()
        scores = torch.where(place < length, 0.0, torch.where(place == length, first, -math.inf))
        self.scores = scores[:, None, None]

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        scores = None if self.scores is None else self.scores.to(hidden_states.dtype)
        return super().__call__(attn, hidden_states, encoder_hidden_states, scores, rotary_emb)


def flow_loss(transformer, z: Tensor, known: Tensor, prompt: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the predicted velocity, per example (Lipman et al. 2023, with z_t = (1-σ) z0 + σ ε).

    What is unknown counts four times as much as what is known: the latter is imposed on the result anyway.
    """
    level = sigma.view(-1, 1, 1, 1, 1)
    z_t = (1 - level) * z + level * noise
    predicted = transformer(
        hidden_states=torch.cat([z_t, known], 1),
        timestep=sigma * TRAIN_TIMESTEPS,
        encoder_hidden_states=prompt,
        return_dict=False,
    )[0]
    weight = 1 - 0.75 * known[:, :4].mean(1, keepdim=True)
    error = (predicted.float() - (noise - z)).square() * weight
    return error.flatten(1).mean(1) / weight.flatten(1).mean(1)


def noise_levels(count: int, generator: torch.Generator, shift: float = SHIFT**2) -> Tensor:
    """Sigmas spread as the sampler's steps are: uniform, then shifted."""
    u = torch.rand(count, generator=generator)
    return (shift * u / (1 + (shift - 1) * u)).clamp(1e-3, 1)


@torch.no_grad()
def validation(transformer, encoder, tokenizer, examples: Examples, grey: Tensor, device) -> dict[str, float]:
    """Velocity error on held-out scenes at fixed noise, by what is known: warp, random, all but an object, nothing.

    Objects in their cut-outs (`object`, in stills `still`) under the names of others (`misnamed`), or under their own
    with the shape of another (`misshaped`), tell whether prompts are followed.
    """
    asked: dict[str, tuple[tuple[float, ...], list[tuple[Tensor, Tensor, str]]]] = {}
    for kind, items in (("object", examples.held_out_objects), ("still", examples.held_out_stills)):
        named = [(example, short_name(example["name"])) for example, _ in items if example["name"]]
        names = [name for _, name in named]
        half = len(names) // 2
        said = {"": names, " misnamed": names[half:] + names[:half], " misshaped": [other_shape(n) for n in names]}
        for suffix, prompts in said.items():
            shown = [(e["z"], e["known"], prompt) for (e, _), prompt in zip(named, prompts, strict=True)]
            asked[kind + suffix] = (1.0, 0.9, 0.7), shown
    blank = lambda z: torch.cat([torch.zeros(4, *z.shape[1:]), grey.expand_as(z)])
    levels, whole = (0.9, 0.6, 0.3), examples.held_out
    asked["warp"] = levels, [(e["z"], e["known"][0], caption) for e, caption in whole]
    asked["random"] = levels, [(e["z"], e["known"][1], caption) for e, caption in whole]
    asked["whole"] = levels, [(e["z"], e["known"][2], short_name(e["name"])) for e, _ in whole if e["name"]]
    asked["nothing"] = levels, [(e["z"], blank(e["z"]), caption) for e, caption in whole]

    out = {}
    for kind, (sigmas, shown) in asked.items():
        total = []
        for sigma in sigmas:
            generator = torch.Generator().manual_seed(1)
            for z, known, caption in shown:
                noise = torch.randn(1, *z.shape, generator=generator)
                z, known, noise = z.float()[None].to(device), known.float()[None].to(device), noise.to(device)
                prompt = embed(encoder, tokenizer, [caption], device)
                loss = flow_loss(transformer, z, known, prompt, torch.tensor([sigma], device=device), noise)
                total.append(loss.item())
        if total:
            out[kind] = sum(total) / len(total)
    return out


def write_folder(out: Path, nets: torch.nn.ModuleDict, latent_rgb: dict, frames: int, pixels: int) -> None:
    """The backbone folder in the diffusers layout, weights in float16."""
    for name, net in nets.items():
        save_half(net, out / name)
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": [None, None],
        "image_processor": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    settings = {
        "frames": frames,
        "pixels": pixels,
        "steps": 8,
        "guidance_scale": 1.0,
        "strength": 1.0,
        "shift": SHIFT,
        "text_tokens": text.TEXT_TOKENS,
        "depth": "depth",
        "fill_condition": True,
        "vocabulary": f"This small model knows plain colours and {', '.join((*SHAPES, *COMPOUNDS))}: try “a red ball”.",
        "latent_rgb": latent_rgb,
    }
    path = out / "recapture.json"
    if path.exists():  # keep what was tuned by hand
        kept = ("steps", "guidance_scale", "replace_guidance_scale", "strength", "steady", "softness")
        kept += ("mask_encoder", "inpainter", "soft")
        settings |= {k: v for k, v in json.loads(path.read_text()).items() if k in kept}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _networks(args: argparse.Namespace, channels: int) -> tuple[Any, Any]:
    """Those of `--out`, or new ones."""
    if (args.out / "transformer" / "config.json").exists():  # go on from given weights
        transformer: Any = WanTransformer3DModel.from_pretrained(args.out / "transformer", torch_dtype=torch.float32)
        encoder: Any = UMT5EncoderModel.from_pretrained(args.out / "text_encoder", torch_dtype=torch.float32)
    else:
        transformer: Any = WanTransformer3DModel(**transformer_config(channels))
        torch.nn.init.zeros_(transformer.proj_out.weight)
        torch.nn.init.zeros_(transformer.proj_out.bias)
        encoder: Any = UMT5EncoderModel(UMT5Config(**text.TEXT_CONFIG))
    return transformer, encoder


def _colours(args: argparse.Namespace, vae: Any, device: torch.device) -> tuple[Tensor, dict[str, list], int, int]:
    """The latents of grey C t 1 1, the linear map to colours, and the frames and pixels of a clip."""
    sample = load(min(args.data.glob("*.npz"))).source.float() / 255
    frame_count, _, height, width = sample.shape
    grey_clip = torch.zeros(1, 3, frame_count, 16, 16, device=device)
    grey = normalise(vae, encode_once(vae, grey_clip))[0, :, :, :1, :1].cpu()
    z = normalise(vae, encode_once(vae, sample[None].to(device).mul(2).sub(1).transpose(1, 2)))[0].cpu()
    factors = fit_latent_rgb(z, sample)
    latent_rgb = {"weight": factors.weight.tolist(), "bias": factors.bias.tolist()}
    return grey, latent_rgb, frame_count, height * width


def _drawn(
    args: argparse.Namespace, examples: Examples, grey: Tensor, rng: np.random.Generator, *, small: bool
) -> tuple[Tensor, Tensor, list[str], int]:
    """A batch: latents, what is known of them, captions, and the tokens that these need. small: cut-outs of scenes."""
    window, batch = ((8, 12), args.batch) if small else (None, max(1, args.batch // 4))
    tokens = text.TEXT_TOKENS
    if examples.objects and rng.uniform() < args.objects:
        # a still is cheaper and says as much of a shape as a clip
        still = bool(examples.stills) and rng.uniform() < args.still_share
        batch, tokens = (STILLS * args.batch, SHORT) if still else (args.batch, tokens)
        z, known, captions = draw_objects(examples.stills if still else examples.objects, batch, rng, named=still)
    else:
        z, known, captions = draw(examples.scenes, batch, window, rng, grey)
    return z, known, captions, tokens


def _update(
    loss: Tensor, both: torch.nn.ModuleDict, average: torch.nn.ModuleDict, optimiser: torch.optim.Optimizer, step: int
) -> None:
    """A step of the weights, and of their running average."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
    optimiser.step()
    decay = min(0.998, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(both.parameters()), 1 - decay)


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    vae: Any = AutoencoderKLWan.from_pretrained(args.vae, torch_dtype=torch.float32)
    vae.to(device).eval().requires_grad_(False)
    cache = args.cache or args.data.with_name(f"{args.data.name}-latents-{fingerprint(vae)}")
    fill_cache(args.data, args.stills, cache, vae, device, args.first_fill)
    examples = Examples(cache, args.held_out)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer").exists():
        text.train_tokenizer([caption for _, caption in examples.scenes], args.out / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(args.out / "tokenizer")

    channels = vae.config.z_dim
    transformer, encoder = _networks(args, channels)
    transformer.to(device).train()
    encoder.to(device).train()
    both = torch.nn.ModuleDict({"transformer": transformer, "text_encoder": encoder})
    parameters = sum(p.numel() for p in both.parameters()) / 1e6
    print(
        f"{parameters:.2f} M parameters, {len(examples.scenes)} examples, {len(examples.objects)} objects, "
        f"{len(examples.stills)} in stills"
    )
    average = copy.deepcopy(both).requires_grad_(False)
    short = ShortPrompts()
    for block in transformer.blocks:
        block.attn2.set_processor(short)
    optimiser = torch.optim.AdamW(both.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = args.checkpoint or args.out.with_name(args.out.name + ".checkpoint.pt")
    step, elapsed = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        both.load_state_dict(state["average"])
        average.load_state_dict(state["average"])
        step, elapsed = state["step"], state["elapsed"]
    begun = step

    grey, latent_rgb, frame_count, pixels = _colours(args, vae, device)

    # backwards, a CPU's fused attention takes several times as long as the plain one on sequences as short as these
    attention = partial(sdpa_kernel, SDPBackend.MATH) if device.type == "cpu" else nullcontext
    run = torch.compile(transformer, dynamic=False) if args.compile else transformer
    rng = np.random.default_rng([args.seed, step])
    generator = torch.Generator().manual_seed(args.seed + step)
    budget, started, last_log, last_save, losses = args.minutes * 60, time.time(), time.time(), time.time(), []
    ran = lambda: elapsed + time.time() - started

    def save() -> None:
        # the averaged weights alone, a quarter of the whole state: the warm-up finds the optimiser's moments again
        save_state({"average": average.state_dict(), "step": step, "elapsed": ran()}, checkpoint)
        write_folder(args.out, average, latent_rgb, frame_count, pixels)

    while ran() < budget:
        progress = min(ran() / budget, 1.0)
        z, known, captions, tokens = _drawn(args, examples, grey, rng, small=progress < args.small_until)
        sigma = noise_levels(len(z), generator, SHIFT**2 * (1 if tokens > SHORT else 2))  # shapes are decided early
        noise = torch.randn(z.shape, generator=generator)
        z, known, sigma, noise = z.to(device), known.to(device), sigma.to(device), noise.to(device)
        rate = args.lr * min(1.0, (step - begun + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=not args.fp32), attention():
            prompt = embed(encoder, tokenizer, captions, device, tokens)
            short.expect(prompt)
            if args.compile and step == begun:
                given = (z, known, prompt.detach(), sigma, noise)
                batch = lambda run, given=given: flow_loss(run, *given).mean()
                check_gradients(batch, transformer, run, transformer.parameters())
            loss = flow_loss(run, z, known, prompt, sigma, noise).mean()
        _update(loss, both, average, optimiser, step)
        losses.append(loss.detach())
        step += 1
        if time.time() - last_log > 60:
            last_log = time.time()
            print(f"step {step} {ran():.0f} s loss {torch.stack(losses).mean():.4f} lr {rate:.1e}", flush=True)
            losses = []
        if time.time() - last_save > args.save_every:
            fill_cache(args.data, args.stills, cache, vae, device, args.fill)
            examples.refresh()
            figures = validation(average["transformer"], average["text_encoder"], tokenizer, examples, grey, device)
            counts = f"examples {len(examples.scenes)} objects {len(examples.objects)} stills {len(examples.stills)}"
            print(f"step {step} {counts} held-out", {k: round(v, 4) for k, v in figures.items()}, flush=True)
            save()
            last_save = time.time()
    figures = validation(average["transformer"], average["text_encoder"], tokenizer, examples, grey, device)
    save()
    figures |= {"step": step, "minutes": ran() / 60, "seed": args.seed, "examples": len(examples.scenes)}
    figures |= {"objects": len(examples.objects), "stills": len(examples.stills)}
    args.out.with_name(args.out.name + ".figures.json").write_text(json.dumps(figures, indent=2))
    print(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by pipeline.world.dataset")
    parser.add_argument("--stills", type=Path, help="folder of more scenes, of `--frames 1` each, for their objects")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the backbone folder to write")
    parser.add_argument("--cache", type=Path, help="folder for latents (default: beside the data, one for each VAE)")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="training time in all, over all resumed runs")
    parser.add_argument(
        "--first-fill", type=float, default=600, help="most seconds to spend on encoding before the start"
    )
    parser.add_argument(
        "--fill", type=float, default=60, help="most seconds to spend on encoding new scenes at each save"
    )
    parser.add_argument("--small-until", type=float, default=0.5, help="share of the time on cut-outs of 8x12 latents")
    parser.add_argument("--batch", type=int, default=32, help="of cut-outs; a quarter of it at full size")
    parser.add_argument("--objects", type=float, default=0.4, help="share of the steps spent on objects")
    parser.add_argument(
        "--still-share", type=float, default=0.5, help="share of these that show stills, if there are any"
    )
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--held-out", type=int, default=12, help="examples kept for validation")
    parser.add_argument("--save-every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
