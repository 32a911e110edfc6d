"""Decoded frames to RGB as a screen would show them: orientation, square pixels, HDR, transparency."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.video.reformatter import Colorspace

NEUTRAL = 127.5  # the grey that stands behind what is transparent
_WHITE = 203.0  # cd/m2 of diffuse white, ITU-R BT.2408
_KNEE = 0.8  # of diffuse white; what is darker stays as it is, what is lighter makes room for highlights
_PQ, _HLG = 16, 18  # AVColorTransferCharacteristic
# Flags of swscale. By default it doubles chroma samples instead of interpolating them, which costs 5 dB or more.
_BICUBIC, _AREA, _FULL_CHROMA = 0x4, 0x20, 0x2000 | 0x4000 | 0x40000
_709_FROM_2020 = np.array(  # ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the frame's format can say that a pixel is transparent."""
    return any(part.is_alpha for part in frame.format.components) or bool(frame.format.has_palette)


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether some pixel of it is."""
    return has_alpha(frame) and int(frame.reformat(format="rgba").to_ndarray()[..., 3].min()) < 255


def is_hdr(context: av.VideoCodecContext) -> bool:
    return context.color_trc in (_PQ, _HLG)


def shown_size(frame: av.VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """(h, w) of the stored picture with the pixel aspect undone by width."""
    if aspect and 0.1 < aspect < 10:
        return frame.height, max(1, round(frame.width * float(aspect)))
    return frame.height, frame.width


def turned(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Of the display matrix: whether rows and columns are swapped, and then mirrored across and upside down.

    ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y. Front cameras mirror, so that a rotation does not say it all.
    """
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(side), "=i4")[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    return swapped, (c if swapped else a) < 0, (b if swapped else d) < 0


def upright(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """H W ... as the display matrix wants it."""
    swapped, across, down = turn
    image = np.swapaxes(image, 0, 1) if swapped else image
    return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if across else 1])


def to_rgb(
    frame: av.VideoFrame, context: av.VideoCodecContext, aspect: Fraction | None, max_side: int, mask: bool = False
) -> np.ndarray:
    """H W 3 uint8, in square pixels, no side above max_side. mask: what is transparent is black, the rest white."""
    height, width = shown_size(frame, aspect)
    scale = min(1.0, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    flags = (_AREA if scale < 1 else _BICUBIC) | _FULL_CHROMA
    # Untagged: players take BT.709 for HD and BT.601 below. Values as in AVColorSpace.
    tag = int(frame.colorspace)
    hd = tag == 1 or (tag not in (4, 5, 6, 7, 9, 10) and frame.height >= 720)
    space = Colorspace.ITU709 if hd else Colorspace.ITU601 if tag not in (4, 7, 9, 10) else None

    def converted(kind: str) -> np.ndarray:
        return frame.reformat(*size, format=kind, src_colorspace=space, interpolation=flags).to_ndarray()

    if has_alpha(frame):
        rgba = converted("rgba")
        seen = rgba[..., 3:]
        if mask and seen.min() < 255:
            return np.repeat(seen, 3, 2)
        return over_neutral(rgba)
    if is_hdr(context):
        return to_sdr(converted("rgb48le"), context.color_trc)
    return converted("rgb24")


def over_neutral(rgba: np.ndarray) -> np.ndarray:
    """H W 4 uint8 -> H W 3: transparent pixels hide colours that nobody meant to be seen."""
    seen = rgba[..., 3:]
    if seen.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    share = seen.astype(np.float32) / 255
    return (rgba[..., :3] * share + NEUTRAL * (1 - share)).round().astype(np.uint8)


def to_sdr(signal: np.ndarray, transfer: int) -> np.ndarray:
    """HDR video, BT.2020 RGB uint16 H W 3 in PQ or HLG -> BT.709 for a display with gamma 2.4, uint8.

    ITU-R BT.2100 (the curves, and for HLG a display of 1000 cd/m2), BT.2408 (diffuse white at 203 cd/m2 is white),
    BT.1886 (gamma). Highlights roll off by Moebius' curve, as FFmpeg's tonemap has it. FFmpeg's zscale, which does the
    same, is not in PyAV's wheels, and the conversion of its scale filter is up to 12 levels off.
    """
    light = _linear(transfer)[signal]  # relative to white, or for HLG of the scene
    if transfer == _HLG:
        scene = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (1000 / _WHITE) * np.maximum(scene, 1e-9)[..., None] ** np.float32(0.2)
    light = light @ _709_FROM_2020.T
    most = light.max(-1, keepdims=True)
    peak = (10000 if transfer == _PQ else 1000) / _WHITE
    light *= np.where(most > _KNEE, _rolled_off(most, peak) / np.maximum(most, 1e-9), 1)
    return (np.clip(light, 0, 1) ** np.float32(1 / 2.4) * 255).round().astype(np.uint8)


def _rolled_off(light: np.ndarray, peak: float) -> np.ndarray:
    """From `_KNEE` on, so that peak comes to 1."""
    j = _KNEE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    return (b * b + 2 * b * j + j * j) / (b - a) * (light + a) / (light + b)


@lru_cache(2)
def _linear(transfer: int) -> np.ndarray:
    """For each of the 65536 levels of a signal: light relative to diffuse white (PQ), of the scene in [0, 1] (HLG)."""
    e = np.arange(65536) / 65535
    if transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(e <= 0.5, e * e / 3, (np.exp((e - c) / a) + b) / 12)
    else:
        root = e ** (1 / 78.84375)
        light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        light = light ** (1 / 0.1593017578125) * 10000 / _WHITE
    return light.astype(np.float32)
