"""The known pixels put back into the result."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline.known.measurement import Measurement
from pipeline.media.video import resize
from pipeline.stop import checked


def composite(
    raw: Float[Tensor, "T 3 h w"], measurement: Measurement, *, seam_pixels: float
) -> Float[Tensor, "T 3 H W"]:
    """The generated video where nothing is known, the measurement elsewhere, with a soft seam inside the known side.

    `raw` in [0, 1] may be smaller and is enlarged to the measurement. Known pixels farther than `seam_pixels` from the
    nearest unknown one are bit-identical to the measurement; 0 is a hard cut. Raises ValueError if the numbers of
    frames differ or seam_pixels is negative.
    """
    video, mask = measurement.video, measurement.mask
    if len(raw) != len(video) or not seam_pixels >= 0:
        raise ValueError(f"{len(raw)} raw frames for {len(video)} measured ones, a seam of {seam_pixels} pixels")
    raw = resize(raw.to(video), (video.shape[-2], video.shape[-1]), mode="bicubic").clamp(0, 1)
    if seam_pixels == 0:
        return torch.where(mask, video, raw)
    known = rearrange(mask, "t 1 h w -> t h w").cpu().numpy().astype(np.uint8)
    # OpenCV has no unknown pixel to measure from in a full mask and then answers with a huge distance, as wanted.
    distance = np.stack([cv2.distanceTransform(k, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for k in checked(known)])
    ramp = (torch.from_numpy(distance)[:, None].to(video) / (seam_pixels + 1)).clamp(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    blend = torch.lerp(raw, video, ramp)
    far = torch.from_numpy(distance > seam_pixels)[:, None].to(video.device)
    return torch.where(far & mask, video, blend)
