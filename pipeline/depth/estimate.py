"""Depth of a clip: estimated by a small network that sees the whole clip at once, by a model of the hub, or given.

All depth here is the distance along the optical axis. Estimated depth has no unit; its median is set to 4, so that
distances and presets behave alike from clip to clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError, result_of
from pipeline.depth.depthcrafter import DepthCrafter, Progress
from pipeline.depth.network import STRIDE, DepthNet
from pipeline.depth.outlines import grow_near, sharpen_outlines
from pipeline.media.video import resize

_AT_ONCE = 16  # frames that are resized at once: a long clip should not take much more memory than itself
WINDOW, OVERLAP = 32, 8  # frames that the network sees at once, and how many of them the next window shares
MEDIAN = 4.0  # of depth that has no unit
FAR_ESTIMATED = 40.0  # the farthest in units of the nearest hundredth; the world's sky in training
_FOLLOWED = 0.25  # share of the pixels that the flow must follow to be believed
_NOISE = 0.015  # mean change of a picture in [0, 1] around a pixel that may be noise
SPREAD = 0.25, 0.18  # deviations of the weight about the picture's middle, in heights and widths
LEAST_PART = 0.08  # share of the weight that each part has
FLAT = 0.02  # deviation of the logarithm of depth below which a picture has one part
_JUMP = 0.1  # where disparity bends by more than this share of itself, two surfaces meet


@dataclass(frozen=True, eq=False)
class Depth:
    """Depth of a clip.

    z: distance along the optical axis, finite and > 0. metric: in metres, else in the clip's own unit. kind: as which
    of `files.KINDS` a file was read; "" where it was estimated.
    """

    z: Float[Tensor, "T H W"]
    metric: bool
    kind: str = ""


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
    ) -> Generator[Progress, None, Float[Tensor, "T h w"]]:
        """Progress; returns what the model says of each frame by itself, at `size`, on the device of the frames."""
        predictions = []
        for number, frame in enumerate(frames):
            image = (rearrange(frame, "c h w -> h w c").clamp(0, 1) * 255).round().byte().cpu().numpy()
            inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
            found = self.processor.post_process_depth_estimation(self.model(**inputs), target_sizes=[size])
            predictions.append(found[0]["predicted_depth"].float().to(frames.device))
            yield f"Estimating depth: frame {number + 1} of {len(frames)}", (number + 1) / len(frames)
        return torch.stack(predictions)


DepthModel = DepthNet | HubDepth | DepthCrafter


def estimate_depth(frames: Float[Tensor, "T 3 H W"], model: DepthModel) -> Depth:
    """As `estimate`, without its progress, at the size of the frames."""
    return result_of(estimate(frames, model))


@torch.no_grad()
def estimate(
    frames: Float[Tensor, "T 3 H W"], model: DepthModel, size: tuple[int, int] | None = None
) -> Generator[Progress, None, Depth]:
    """Progress; returns the depth of a clip in [0, 1], of any length and size, on its device.

    The median is 4, unless the model knows metres; nothing is farther than 40 times the nearest parts, so that sky is
    finite. Of disparity known up to an affine map (Depth Anything, MiDaS, DepthCrafter) zero counts as infinity, and so
    as those 40 times: which shift the map has, no such model says. size: (H, W) of the depth, None for that of the
    frames. model: from `load_depth_model`. Raises `InputError`.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: wanted T 3 H W")
    size = size or _size_of(frames)
    if isinstance(model, HubDepth):
        found = yield from model.predict(frames, size)
        if model.inverse:
            aligned = align_disparity(found, resize(frames.float(), size))
            return Depth(_bounded(-as_positive(aligned).log()), metric=False)
        return Depth(repaired(found, "the prediction of the depth model"), metric=True)
    if isinstance(model, DepthCrafter):
        disparity = yield from model.disparity(frames)
        z = _bounded(-as_positive(disparity).log()).to(frames.device)
        small = resize(frames.float(), _size_of(z))
    else:
        log_z, small = _two_looks(frames, model)
        log_z = steadied(log_z, small)
        z = grow_near(sharpen_outlines(_bounded(log_z), small))
        z = z * (MEDIAN / z.median())
    return Depth(resize_depth(z, size, guide=(small, resize(frames.float(), size))), metric=False)


def _two_looks(frames: Float[Tensor, "T 3 H W"], model: DepthNet) -> tuple[Float[Tensor, "T h w"], Tensor]:
    """Log depth, and the frames at its size: the mean of a look at the size of the network's training and of one at the
    mirrored clip, half as large again. Their errors differ, so that the mean has less of them."""
    device = next(model.parameters()).device
    small, large = (resize(frames.float(), _network_size(*_size_of(frames), n * model.pixels)) for n in (1, 1.5))
    log_z = lambda window: -as_positive(model(window)).log()
    first = in_windows(small.to(device), log_z).to(frames.device)
    second = in_windows(large.flip(-1).to(device), log_z).flip(-1).to(frames.device)
    first = resize_depth(first.exp(), _size_of(second), guide=(small, large)).log()
    return (first - first.median() + second - second.median()) / 2, large


def steadied(log_z: Float[Tensor, "T h w"], frames: Float[Tensor, "T 3 h w"], reach: int = 4) -> Float[Tensor, "T h w"]:
    """Log depth that keeps still where the picture does: a mean over `reach` frames on either side.

    A frame counts at a pixel as far as the picture around it is the same there, up to the noise of film. frames: in
    [0, 1].
    """
    total, weight = log_z.clone(), torch.ones_like(log_z)
    for offset in range(1, min(reach, len(log_z) - 1) + 1):
        for first in range(0, len(log_z) - offset, _AT_ONCE):
            now = slice(first, min(first + _AT_ONCE, len(log_z) - offset))
            then = slice(now.start + offset, now.stop + offset)
            change = (frames[then] - frames[now]).abs().mean(1, keepdim=True)
            alike = torch.exp(-(F.avg_pool2d(change, 9, 1, 4, count_include_pad=False)[:, 0] / _NOISE).square())
            total[now] += alike * log_z[then]
            total[then] += alike * log_z[now]
            weight[now] += alike
            weight[then] += alike
    return total / weight


def _network_size(height: int, width: int, pixels: float) -> tuple[int, int]:
    """The size at which the network looks at a picture: if the picture is larger, about that of its training."""
    if height * width <= 1.3 * pixels:
        return height, width
    scale = math.sqrt(pixels / (height * width))
    fit = lambda n: min(n, max(STRIDE, round(n * scale / STRIDE) * STRIDE))
    return fit(height), fit(width)


def in_windows(
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
    sample = sampled(log_z)
    near, middle = sample.quantile(0.01), sample.median()
    return (log_z.clamp(near - math.log(2), near + math.log(FAR_ESTIMATED)) - middle).exp() * MEDIAN


def sampled(values: Tensor, most: int = 200_000) -> Tensor:
    """At most about `most` of the values, evenly picked: quantiles of millions are slow."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // most)]


def as_positive(disparity: Float[Tensor, "T H W"], ratio: float = 1000.0) -> Float[Tensor, "T H W"]:
    """Disparity with all that is at infinity, or beyond, put `ratio` times farther than the nearest hundredth."""
    near = sampled(disparity[disparity.isfinite()]).quantile(0.99)
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
        x, y, last = sampled(raw[known], 20_000), sampled(moved[known], 20_000), now
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


def affine_disparity(z: Tensor, truth: Tensor) -> Tensor:
    """Depth whose disparity is that of `z` after the least-squares scale and shift of the clip towards `truth`."""
    x, y = 1 / z.flatten(), 1 / truth.flatten()
    centred = x - x.mean()
    slope = (centred * (y - y.mean())).mean() / centred.square().mean().clamp(min=1e-12)
    return 1 / (slope * (1 / z - x.mean()) + y.mean()).clamp(min=1 / truth.max())


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
    steps = _with_neighbours(bend > _JUMP * disparity)  # those that only touch at a corner, too
    edge = F.interpolate(steps.byte(), size, mode="nearest-exact")[:, 0] > 0
    if guide is None:
        return torch.where(edge, nearest, smooth)

    at = edge.reshape(-1).nonzero()[:, 0]
    t, i, j = at // (H * W), at % (H * W) // W, at % W
    small, full = (part.reshape(len(z), 3, -1) for part in guide)  # looked up by one index a colour: much faster
    colours = [full[:, channel].reshape(-1)[at] for channel in range(3)]
    channels, flat = [small[:, channel].reshape(-1) for channel in range(3)], z.reshape(-1)
    row, column = (i + 0.5) * (h / H) - 0.5, (j + 0.5) * (w / W) - 0.5
    rows, columns = ([(part.round() + d).clamp(0, n - 1) for d in (-1, 0, 1)] for part, n in ((row, h), (column, w)))
    best, chosen = torch.full_like(row, math.inf), nearest.reshape(-1)[at]
    for y, x in product(rows, columns):
        place = t * (h * w) + (y * w + x).long()
        cost = 0.05 * ((y - row) ** 2 + (x - column) ** 2)
        for channel, colour in zip(channels, colours, strict=True):
            cost += (colour - channel[place]).abs_()
        chosen = torch.where(cost < best, flat[place], chosen)
        best = torch.minimum(cost, best)
    smooth.view(-1)[at] = chosen
    return smooth


def _with_neighbours(mask: Bool[Tensor, "*T H W"]) -> Bool[Tensor, "*T H W"]:
    """True also at the eight pixels around what is True."""
    for dim in (-1, -2):
        first, last = mask.narrow(dim, 0, mask.shape[dim] - 1), mask.narrow(dim, 1, mask.shape[dim] - 1)
        mask = mask.clone()
        mask.narrow(dim, 1, mask.shape[dim] - 1).logical_or_(first)
        mask.narrow(dim, 0, mask.shape[dim] - 1).logical_or_(last)
    return mask


def subject_distance(depth: Depth) -> float:
    """Distance of what the first frame shows, rather than of what stands behind it.

    Otsu's threshold on the logarithm of the depth parts near from far, where pixels weigh the less the farther they
    are from the picture's middle; the distance is the weighted median of the near part. A person before a wall is thus
    the subject, even where the wall covers more of the picture.
    """
    z = depth.z[0].double().cpu()
    y, x = (torch.linspace(-0.5, 0.5, n, dtype=z.dtype) for n in z.shape)
    near_middle = torch.exp(-0.5 * ((y[:, None] / SPREAD[0]).square() + (x / SPREAD[1]).square()))
    z, order = z.flatten().sort()
    weight = near_middle.flatten()[order] / near_middle.sum()
    share, part = weight.cumsum(0), (weight * z.log()).cumsum(0)
    between = (part[-1] * share - part).square() / (share * (1 - share)).clamp(min=1e-12)  # variance between the parts
    between[(share < LEAST_PART) | (share > 1 - LEAST_PART)] = 0
    last = int(between.argmax()) if between.max() > FLAT**2 else len(z) - 1
    return float(z[torch.searchsorted(share, share[last] / 2)])


def repaired(z: Float[Tensor, "T H W"], name: str) -> Float[Tensor, "T H W"]:
    """Depth whose pixels that are NaN, infinite or not positive take the nearest valid value of their frame.

    A frame without any takes the nearest frame in time that has some.
    """
    from scipy.ndimage import distance_transform_edt

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
