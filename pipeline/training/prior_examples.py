"""What the prior learns from: scenes with places unknown, objects hidden and named, stills in which they are large."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.prior.backbone import group_mask
from pipeline.training import save_state
from pipeline.training.vae import encode_once
from pipeline.world.dataset import Stored, load
from pipeline.world.objects import SHAPES, short_name

SIZES: dict[str, Any] = dict(num_attention_heads=5, attention_head_dim=64, ffn_dim=1280, num_layers=6)
OBJECT_WINDOW = (8, 12)  # latent cells about an object
STILLS = 4  # stills in a batch for each clip
STILL_MASKS = 2  # masks and cut-outs for every object in a still: encoding one frame is cheap
STILL_SIDES = (36.0, 62.0)  # how large the hole of an object in a still is made, in pixels


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


def other_shape(name: str) -> str:
    """A short name with the shape that follows in `SHAPES`: "a red egg" for "a red ball"; compounds stay."""
    *words, shape = name.split()
    return " ".join([*words, SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]]) if shape in SHAPES else name


@torch.no_grad()
def make_examples(stored: Stored, vae: Any, rng: np.random.Generator, device) -> list[dict[str, Any]]:
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
def object_examples(stored: Stored, vae: Any, rng: np.random.Generator, device) -> list[dict[str, Any]]:
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
def still_examples(stored: Stored, vae: Any, rng: np.random.Generator, device) -> list[dict[str, Any]]:
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


def _object_example(clean: Tensor, mask: Tensor, name: str, vae: Any, device) -> dict[str, Any]:
    filled = fill_unknown(Measurement(clean * mask, mask > 0))
    batch = torch.stack([clean, filled]).to(device).mul(2).sub(1).transpose(1, 2)
    z, shown = normalise(vae, encode_once(vae, batch)).cpu()
    return {"z": z.half(), "known": torch.cat([group_mask(mask), shown]).half(), "name": name}


def normalise(vae: Any, z: Tensor) -> Tensor:
    """VAE latents B C t h w to the unit in which the flow runs."""
    mean, std = (
        torch.tensor(vae.config[k], device=z.device).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std")
    )
    return (z - mean) / std


def fingerprint(vae: Any) -> str:
    """Eight hexadecimal digits that change with the encoder: latents of one are of no use to another."""
    digest = hashlib.sha256(json.dumps([vae.config["latents_mean"], vae.config["latents_std"]]).encode())
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values():
            digest.update(tensor.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def fill_cache(data: Path, stills: Path | None, cache: Path, vae: Any, device, seconds: float) -> None:
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
