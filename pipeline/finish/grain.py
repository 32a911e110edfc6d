"""Grain: what is painted takes on the fine texture of what was filmed around it.

A model paints at its working size, a small one softly at that; enlarged to the clip's own resolution its paint is
smooth where film is not, and is seen for it. Here every window of paint gets noise that has the spectrum of filmed
windows of like colour nearby: spot noise (van Wijk, SIGGRAPH 1991), as a random phase texture (Galerne, Gousseau and
Morel, IEEE Transactions on Image Processing 2011). It is of luma alone, makes no shapes, and follows the camera's
motion. Ours; the papers leave the model's paint as it is.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.camera.geometry import CameraPath, invert_rigid, project, transform, unproject
from pipeline.stop import check, checked

_LUMA = (0.299, 0.587, 0.114)
_STRIDE = 2.3  # between windows, in units of the softness; a window is three of them wide
_MOST = 60  # windows along the shorter side, or there are too many to be compared with each other
_FILMED = 0.9  # share of a window that must be filmed for it to lend its spectrum
# Which window lends: unlike colours count against it (0 to 1 a channel), and so do the way to it (in widths of the
# picture) and the strength of its texture, since outlines of things are strong and are no texture.
_WAY, _STRENGTH = 0.3, 4.0
_UNLIKE = 0.15  # difference of colours at which only a third of the texture is taken
_STRONGEST = 0.03  # standard deviation of luma above which noise no longer passes for what is strong by its shapes
# The spectrum of one window is as rough as noise, and what is made after it ripples like cloth: several lend theirs,
# and what pixels have in common counts less the farther apart they are (in widths of a window).
_LENDERS, _REACH = 8, 0.1
_CALM = 0.25  # share of the lenders that none is louder than: noise on a wall is seen sooner than a wall too smooth
_ANCHORS, _WORTH = 4, 0.002  # frames that get noise of their own, for at least so large a share of them


def match_grain(
    video: Float[Tensor, "T 3 H W"],
    painted: Bool[Tensor, "T 1 H W"],
    z: Float[Tensor, "T h w"],
    target: CameraPath,
    softness: float,
    seed: int = 0,
) -> Float[Tensor, "T 3 H W"]:
    """A composited video in [0, 1] with grain where it is painted; all else stays bit-identical.

    z: depth as the target cameras see it, everywhere finite, of any size (h, w), to which `target.K` belongs.
    softness: standard deviation, in pixels of the video, of the blur by which its paint is softer than film. Noise is
    made for the frame with the most paint and is seen by the other frames where they see the same places, so that it
    moves with the scene; further frames make their own for what is left. Where nothing is filmed to take after, all
    stays. Writes to `video`.
    """
    texture, left = torch.zeros_like(video[:, :1]), painted[:, 0].clone()
    noise = torch.Generator().manual_seed(seed)
    for _ in range(_ANCHORS):
        count = torch.stack([frame.sum() for frame in left])  # of all at once takes eight bytes a pixel
        anchor = int(count.argmax())
        if count[anchor] < _WORTH * left[0].numel():
            break
        made = _texture(video[anchor], painted[anchor], softness, noise)
        if made is None:
            break
        for t in checked(left.flatten(1).any(1).nonzero()[:, 0].tolist()):
            pixels = left[t].view(-1).nonzero()[:, 0]
            at = _seen_from(z[t], target, t, anchor, (video.shape[-2], video.shape[-1]), pixels)
            sampled = F.grid_sample(made[None], at[None, None], mode="bilinear", align_corners=False)[0, :, 0]
            taken = sampled[1] > 0.99
            texture[t, 0].view(-1)[pixels[taken]] = sampled[0, taken]
            left[t].view(-1)[pixels[taken]] = False
    for frame, grain, paint in zip(video, texture, painted, strict=True):
        check()
        pixels = paint.reshape(-1).nonzero()[:, 0]
        weight = 1 - _blur((~paint).float(), softness / 4).view(-1)[pixels]  # no step at its edge
        colours = frame.view(3, -1)
        colours[:, pixels] = (colours[:, pixels] + weight * grain.view(-1)[pixels]).clamp_(0, 1)
    return video


def _seen_from(
    z: Float[Tensor, "h w"],
    target: CameraPath,
    t: int,
    anchor: int,
    size: tuple[int, int],
    pixels: Int[Tensor, "N"],
) -> Float[Tensor, "N 2"]:
    """Where in frame `anchor` stands what pixels of frame t show, in coordinates of grid_sample (2: not seen).

    pixels: their indices in a picture of `size` (H, W)."""
    pose = invert_rigid(target.world_from_cam[anchor]) @ target.world_from_cam[t]
    place = transform(pose[None], unproject(z[None], target.K[t : t + 1]))
    uv, ahead = project(place, target.K[anchor : anchor + 1])
    at = uv / uv.new_tensor([z.shape[-1], z.shape[-2]]) * 2 - 1
    at = torch.where(ahead[..., None] > 0, at, 2.0)
    height, width = size
    centres = torch.stack([(pixels % width + 0.5) * (2 / width), (pixels // width + 0.5) * (2 / height)], -1) - 1
    found = F.grid_sample(at.permute(0, 3, 1, 2), centres[None, None], "bilinear", "border", align_corners=False)
    return found[0, :, 0].T


def _texture(
    frame: Float[Tensor, "3 H W"], painted: Bool[Tensor, "1 H W"], softness: float, generator: torch.Generator
) -> Float[Tensor, "2 H W"] | None:
    """Noise for what is painted of a frame, and where there is some (1); None if no window of the frame is filmed."""
    _, H, W = frame.shape
    stride = max(8, round(_STRIDE * softness), min(H, W) // _MOST)
    side = 3 * stride
    if min(H, W) < side:
        return None
    seam = cv2.dilate(painted[0].numpy().astype(np.uint8), np.ones((9, 9), np.uint8))
    filmed = 1 - torch.from_numpy(seam)[None].float()  # away from the seam
    smooth = _blur(frame * filmed, softness) / _blur(filmed, softness).clamp_min(1e-3)
    detail = torch.tensordot(frame.new_tensor(_LUMA), (frame - smooth) * filmed, 1)
    line = torch.hann_window(side + 2, periodic=False)[1:-1]
    window = line[:, None] * line
    windows = lambda part: part.unfold(-2, side, stride).unfold(-2, side, stride)  # rows columns side side
    colours = lambda part: F.conv2d(part[:, None], window[None, None] / window.sum(), stride=stride)[:, 0]
    pad = side - stride
    around = lambda part, mode="constant": F.pad(part[None], (pad, pad + stride) * 2, mode=mode)[0]

    lends = F.avg_pool2d(filmed, side, stride)[0] > _FILMED
    asks = F.max_pool2d(around(painted.float()), side, stride)[0] > 0
    if not lends.any():
        return None
    lent = windows(detail)[lends]
    rms = lent.square().mean((1, 2)).sqrt()
    unlike = torch.cdist(colours(around(_blur(frame, softness), "replicate"))[:, asks].T, colours(smooth)[:, lends].T)
    way = stride * torch.cdist(asks.nonzero() - pad / stride, lends.nonzero().float()) / W
    best = (unlike + _WAY * way + _STRENGTH * rms).topk(min(_LENDERS, len(lent)), largest=False).indices
    most = rms[best].quantile(_CALM, dim=1, keepdim=True).clamp(max=_STRONGEST)
    strength = torch.exp(-(unlike.gather(1, best) / _UNLIKE).square()) * (most / rms[best].clamp_min(1e-6)).clamp(max=1)
    spots = lent * window / window.square().sum().sqrt()
    power = torch.fft.rfft2(spots - spots.mean((1, 2), keepdim=True)).abs().square()
    power = torch.einsum("nk,nkab->nab", strength.square() / best.shape[1], power[best])
    near = torch.exp(-(torch.fft.fftfreq(side) / _REACH).square() / 2)
    power = torch.fft.rfft2(torch.fft.irfft2(power, s=(side, side)) * near[:, None] * near).real.clamp_min(0)
    noise = torch.randn(H + 2 * pad + stride, W + 2 * pad + stride, generator=generator)
    # Windows overlap and share the noise there. Without phases of their own (the texton of Desolneux, Moisan and
    # Ronsin, ICASSP 2012) they add up, and their weighted mean is as strong as they are.
    spectrum = torch.fft.rfft2(windows(noise)[asks]) * power.sqrt()
    grain = torch.fft.irfft2(spectrum, s=(side, side)) * window
    total, weight = np.zeros((2, (asks.shape[0] - 1) * stride + side, (asks.shape[1] - 1) * stride + side), np.float32)
    share = window.numpy()
    for (row, column), part in zip((stride * asks.nonzero()).tolist(), grain.numpy(), strict=True):
        total[row : row + side, column : column + side] += part
        weight[row : row + side, column : column + side] += share
    total, weight = (torch.from_numpy(part[pad : pad + H, pad : pad + W]) for part in (total, weight))
    return torch.stack([total / weight.clamp_min(1e-3), (weight > 1e-3).float()])


def _blur(part: Float[Tensor, "C H W"], sigma: float) -> Float[Tensor, "C H W"]:
    """Gaussian blur, mirrored at the border."""
    blurred = [cv2.GaussianBlur(channel, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for channel in part.numpy()]
    return torch.from_numpy(np.stack(blurred))
