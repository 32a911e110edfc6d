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
import hashlib
import json
import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.prior.backbone import TRAIN_TIMESTEPS, group_mask
from pipeline.prior.preview import fit_latent_rgb
from pipeline.training import check_gradients, save_half, save_state, text
from pipeline.training.vae import encode_once
from pipeline.world.dataset import Stored, load
from pipeline.world.objects import COMPOUNDS, SHAPES
from pipeline.world.textures import COLOURS

SIZES: dict[str, Any] = dict(num_attention_heads=5, attention_head_dim=64, ffn_dim=1280, num_layers=6)
OBJECT_WINDOW = (8, 12)  # latent cells about an object
STILLS = 4  # stills in a batch for each clip
STILL_MASKS = 2  # masks and cut-outs for every object in a still: encoding one frame is cheap
STILL_SIDES = (36.0, 62.0)  # how large the hole of an object in a still is made, in pixels
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


# --- examples ---------------------------------------------------------------------------------------------------------


def random_mask(rng: np.random.Generator, frames: int, height: int, width: int) -> Tensor:
    """What is known (1) of a clip, T 1 H W: leading frames, first and last, some frames, or all but moving shapes."""
    mask = torch.ones(frames, 1, height, width)
    kind = rng.choice(["first", "first-last", "frames", "shapes"], p=[0.25, 0.1, 0.1, 0.55])
    if kind == "first":
        mask[int(rng.choice([1, 1, 1, 5])) :] = 0
    elif kind == "first-last":
        mask[1:-1] = 0
    elif kind == "frames":
        mask[torch.from_numpy(rng.uniform(size=frames) < rng.uniform(0.2, 0.9))] = 0
    else:
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        first_frame = rng.uniform() < 0.5
        for _ in range(int(rng.integers(1, 4))):
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            ry, rx = rng.uniform(0.08, 0.45) * height, rng.uniform(0.08, 0.35) * width
            vy, vx = rng.normal(0, 0.25, 2) * (height, width) * (rng.uniform() < 0.6)
            rounded = rng.uniform() < 0.5
            for i in range(frames):
                s = i / max(frames - 1, 1)
                dy, dx = (y - cy - vy * s).abs() / ry, (x - cx - vx * s).abs() / rx
                inside = (dy * dy + dx * dx < 1) if rounded else torch.maximum(dy, dx) < 1
                mask[i, 0][inside] = 0
        if first_frame:
            mask[0] = 1
    return mask


def well_seen(objects: Tensor) -> list[int]:
    """Which of the objects (T N H W) are neither too small nor too large to be replaced."""
    share = objects.float().mean((0, 2, 3))
    return [i for i in range(objects.shape[1]) if 0.004 < share[i] < 0.35]


def without_object(rng: np.random.Generator, hidden: Tensor) -> Tensor:
    """What is known (1) without an object (T 1 H W), T 1 H W.

    Its outline is widened as a person paints, mostly to a box about it, often a larger one: neither the outline nor the
    proportions of the hole shall give the shape away, so that the prompt is needed for it.
    """
    hidden = hidden.float()
    if rng.uniform() < 0.8:
        rows, columns = hidden.amax(-1), hidden.amax(-2)
        if rng.uniform() < 0.35:
            rows, columns = (_stretched(line, rng.uniform(0, 0.4, 2)) for line in (rows, columns))
        hidden = rows[..., None] * columns[..., None, :]
    reach = int(rng.integers(1, 9))
    for size, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        hidden = F.max_pool2d(hidden, size, 1, padding)
    return 1 - hidden


def _stretched(line: Tensor, shares: np.ndarray) -> Tensor:
    """Intervals of ones (T 1 N) made longer at either end by shares of the longest."""
    before, after = (int(share * float(line.sum(-1).max())) for share in shares)
    return F.max_pool1d(F.pad(line, (after, before)), before + after + 1, 1)


def moved_hole(rng: np.random.Generator, mask: Tensor, objects: Tensor, tries: int = 20) -> Tensor | None:
    """What is known (T 1 H W, 1 outside) with the hole moved to where no object is; None if no such place was found."""
    hidden, taken = 1 - mask, objects.any(1, keepdim=True)
    height, width = mask.shape[-2:]
    for _ in range(tries):
        dy, dx = int(rng.integers(-height // 2, height // 2)), int(rng.integers(-width // 2, width // 2))
        moved = F.pad(hidden, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)))
        moved = moved[..., max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]
        if moved.sum() > 0.6 * hidden.sum() and (moved * taken).sum() < 0.02 * moved.sum():
            return 1 - moved
    return None


def short_name(name: str) -> str:
    """Colour and shape of an object alone: "a red ball" of "a glossy red striped ball"."""
    words = name.split()
    if "in" in words:  # "a person in red"
        return name
    colour = next(word for word in words if word in COLOURS)
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {words[-1]}"


def other_shape(name: str) -> str:
    """A short name with the shape that follows in `SHAPES`: "a red egg" for "a red ball"; compounds stay."""
    *words, shape = name.split()
    return " ".join([*words, SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]]) if shape in SHAPES else name


@torch.no_grad()
def make_examples(stored: Stored, vae: AutoencoderKLWan, rng: np.random.Generator, device) -> list[dict[str, Any]]:
    """Both recordings of a scene as training targets, each with two or three things that may be known of it.

    Each example: float16 `z` C t h w and `known` n (4+C) t h w (0: the other view's warp, 1: itself behind a random
    mask, 2: itself without one object), and the `name` of that object, "" if there is none to be seen (n = 2).
    """
    views = [
        (stored.target, stored.source, stored.source_z, stored.source_path, stored.target_path, stored.target_objects),
        (stored.source, stored.target, stored.target_z, stored.target_path, stored.source_path, stored.source_objects),
    ]
    flip = rng.uniform() < 0.5
    examples = []
    for clean, other, z, path, along, objects in views:
        clean, other = clean.float() / 255, other.float() / 255
        warped, depth = warp_to_path(other, z.float(), path, along), warp_depth(z.float(), path, along)
        knowns: list[tuple[Tensor, Tensor, Tensor | None]] = [(warped.video, warped.mask.float(), depth)]
        knowns.append((clean, random_mask(rng, len(clean), *clean.shape[-2:]), None))
        seen = well_seen(objects)
        index = int(rng.choice(seen)) if seen else None
        if index is not None:
            knowns.append((clean, without_object(rng, objects[:, index : index + 1]), None))
        clips = [clean] + [fill_unknown(Measurement(video * mask, mask > 0, depth)) for video, mask, depth in knowns]
        masks = [mask for _, mask, _ in knowns]
        if flip:
            clips, masks = [c.flip(-1) for c in clips], [m.flip(-1) for m in masks]
        batch = torch.stack(clips).to(device).mul(2).sub(1).transpose(1, 2)
        latents = torch.cat([normalise(vae, encode_once(vae, clip[None])) for clip in batch]).cpu()
        known = torch.stack([torch.cat([group_mask(m), c]) for m, c in zip(masks, latents[1:], strict=True)])
        name = stored.names[index] if index is not None else ""
        examples.append({"z": latents[0].half(), "known": known.half(), "name": name})
    return examples


@torch.no_grad()
def object_examples(stored: Stored, vae: AutoencoderKLWan, rng: np.random.Generator, device) -> list[dict[str, Any]]:
    """Every object that either recording shows well, in a cut-out about it: `z`, what is `known` without, its `name`.

    In a whole picture an object is a small part of what has to be learned, and prompts were not followed; here it is
    most of it. Every other hole comes again where no object is, nameless: without a prompt the ground is carried on.
    Shapes as in `make_examples`, for h, w = OBJECT_WINDOW.
    """
    flip = rng.uniform() < 0.5
    examples = []
    for clean, objects in ((stored.source, stored.source_objects), (stored.target, stored.target_objects)):
        clean = clean.float() / 255
        if flip:
            clean, objects = clean.flip(-1), objects.flip(-1)
        holes = [(without_object(rng, objects[:, i : i + 1]), stored.names[i]) for i in well_seen(objects)]
        moved = [moved_hole(rng, mask, objects) for mask, _ in holes[::2]]
        holes += [(mask, "") for mask in moved if mask is not None]
        for mask, name in holes:
            cut: tuple[Any, ...] = (...,)
            for place, side, cells in zip(_extent(mask < 1), clean.shape[-2:], OBJECT_WINDOW, strict=True):
                extent = min(8 * cells, side)
                centre = float(place[int(rng.integers(len(place)))] + place.float().mean()) / 2
                pairs = round((centre - extent / 2) / 16)  # the transformer's patches are two cells wide
                start = 16 * min(max(pairs, 0), (side - extent) // 16)
                cut = (*cut, slice(start, start + extent))
            examples.append(_object_example(clean[cut], mask[cut], name, vae, device))
    return examples


@torch.no_grad()
def still_examples(stored: Stored, vae: AutoencoderKLWan, rng: np.random.Generator, device) -> list[dict[str, Any]]:
    """Objects as `object_examples` gives them, each as large as its cut-out allows: small ones hardly show a shape.

    Pictures are made smaller until a hole spans `STILL_SIDES` pixels, so that they are best rendered large.
    """
    windows = [8 * cells for cells in OBJECT_WINDOW]
    examples = []
    for clean, objects in ((stored.source, stored.source_objects), (stored.target, stored.target_objects)):
        clean, sides = clean.float() / 255, clean.shape[-2:]
        for i in well_seen(objects):
            seen = zip(_extent(objects[:, i : i + 1]), sides, strict=True)
            if any(place[0] == 0 or place[-1] == side - 1 for place, side in seen):
                continue  # a part of it lies outside of the picture
            mask, name = without_object(rng, objects[:, i : i + 1]), stored.names[i]
            if rng.uniform() < 0.15:
                mask, name = moved_hole(rng, mask, objects), ""
            if mask is None:
                continue
            scale = float(rng.uniform(*STILL_SIDES)) / max(int(p[-1] - p[0]) + 1 for p in _extent(mask < 1))
            size = [max(round(min(scale, 1) * side), window) for side, window in zip(sides, windows, strict=True)]
            smaller = lambda x, size=size: F.interpolate(x, size, mode="bilinear", antialias=True)
            shown, mask = smaller(clean).clamp(0, 1), (smaller(mask) > 1 - 1e-4).float()
            cut: tuple[Any, ...] = (...,)
            for place, side, window in zip(_extent(mask < 1), size, windows, strict=True):
                first, last = max(int(place[-1]) + 1 - window, 0), min(int(place[0]), side - window)
                start = int(rng.integers(min(first, last), max(first, last) + 1))  # the hole is in sight as a whole
                cut = (*cut, slice(start, start + window))
            shown, mask = shown[cut], mask[cut]
            if rng.uniform() < 0.5:
                shown, mask = shown.flip(-1), mask.flip(-1)
            examples.append(_object_example(shown, mask, name, vae, device))
    return examples


def _extent(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns in which something of T 1 H W is true."""
    return hidden.any(0)[0].any(1).nonzero()[:, 0], hidden.any(0)[0].any(0).nonzero()[:, 0]


def _object_example(clean: Tensor, mask: Tensor, name: str, vae: AutoencoderKLWan, device) -> dict[str, Any]:
    filled = fill_unknown(Measurement(clean * mask, mask > 0))
    batch = torch.stack([clean, filled]).to(device).mul(2).sub(1).transpose(1, 2)
    z, shown = normalise(vae, encode_once(vae, batch)).cpu()
    return {"z": z.half(), "known": torch.cat([group_mask(mask), shown]).half(), "name": name}


def normalise(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """VAE latents B C t h w to the unit in which the flow runs."""
    mean, std = (
        torch.tensor(vae.config[k], device=z.device).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std")
    )
    return (z - mean) / std


def fingerprint(vae: AutoencoderKLWan) -> str:
    """Eight hexadecimal digits that change with the encoder: latents of one are of no use to another."""
    digest = hashlib.sha256(json.dumps([vae.config["latents_mean"], vae.config["latents_std"]]).encode())
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values():
            digest.update(tensor.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def fill_cache(data: Path, stills: Path | None, cache: Path, vae: AutoencoderKLWan, device, seconds: float) -> None:
    """Encode scenes that are not in the cache yet, for at most `seconds`: all their objects first, then the rest."""
    started = time.time()
    jobs = [(data, cache / "objects", object_examples), (data, cache, make_examples)]
    if stills is not None:
        jobs.insert(0, (stills, cache / "stills", still_examples))
    for scenes, folder, make in jobs:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(scenes.glob("*.npz")):
            target = folder / f"{path.stem}.pt"
            if target.exists():
                continue
            if time.time() - started > seconds:
                return
            stored = load(path)
            rng, examples = np.random.default_rng(int(path.stem)), []
            for _ in range(STILL_MASKS if scenes == stills else 1):
                examples += make(stored, vae, rng, device)
            save_state({"examples": examples, "caption": stored.caption}, target)


Item = tuple[dict[str, Any], str]  # an example and the caption of its scene


class Examples:
    """Cached examples in memory: `scenes` of whole pictures, `objects`, and those of `stills`, one frame each;
    `refresh` takes in what is new on disk.

    What the first files hold is held out instead: `count` whole pictures, the objects of the same scenes, and the
    stills of `count` files.
    """

    def __init__(self, cache: Path, count: int) -> None:
        self.cache, self.seen = cache, set()
        self.scenes: list[Item] = []
        self.objects: list[Item] = []
        self.stills: list[Item] = []
        self.held_out: list[Item] = []
        self.held_out_objects: list[Item] = []
        self.held_out_stills: list[Item] = []
        for path in sorted(cache.glob("*.pt")):
            if len(self.held_out) >= count:
                break
            self.held_out += self._read(path)
            objects = cache / "objects" / path.name
            self.seen.add(objects)  # those that are encoded later are not for training either
            if objects.exists():
                self.held_out_objects += self._read(objects)
        for path in sorted((cache / "stills").glob("*.pt"))[:count]:
            self.held_out_stills += self._read(path)
        self.refresh()

    def _read(self, path: Path) -> list[Item]:
        self.seen.add(path)
        stored = torch.load(path, weights_only=True)
        return [(example, stored["caption"]) for example in stored["examples"]]

    def refresh(self) -> None:
        cache = self.cache
        for folder, items in (
            (cache, self.scenes),
            (cache / "objects", self.objects),
            (cache / "stills", self.stills),
        ):
            for path in sorted(folder.glob("*.pt")):
                if path not in self.seen:
                    items += self._read(path)


def object_caption(name: str, scene: str, rng: np.random.Generator) -> str:
    """What a prompt may say of an object to be made: in two thirds of the cases nothing but its name; "" for none."""
    if not name:
        return ""
    name = name if rng.uniform() < 0.5 else short_name(name)
    return name if rng.uniform() < 0.67 else f"{name}, {scene}"


def draw_objects(
    items: list[Item], count: int, rng: np.random.Generator, named: bool = False
) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of `object_examples` as `draw` gives it; `named`: by colour and shape alone, in few tokens."""
    chosen = [items[i] for i in rng.integers(len(items), size=count)]
    say = lambda example, scene: (
        example["name"] and short_name(example["name"]) if named else object_caption(example["name"], scene, rng)
    )
    captions = ["" if rng.integers(16) == 0 else say(*item) for item in chosen]
    stack = lambda key: torch.stack([example[key] for example, _ in chosen]).float()
    return stack("z"), stack("known"), captions


def draw(
    items: list, count: int, window: tuple[int, int] | None, rng: np.random.Generator, grey: Tensor
) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of z (B C t h w), known (B 4+C t h w) and captions; cut to `window` latent cells if given.

    Known is the warp in two fifths of the examples, all but an object in another quarter, nothing in an eighth. Every
    eighth prompt is empty; where an object is to be made, two thirds name just that.
    """
    zs, knowns, captions = [], [], []
    for index in rng.integers(len(items), size=count):
        example, caption = items[index]
        choice = rng.choice(4, p=[0.4, 0.2, 0.28, 0.12])
        z = example["z"].float()
        if choice == 2 and example["name"]:
            caption = object_caption(example["name"], caption, rng)
        if choice < 3:
            known = example["known"][choice if choice < 2 or example["name"] else 1].float()
        else:
            known = torch.cat([torch.zeros(4, *z.shape[1:]), grey.expand_as(z)])
        if window is not None:
            top, left = (2 * int(rng.integers((n - m) // 2 + 1)) for n, m in zip(z.shape[-2:], window, strict=True))
            cut = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            z, known = z[cut], known[cut]
        zs.append(z)
        knowns.append(known)
        captions.append("" if rng.integers(8) == 0 else caption)
    return torch.stack(zs), torch.stack(knowns), captions


# --- training ---------------------------------------------------------------------------------------------------------


def embed(encoder: UMT5EncoderModel, tokenizer, captions: list[str], device, tokens: int = text.TEXT_TOKENS) -> Tensor:
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
        kept = ("steps", "guidance_scale", "replace_guidance_scale", "strength", "mask_encoder", "steady", "softness")
        settings |= {k: v for k, v in json.loads(path.read_text()).items() if k in kept}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    vae = AutoencoderKLWan.from_pretrained(args.vae, torch_dtype=torch.float32).to(device).eval().requires_grad_(False)
    cache = args.cache or args.data.with_name(f"{args.data.name}-latents-{fingerprint(vae)}")
    fill_cache(args.data, args.stills, cache, vae, device, args.first_fill)
    examples = Examples(cache, args.held_out)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer").exists():
        text.train_tokenizer([caption for _, caption in examples.scenes], args.out / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(args.out / "tokenizer")

    channels = vae.config.z_dim
    if (args.out / "transformer" / "config.json").exists():  # go on from given weights
        transformer = WanTransformer3DModel.from_pretrained(args.out / "transformer", torch_dtype=torch.float32)
        encoder = UMT5EncoderModel.from_pretrained(args.out / "text_encoder", torch_dtype=torch.float32)
    else:
        transformer = WanTransformer3DModel(**transformer_config(channels))
        torch.nn.init.zeros_(transformer.proj_out.weight)
        torch.nn.init.zeros_(transformer.proj_out.bias)
        encoder = UMT5EncoderModel(UMT5Config(**text.TEXT_CONFIG))
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

    sample = load(min(args.data.glob("*.npz"))).source.float() / 255
    frame_count, _, height, width = sample.shape
    grey_clip = torch.zeros(1, 3, frame_count, 16, 16, device=device)
    grey = normalise(vae, encode_once(vae, grey_clip))[0, :, :, :1, :1].cpu()
    z = normalise(vae, encode_once(vae, sample[None].to(device).mul(2).sub(1).transpose(1, 2)))[0].cpu()
    factors = fit_latent_rgb(z, sample)
    latent_rgb = {"weight": factors.weight.tolist(), "bias": factors.bias.tolist()}

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
        write_folder(args.out, average, latent_rgb, frame_count, height * width)

    while ran() < budget:
        progress = min(ran() / budget, 1.0)
        small = progress < args.small_until
        window, batch = ((8, 12), args.batch) if small else (None, max(1, args.batch // 4))
        tokens = text.TEXT_TOKENS
        if examples.objects and rng.uniform() < args.objects:
            # a still is cheaper and says as much of a shape as a clip
            still = bool(examples.stills) and rng.uniform() < args.still_share
            batch, tokens = (STILLS * args.batch, SHORT) if still else (args.batch, tokens)
            z, known, captions = draw_objects(examples.stills if still else examples.objects, batch, rng, named=still)
        else:
            z, known, captions = draw(examples.scenes, batch, window, rng, grey)
        sigma = noise_levels(batch, generator, SHIFT**2 * (1 if tokens > SHORT else 2))  # shapes are decided early
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
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(both.parameters()), 1 - decay)
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
            print(
                f"step {step} examples {len(examples.scenes)} objects {len(examples.objects)} "
                f"stills {len(examples.stills)} held-out",
                {k: round(v, 4) for k, v in figures.items()},
                flush=True,
            )
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
