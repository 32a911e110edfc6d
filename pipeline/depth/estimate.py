"""Depth of a clip: estimated by a small network that sees the whole clip at once, by a model of the hub, or given.

All depth here is the distance along the optical axis. Estimated depth has no unit; its median is set to 4, so that
distances and presets behave alike from clip to clip.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from pipeline import InputError
from pipeline.depth.depthcrafter import DepthCrafter, Progress, load_depthcrafter
from pipeline.media.video import resize
from pipeline.models import table as models

_AT_ONCE = 16  # frames that are resized at once: a long clip should not take much more memory than itself
WINDOW, OVERLAP = 32, 8  # frames that the network sees at once, and how many of them the next window shares
_STRIDE = 32  # of the network's coarsest level
_MEDIAN = 4.0  # of depth that has no unit
_FAR_ESTIMATED = 40.0  # the farthest in units of the nearest hundredth; the world's sky in training
_FAR_GIVEN = 1000.0
_FOLLOWED = 0.25  # share of the pixels that the flow must follow to be believed
_JUMP = 0.1  # where disparity bends by more than this share of itself, two surfaces meet
_PICTURES = (".exr", ".png")
_MAX_SIDE = 8192  # pixels
_MAX_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Depth:
    """`z`: distance along the optical axis, T H W, finite and > 0. `metric`: in metres, else in the clip's own unit."""

    z: Float[Tensor, "T H W"]
    metric: bool


# --- the network ------------------------------------------------------------------------------------------------------


class _Norm(nn.Module):
    """Scales the channels of each pixel to unit root mean square: nothing leaks between pixels or frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x) * self.weight.to(x)


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class _InTime(nn.Module):
    """Each frame takes from its neighbours on both sides, and the ends from themselves; begins as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.mix = nn.Conv2d(3 * channels, channels, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.silu(self.norm(x)).unflatten(0, (-1, frames))
        before = torch.cat([y[:, :1], y[:, :-1]], 1)
        after = torch.cat([y[:, 1:], y[:, -1:]], 1)
        return x + self.mix(torch.cat([before, y, after], 2).flatten(0, 1))


class _Attention(nn.Module):
    """All places of all frames see one another. No place in time is marked, so a clip that stands still stays still."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        last = nn.Linear(3 * channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), last)
        for linear in (self.out, last):  # begins as the identity
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(attended, "b h n c -> b n (h c)"))
        return x + self.mlp(self.norm_mlp(x))


class DepthNet(nn.Module, PyTorchModelHubMixin):
    """Relative log depth of a whole clip: a U-Net over space with mixing over time, 3 to 4 M parameters.

    The levels have strides 2 to 32; the three coarse ones mix neighbouring frames, the two coarsest attend over the
    whole clip. The picture's own outlines place the depth's: each fine pixel is a learned mixture of the 3x3 half-size
    predictions around it, as RAFT (arXiv 2003.12039) does for flow.

    `pixels`: height times width of the pictures it was trained on; larger ones are best shrunk to that first.
    `attentions`: how many layers of attention there are at the level before the coarsest, on the way up.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (24, 40, 80, 128, 192),
        heads: int = 4,
        pixels: int = 64 * 96,
        attentions: int = 0,
    ):
        super().__init__()
        self.pixels = pixels
        pairs = list(pairwise(channels))
        self.stem = nn.Conv2d(5, channels[0], 3, stride=2, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.down_blocks = nn.ModuleList(_Block(b) for _, b in pairs)
        self.down_times = nn.ModuleList(_InTime(b) for _, b in pairs[1:])
        self.places = nn.Linear(10, channels[-1])
        self.attentions = nn.ModuleList(_Attention(channels[-1], heads) for _ in range(2))
        if attentions:
            self.fine_places = nn.Linear(10, channels[-2])
            nn.init.zeros_(self.fine_places.weight)
            nn.init.zeros_(self.fine_places.bias)
        self.fine_attentions = nn.ModuleList(_Attention(channels[-2], heads) for _ in range(attentions))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up_blocks = nn.ModuleList(_Block(a) for a, _ in pairs)
        self.up_times = nn.ModuleList(_InTime(a) for a, _ in pairs[2:])
        self.head = nn.Sequential(_Norm(channels[0]), nn.Conv2d(channels[0], 1 + 36, 3, padding=1))

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T H W"]:
        """Log depth up to one additive constant per clip, of frames in [0, 1]. Any T >= 1, H and W."""
        batch, count, _, height, width = frames.shape
        # one brightness and contrast for the clip: per frame it would flicker
        mean, std = frames.mean((1, 2, 3, 4), keepdim=True), frames.std((1, 2, 3, 4), keepdim=True)
        x = ((frames - mean) / (std + 0.05)).flatten(0, 1)
        x = torch.cat([x, _places(height, width, x).expand(len(x), -1, -1, -1)], 1)
        x = F.pad(x, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))

        skips = []
        for level, (down, block) in enumerate(zip(self.downs, self.down_blocks, strict=True)):
            skips.append(x)
            x = block(down(x))
            if level >= 1:
                x = self.down_times[level - 1](x, count)
        x = _attend(x, count, self.places, self.attentions)
        for level in reversed(range(len(self.ups))):
            x = skips[level] + F.interpolate(self.ups[level](x), scale_factor=2, mode="nearest")
            x = self.up_blocks[level](x)
            if level == len(self.ups) - 1 and self.fine_attentions:
                x = _attend(x, count, self.fine_places, self.fine_attentions)
            if level >= 2:
                x = self.up_times[level - 2](x, count)

        with torch.autocast(x.device.type, enabled=False):  # depths far from 0 would be coarse in bfloat16
            out = self.head(x.float())
        coarse, weights = out[:, :1], out[:, 1:].unflatten(1, (9, 4)).softmax(1)
        around = F.unfold(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, coarse.shape[-2:])
        fine = F.pixel_shuffle((around[:, :, None] * weights).sum(1), 2)
        log_z = fine[:, 0, :height, :width].unflatten(0, (batch, count))
        # the constant is nobody's: left free, it drifts away in training
        return log_z - log_z.mean((1, 2, 3), keepdim=True)


def _attend(x: Tensor, frames: int, places: nn.Linear, attentions: nn.ModuleList) -> Tensor:
    """Layers of attention over all places of the `frames` of each clip, of features (B frames) C h w."""
    h, w = x.shape[-2:]
    where = _places(h, w, x)[0].flatten(1).T
    waves = [f(math.pi * n * where) for n in (1, 2) for f in (torch.sin, torch.cos)]
    tokens = rearrange(x, "(b t) c h w -> b t (h w) c", t=frames) + places(torch.cat([where, *waves], 1))
    tokens = tokens.flatten(1, 2)
    for attention in attentions:
        tokens = attention(tokens)
    return rearrange(tokens, "b (t h w) c -> (b t) c h w", t=frames, h=h).contiguous(memory_format=torch.channels_last)


def _places(height: int, width: int, like: Tensor) -> Float[Tensor, "1 2 H W"]:
    """Row and column of the pixel centres in [-1, 1]."""
    y = (torch.arange(height, device=like.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=like.device) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None].to(like.dtype)


# --- estimating -------------------------------------------------------------------------------------------------------


class HubDepth:
    """A depth model of transformers that sees one frame at a time.

    `inverse`: it predicts disparity up to an affine map (Depth Anything, MiDaS and DPT), else distance in metres.
    """

    def __init__(self, model: Any, processor: Any, *, inverse: bool):
        self.model, self.processor, self.inverse = model, processor, inverse

    @torch.no_grad()
    def predict(
        self, frames: Float[Tensor, "T 3 H W"], size: tuple[int, int]
    ) -> Iterator[Progress | Float[Tensor, "T h w"]]:
        """What the model says of each frame by itself, at `size`, on the device of the frames; it comes last."""
        predictions = []
        for number, frame in enumerate(frames):
            image = (rearrange(frame, "c h w -> h w c").clamp(0, 1) * 255).round().byte().cpu().numpy()
            inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
            found = self.processor.post_process_depth_estimation(self.model(**inputs), target_sizes=[size])
            predictions.append(found[0]["predicted_depth"].float().to(frames.device))
            yield f"Estimating depth: frame {number + 1} of {len(frames)}", (number + 1) / len(frames)
        yield torch.stack(predictions)


DepthModel = DepthNet | HubDepth | DepthCrafter


def estimate_depth(frames: Float[Tensor, "T 3 H W"], model: DepthModel) -> Depth:
    """As `estimate`, without its progress, at the size of the frames."""
    (*_, depth) = estimate(frames, model)
    assert isinstance(depth, Depth), "estimating ends with the depth"
    return depth


@torch.no_grad()
def estimate(
    frames: Float[Tensor, "T 3 H W"], model: DepthModel, size: tuple[int, int] | None = None
) -> Iterator[Progress | Depth]:
    """Depth of a clip in [0, 1], of any length and size, on its device; it comes last, after progress.

    The median is 4, unless the model knows metres; nothing is farther than 40 times the nearest parts, so that sky is
    finite. Of disparity known up to an affine map (Depth Anything, MiDaS, DepthCrafter) zero counts as infinity, and so
    as those 40 times: which shift the map has, no such model says. size: (H, W) of the depth, None for that of the
    frames. model: from `load_depth_model`. Raises `InputError`.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: wanted T 3 H W")
    size = size or _size_of(frames)
    if isinstance(model, HubDepth):
        found = yield from _last(model.predict(frames, size))
        if model.inverse:
            aligned = align_disparity(found, resize(frames.float(), size))
            yield Depth(_bounded(-_positive(aligned).log()), metric=False)
        else:
            yield Depth(_repair(found, "the prediction of the depth model"), metric=True)
        return
    if isinstance(model, DepthCrafter):
        disparity = yield from _last(model.disparity(frames))
        z = _bounded(-_positive(disparity).log()).to(frames.device)
        small = resize(frames.float(), _size_of(z))
    else:
        log_z, small = _two_looks(frames, model)
        z = _bounded(log_z)
    yield Depth(resize_depth(z, size, guide=(small, resize(frames.float(), size))), metric=False)


def _last(events: Iterator[Progress | Tensor]) -> Generator[Progress, None, Tensor]:
    """Passes progress on, and returns the tensor that comes last."""
    for event in events:
        if isinstance(event, Tensor):
            return event
        yield event
    raise AssertionError("there is a result at the end")


def _two_looks(frames: Float[Tensor, "T 3 H W"], model: DepthNet) -> tuple[Float[Tensor, "T h w"], Tensor]:
    """Log depth, and the frames at its size: the mean of a look at the size of the network's training and of one at the
    mirrored clip, half as large again. Their errors differ, so that the mean has less of them."""
    device = next(model.parameters()).device
    small, large = (resize(frames.float(), _network_size(*_size_of(frames), n * model.pixels)) for n in (1, 1.5))
    first = _in_windows(small.to(device), model).to(frames.device)
    second = _in_windows(large.flip(-1).to(device), model).flip(-1).to(frames.device)
    first = resize_depth(first.exp(), _size_of(second), guide=(small, large)).log()
    return (first - first.median() + second - second.median()) / 2, large


def _network_size(height: int, width: int, pixels: float) -> tuple[int, int]:
    """The size at which the network looks at a picture: if the picture is larger, about that of its training."""
    if height * width <= 1.3 * pixels:
        return height, width
    scale = math.sqrt(pixels / (height * width))
    fit = lambda n: min(n, max(_STRIDE, round(n * scale / _STRIDE) * _STRIDE))
    return fit(height), fit(width)


def _in_windows(
    frames: Float[Tensor, "T 3 h w"], model: Callable[[Tensor], Tensor], window: int = WINDOW, overlap: int = OVERLAP
) -> Float[Tensor, "T h w"]:
    """Log depth of a clip too long for one look: each window takes its scale from what it shares with the last."""
    log_z = model(frames[None, :window])[0]
    while (done := len(log_z)) < len(frames):
        start = min(done - overlap, len(frames) - window)
        found = model(frames[None, start : start + window])[0]
        shared = done - start
        found = found + (log_z[start:] - found[:shared]).median()
        fade = torch.linspace(0, 1, shared + 2, device=found.device)[1:-1, None, None]
        log_z = torch.cat([log_z[:start], torch.lerp(log_z[start:], found[:shared], fade), found[shared:]])
    return log_z


def _size_of(video: Tensor) -> tuple[int, int]:
    return int(video.shape[-2]), int(video.shape[-1])


def _bounded(log_z: Float[Tensor, "T h w"]) -> Float[Tensor, "T h w"]:
    """Depth with median 4 between half the nearest hundredth and 40 times that."""
    sample = _sample(log_z)
    near, middle = sample.quantile(0.01), sample.median()
    return (log_z.clamp(near - math.log(2), near + math.log(_FAR_ESTIMATED)) - middle).exp() * _MEDIAN


def _sample(values: Tensor, most: int = 200_000) -> Tensor:
    """At most about `most` of the values, evenly picked: quantiles of millions are slow."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // most)]


def _positive(disparity: Float[Tensor, "T H W"], ratio: float = 1000.0) -> Float[Tensor, "T H W"]:
    """Disparity with all that is at infinity, or beyond, put `ratio` times farther than the nearest hundredth."""
    near = _sample(disparity[disparity.isfinite()]).quantile(0.99)
    if not near > 0:
        return torch.ones_like(disparity)  # all at infinity: a plane
    return disparity.clamp(min=near / ratio)


def align_disparity(disparity: Float[Tensor, "T H W"], frames: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T H W"]:
    """Frames whose scale and shift were free, each brought to those of the one before it.

    Pixels are compared along the optical flow (DIS, arXiv 1603.03590) where it leads back to where it came from; in
    place where it does so almost nowhere, as at a cut. The scale is the ratio of the spreads: a least-squares slope is
    below one under noise, and would shrink the depth of a clip frame by frame. The fifth of the pixels that agrees
    least, whose disparity itself changed, is left out.
    """
    import cv2

    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    h, w = _size_of(disparity)
    grid = np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), -1)

    def look_up(field: np.ndarray, at: np.ndarray, outside: Any) -> np.ndarray:
        x, y = at[..., 0], at[..., 1]
        return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=outside)

    def grey(frame: Tensor) -> np.ndarray:
        rgb = (rearrange(frame, "c h w -> h w c").float().clamp(0, 1) * 255).round().byte().cpu().numpy()
        return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)

    def seen_before(now: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the last frame each pixel was, H W 2, and whether that can be trusted."""
        if min(h, w) < 16:  # too small for flow
            return grid, np.zeros((h, w), bool)
        back, forth = dis.calc(now, last, None), dis.calc(last, now, None)
        at = grid + back
        return at, np.linalg.norm(back + look_up(forth, at, (1e3, 1e3)), axis=-1) < 1

    aligned, last = [disparity[0]], grey(frames[0])
    for raw, frame in zip(disparity[1:], frames[1:], strict=True):
        at, good = seen_before(now := grey(frame), last)
        if good.mean() < _FOLLOWED:
            at, good = grid, np.ones_like(good)
        moved = torch.from_numpy(look_up(aligned[-1].float().cpu().numpy(), at, 0.0)).to(raw)
        known = torch.from_numpy(good).to(raw.device)
        x, y, last = _sample(raw[known], 20_000), _sample(moved[known], 20_000), now
        keep = torch.ones_like(x, dtype=torch.bool)
        scale = shift = x.new_zeros(())
        for _ in range(4):
            spread = x[keep].std(correction=0)
            scale = y[keep].std(correction=0) / spread if spread > 0 else torch.ones_like(spread)
            shift = y[keep].mean() - scale * x[keep].mean()
            error = (scale * x + shift - y).abs()
            keep = error <= error.quantile(0.8)
        aligned.append(scale * raw + shift)
    return torch.stack(aligned)


def resize_depth(
    z: Float[Tensor, "T h w"], size: tuple[int, int], guide: tuple[Tensor, Tensor] | None = None
) -> Float[Tensor, "T H W"]:
    """Depth at size (H, W): linear in disparity inside surfaces, never a mixture of two, which would hang in the air.

    Shrunk, each pixel takes the depth at its centre. Enlarged, pixels at an edge take the nearest one's, or with
    `guide` (the pictures T 3 h w and T 3 H W of both sizes) that of the one of the nine around whose colour is most
    alike.
    """
    (h, w), (H, W) = _size_of(z), size
    if (h, w) == (H, W):
        return z
    if len(z) > _AT_ONCE:
        parts = zip(*(video.split(_AT_ONCE) for video in (z, *(guide or ()))), strict=True)
        return torch.cat([resize_depth(part, size, (both[0], both[1]) if both else None) for part, *both in parts])
    nearest = F.interpolate(z[:, None], size, mode="nearest-exact")[:, 0]
    if h > H or w > W:
        return nearest
    disparity = 1 / z[:, None]
    smooth = 1 / F.interpolate(disparity, size, mode="bilinear", align_corners=False)[:, 0]
    # Disparity is linear on any plane, however steep: what bends is an edge.
    bend = torch.zeros_like(disparity)
    bend[..., 1:-1] = disparity.diff(n=2, dim=-1).abs()
    bend[..., 1:-1, :] = torch.maximum(bend[..., 1:-1, :], disparity.diff(n=2, dim=-2).abs())
    steps = F.max_pool2d((bend > _JUMP * disparity).float(), 3, 1, 1)  # those that only touch at a corner, too
    edge = F.interpolate(steps, size, mode="nearest-exact")[:, 0] > 0
    if guide is None:
        return torch.where(edge, nearest, smooth)

    small, full = guide
    t, i, j = edge.nonzero(as_tuple=True)
    row, column = (i + 0.5) * (h / H) - 0.5, (j + 0.5) * (w / W) - 0.5
    colour = full[t, :, i, j]
    best, chosen = torch.full_like(row, math.inf), nearest[t, i, j]
    for dy, dx in product((-1, 0, 1), repeat=2):
        y, x = (row.round() + dy).clamp(0, h - 1).long(), (column.round() + dx).clamp(0, w - 1).long()
        cost = (colour - small[t, :, y, x]).abs().sum(1) + 0.05 * ((y - row) ** 2 + (x - column) ** 2)
        chosen = torch.where(cost < best, z[t, y, x], chosen)
        best = torch.minimum(cost, best)
    smooth[t, i, j] = chosen
    return smooth


def subject_distance(depth: Depth) -> float:
    """Distance of what the clip shows: the median over the central half (in height and width) of its first frame."""
    height, width = depth.z.shape[-2:]
    top, left = height // 4, width // 4
    return float(depth.z[0, top : height - top, left : width - left].median())


def load_depth_model(ref: str, device: str | torch.device = "cpu") -> DepthModel:
    """The depth model `ref`: a name of `models.MODELS`, a folder, or the hub id of a model of transformers.

    A folder holds a `DepthNet`, a depth model of transformers or the parts of DepthCrafter, or is a backbone's with a
    sub-folder `depth`. Of the models of transformers those of type depth_anything and dpt are known, for example
    depth-anything-v2-small of the table (Apache-2.0). Fetches what is on the hub and not in its cache; whether the user
    has accepted its terms is for the caller to ask (`models.check_accepted`). Weights are read from safetensors only,
    never from pickles. Raises InputError.
    """
    spec = models.find(ref)
    if spec is not None and spec.name == "depthcrafter":
        with _naming_remedy():
            return load_depthcrafter(device=device)
    if spec is None or spec.local:
        folder = Path(models.resolve(spec.name) if spec else ref).expanduser()
    elif spec.role == "depth":
        with _naming_remedy():
            folder = models.download(spec)[0]
    else:
        raise InputError(f"The model {ref!r} is for {spec.role}, not for depth.")
    if (folder / "depth" / "config.json").is_file():
        folder = folder / "depth"
    if (folder / "unet").is_dir() and (folder / "image_encoder").is_dir():
        return load_depthcrafter(folder, device)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"The folder {ref!r} holds no depth model: it has no config.json.")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if "model_type" not in config:
                if not (folder / "model.safetensors").is_file():
                    raise InputError(f"The depth model {ref!r} has no weights: model.safetensors is missing.")
                # as from_pretrained does, but silently, and never from a pickle; float16 weights fill a float32 network
                net = DepthNet(**config)
                net.load_state_dict(load_file(folder / "model.safetensors"))
                return net.eval().requires_grad_(False).to(device)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The depth model {ref!r} cannot be read: {error}") from error
        return _load_hub_model(ref, folder, device)
    try:
        models.resolve(ref)
    except InputError:
        raise InputError(
            f"Unknown depth model {ref!r}: give nano, depth-anything-v2-small, depthcrafter, a folder with a depth "
            "model, or a Hugging Face id such as depth-anything/Depth-Anything-V2-Small-hf."
        ) from None
    with _naming_remedy():
        _refuse_unknown(ref, models.fetch(ref, ["config.json"]))  # before its weights
        folder = models.fetch(ref, ["config.json", "preprocessor_config.json", "*.safetensors"])
    return _load_hub_model(ref, folder, device)


def fetch_depth_model(ref: str, accepted: Collection[str] = ()) -> None:
    """Fetch a depth model of the table, if it is not on this machine; `load_depth_model` then finds it there.

    accepted: names of models whose terms the user has accepted. Raises `InputError`.
    """
    spec = models.find(ref)
    if spec is not None and spec.role == "depth":
        with _naming_remedy():
            models.download(spec, accepted)


@contextmanager
def _naming_remedy() -> Iterator[None]:
    """What can be done about depth where a model cannot be had."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error} Without it, use the depth model nano, which comes with the program, or give the depth as a file."
        ) from error


def _refuse_unknown(ref: str, folder: Path) -> None:
    """Raises `InputError` for a model of transformers that is none of the known depth models."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"The depth model {ref!r} cannot be read: {error}") from error
    if kind not in ("depth_anything", "dpt"):
        raise InputError(
            f"The depth model {ref!r} is of type {kind}; known are depth_anything and dpt, for example "
            "depth-anything/Depth-Anything-V2-Small-hf. Video Depth Anything and Depth Anything 3 are not in "
            "transformers and cannot be used."
        )


def _load_hub_model(ref: str, folder: Path, device: str | torch.device) -> HubDepth:
    import transformers

    _refuse_unknown(ref, folder)
    try:
        # the plain (PIL) class where there are two: the other one needs torchvision
        cls = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor
        processor = cls.from_pretrained(folder)
        model = transformers.AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"The depth model {ref!r} could not be loaded: {str(error).splitlines()[0]}") from error
    inverse = getattr(model.config, "depth_estimation_type", "relative") == "relative"
    return HubDepth(model.eval().requires_grad_(False).to(device), processor, inverse=inverse)


# --- given by the user ------------------------------------------------------------------------------------------------


def load_depth(
    path: str | os.PathLike, frames: int, size: tuple[int, int], *, start: int = 0, stride: int = 1
) -> Depth:
    """The user's depth of `frames` frames at `size` = (H, W).

    path: an .npz with an array T H W named z, depth or disparity (or with a single array of another name, which is
    depth unless its name contains "disp"; a true scalar `metric` says metres), or a folder of one .exr or 16-bit .png a
    frame, in the order of their numbers, or a single such picture. Disparity 0 is infinity. Pixels that are NaN or not
    positive take the value of the nearest valid one; infinite ones become very far.

    A file of the whole clip is picked from with `start` and `stride`, as the clip was; one with exactly `frames` frames
    otherwise is taken as it is. Depth keeps its unit, disparity gets a median depth of 4. Raises InputError.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"The depth {path.name} does not exist; give an .npz file or a folder of .exr or .png pictures."
        )
    if path.is_dir() or path.suffix.lower() in _PICTURES:
        values, inverse, metric = _read_pictures(path, frames, start, stride), False, False
    elif path.suffix.lower() == ".npz":
        values, inverse, metric = _read_npz(path, frames, start, stride)
    else:
        raise InputError(
            f"The depth {path.name} is of a kind that cannot be read; give an .npz file, or a folder of .exr or 16-bit "
            ".png pictures."
        )
    if not np.isfinite(values).any():
        raise InputError(
            f"The depth {path.name} has no valid value in the frames that are used: all are NaN or infinite."
        )
    (h, w), (H, W) = values.shape[1:], size
    if abs(math.log((w / h) / (W / H))) > 0.03 + 1 / min(h, w, H, W):
        raise InputError(
            f"The depth {path.name} is {w}x{h}, which has not the proportions of the clip ({W}x{H}); give depth of the "
            "whole picture, in its proportions."
        )
    z = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if inverse:
        disparity = torch.where(z == math.inf, math.nan, z)  # infinitely near is no place
        z = 1 / _positive(disparity, _FAR_GIVEN)
    else:
        valid = z[(z > 0) & z.isfinite()]
        if len(valid):
            z = z.clamp(max=float(_sample(valid).quantile(0.01)) * _FAR_GIVEN)  # NaN stays
    z = resize_depth(_repair(z, f"The depth {path.name}"), size)
    return Depth(z * (_MEDIAN / _sample(z).median()) if inverse else z, metric)


def _repair(z: Float[Tensor, "T H W"], name: str) -> Float[Tensor, "T H W"]:
    """Depth whose pixels that are NaN, infinite or not positive take the nearest valid value of their frame.

    A frame without any takes the nearest frame in time that has some.
    """
    valid = (z > 0) & z.isfinite()
    if valid.all():
        return z
    some = valid.flatten(1).any(1)
    if not some.any():
        raise InputError(
            f"{name} has no valid value in the frames that are used: all are NaN, infinite or not positive."
        )
    good = some.nonzero()[:, 0]
    z, valid = z.clone(), valid.cpu().numpy()
    for t in good.tolist():
        if not valid[t].all():
            nearest = distance_transform_edt(~valid[t], return_distances=False, return_indices=True)
            i, j = torch.from_numpy(np.asarray(nearest))
            z[t] = z[t, i, j]
    return z[good[(good[None] - torch.arange(len(z), device=z.device)[:, None]).abs().argmin(1)]]


def _pick(total: int, frames: int, start: int, stride: int, name: str) -> range:
    """Which of a file's `total` frames belong to the clip's."""
    picked = range(start, start + frames * stride, stride)
    if total > picked[-1]:
        return picked
    if total == frames:
        return range(total)
    raise InputError(
        f"The depth {name} has {total} frames; the clip needs frames {start} to {picked[-1]} (or exactly {frames}, "
        "those that are used). Give depth of every frame, or ask for fewer frames."
    )


def _read_npz(path: Path, frames: int, start: int, stride: int) -> tuple[np.ndarray, bool, bool]:
    """The picked frames of an .npz, whether they are disparity, and whether they are in metres."""
    try:
        # A visitor's file: what its headers declare is checked before anything is unpacked, and pickles are refused.
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    with archive.open(entry) as file:
                        shapes[entry.filename.removesuffix(".npy")] = _npy_header(file)
        key, inverse = _array_of_depth(list(shapes), path.name)
        shape, dtype = shapes[key]
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) == 4 and 1 in (shape[1], shape[3]):  # a channel of its own
            shape = (shape[0], shape[2], shape[3]) if shape[1] == 1 else shape[:3]
        if len(shape) != 3 or 0 in shape or max(shape[1:]) > _MAX_SIDE or dtype.kind not in "fiu":
            raise InputError(
                f"The array {key!r} of {path.name} has shape {shapes[key][0]} and type {dtype}; give numbers of shape "
                "frames x height x width."
            )
        if math.prod(shape) * dtype.itemsize > _MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
        picked = _pick(shape[0], frames, start, stride, path.name)
        with np.load(path, allow_pickle=False) as data:
            values = data[key].reshape(shape)[picked.start : picked.stop : picked.step]
            scalar = "metric" in shapes and shapes["metric"][0] == () and shapes["metric"][1].kind in "biuf"
            metric = bool(data["metric"]) if scalar else False
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"The depth {path.name} cannot be read as .npz: {error}") from error
    return values.astype(np.float32), inverse, metric and not inverse


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its arrays are of the unknown version {version}")
    shape, _, dtype = read(file)
    return shape, dtype


def _array_of_depth(names: list[str], name: str) -> tuple[str, bool]:
    """Which array of a file is meant, and whether it is disparity."""
    for key in ("z", "depth", "disparity"):
        if key in names:
            return key, key == "disparity"
    if len(names) == 1:
        return names[0], "disp" in names[0].lower()
    raise InputError(
        f"The depth {name} has the arrays {', '.join(sorted(names)[:8]) or 'none'}; name the one that is meant z, "
        "depth or disparity."
    )


def _read_pictures(path: Path, frames: int, start: int, stride: int) -> np.ndarray:
    """The picked frames of a folder of pictures, T H W."""
    found = sorted(path.iterdir(), key=_by_number) if path.is_dir() else [path]
    files: list[Path] = []
    for suffix in _PICTURES:
        files = files or [file for file in found if file.suffix.lower() == suffix]
    if not files:
        raise InputError(
            f"The depth folder {path.name} has no .exr and no .png pictures; put one for each frame into it."
        )
    read = _read_exr if files[0].suffix.lower() == ".exr" else _read_png
    picked = _pick(len(files), frames, start, stride, path.name)
    maps: list[np.ndarray] = []
    for file in (files[index] for index in picked):
        maps.append(read(file))
        if maps[-1].shape != maps[0].shape:
            raise InputError(f"The depth pictures in {path.name} are not all of one size: see {file.name}.")
        if len(picked) * maps[0].nbytes > _MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
    return np.stack(maps)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _checked_size(width: int, height: int, file: Path) -> None:
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise InputError(
            f"The depth picture {file.name} is {width}x{height}; at most {_MAX_SIDE} pixels a side can be read."
        )


def _read_png(file: Path) -> np.ndarray:
    import cv2

    with open(file, "rb") as stream:
        header = stream.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG") or header[12:16] != b"IHDR":
        raise InputError(f"The depth picture {file.name} is not a PNG file.")
    width, height, bits, kind = struct.unpack(">IIBB", header[16:26])
    if bits != 16 or kind != 0:
        raise InputError(
            f"The depth picture {file.name} is not a grey PNG of 16 bits; save depth with 16 bits, as grey."
        )
    _checked_size(width, height, file)
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != (height, width):
        raise InputError(f"The depth picture {file.name} is damaged; save it again.")
    return image.astype(np.float32)


def _read_exr(file: Path) -> np.ndarray:
    import OpenEXR  # OpenCV 5 is built without it

    try:
        with OpenEXR.File(str(file), header_only=True) as headers:
            low, high = headers.header()["dataWindow"]
        width, height = (int(n) for n in high - low + 1)
        _checked_size(width, height, file)
        with OpenEXR.File(str(file), separate_channels=True) as picture:
            channels = {name: channel.pixels for name, channel in picture.channels().items()}
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The depth picture {file.name} cannot be read as EXR: {error}") from error
    # Renderers name it "Z" or "ViewLayer.Depth.Z"; a picture saved as grey or as colour holds it in Y, V or R.
    by_tail = {name.rsplit(".", 1)[-1].upper(): name for name in sorted(channels, reverse=True)}
    name = next((by_tail[tail] for tail in ("Z", "DEPTH", "Y", "V", "R") if tail in by_tail), None)
    if name is None and len(channels) != 1:
        raise InputError(f"The depth picture {file.name} has no channel Z, but {', '.join(sorted(channels)[:8])}.")
    values = channels[name or next(iter(channels))]
    if values.ndim != 2:
        raise InputError(f"The depth picture {file.name} is not a plain picture (shape {values.shape}).")
    return values.astype(np.float32)
