"""The known pixels put back into the result."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.known.measurement import Measurement
from pipeline.media.video import size_of
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
    blend = torch.empty_like(video)
    for frame, painted, filmed, known in zip(blend, raw, video, checked(mask[:, 0]), strict=True):
        paint = enlarged(painted, size_of(video))
        torch.where(known, filmed, paint, out=frame)
        # OpenCV has no unknown pixel to measure from in a full mask and then answers with a huge distance, as wanted.
        distance = cv2.distanceTransform(known.cpu().numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        seam = torch.from_numpy(((distance > 0) & (distance <= seam_pixels)).reshape(-1).nonzero()[0])
        ramp = torch.from_numpy(distance.reshape(-1)).take(seam).to(video) / (seam_pixels + 1)
        ramp, seam = ramp * ramp * (3 - 2 * ramp), seam.to(video.device)
        frame.view(3, -1)[:, seam] = torch.lerp(paint.reshape(3, -1)[:, seam], filmed.reshape(3, -1)[:, seam], ramp)
    return blend


def enlarged(picture: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 H W"]:
    """A picture in [0, 1] at another size (H, W), by the bicubic kernel."""
    if size_of(picture) == size:
        return picture.clamp(0, 1)
    planes = [cv2.resize(part, size[::-1], interpolation=cv2.INTER_CUBIC) for part in picture.cpu().numpy()]
    return torch.from_numpy(np.stack(planes).clip(0, 1)).to(picture)
