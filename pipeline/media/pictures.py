"""Pictures of visitors to arrays. This runs in a process of its own (see `child`), without PyTorch."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pi_heif
from PIL import ExifTags, Image, ImageOps

from pipeline import InputError
from pipeline.media.child import Message

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".apng"}
MAX_PIXELS = 2**26
MAX_SIDE = 8192  # pixels of a mask or a depth map
MAX_PAINT = 4096  # pixels of what is painted in a browser
MILLISECOND = Fraction(1, 1000)
# Pillow would also try rare formats whose readers are less trusted.
Image.init()
pi_heif.register_heif_opener()
_FORMATS = [kind for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "MPO", "HEIF") if kind in Image.OPEN]
_SINGLE = ("JPEG", "MPO", "HEIF", "BMP")  # what else these hold are maps of brightness or depth, and thumbnails


def too_many_pixels(path: Path, width: int, height: int) -> InputError:
    return InputError(f"{path.name} has {width}x{height} pixels; give one of at most {MAX_PIXELS >> 20} megapixels.")


def read_colours(path: Path) -> Iterator[Message]:
    """The picture as R G B, H W 3 uint8, upright; what is transparent is neutral grey."""
    with _opened(path) as image:
        yield {}, [_rgb(ImageOps.exif_transpose(image))]


def pages_of(path: Path) -> Iterator[Message]:
    """The pages of a TIFF that are as large as its first, as `pages`; all else is one picture, of page 0."""
    with _opened(path) as image:
        yield {"pages": _pages(image) if image.format == "TIFF" else [0]}, []


def _pages(image: Any) -> list[int]:
    """Of what the file holds, its frames: not the thumbnails of a TIFF, nor the maps of brightness of a photograph."""
    count = 1 if image.format in _SINGLE else getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return list(range(count))
    size, pages = image.size, []
    for page in range(count):
        image.seek(page)
        pages += [page] * (image.size == size)
    image.seek(0)
    return pages


def read_levels(path: Path, page: int = 0) -> Iterator[Message]:
    """The picture as its file holds it, upright. Arrays: the values, H W or H W 3, palette indices as they are; the
    transparency H W uint8, if it has any. The message: whether the values are palette indices (`palette`: a list of
    R G B), and whether they come back as they were written (`lossless`). page: of those that `pages_of` names.
    """
    with _opened(path) as image:
        lossless = image.format in ("PNG", "BMP", "TIFF") or (image.format == "WEBP" and _is_lossless_webp(path))
        if page:
            image.seek(page)
        image = ImageOps.exif_transpose(image)
        alpha = []
        if image.has_transparency_data:
            opacity = np.asarray(image.convert("RGBA").getchannel("A"))
            alpha = [opacity] if (opacity < 255).any() else []
        palette = None
        if image.mode == "P":
            palette = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3).tolist()
            values = np.asarray(image)
        elif image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
            values = np.asarray(image)
        elif image.mode == "LA":
            values = np.asarray(image.getchannel("L"))
        else:
            values = np.asarray(image.convert("RGB"))
        values = values.astype(values.dtype.newbyteorder("=")) if values.dtype.byteorder == ">" else values
        yield {"palette": palette, "lossless": lossless}, [values, *alpha]


def read_paint(path: Path) -> Iterator[Message]:
    """How opaque a picture that was painted in a browser is, H W uint8."""
    with _opened(path, ["PNG", "WEBP"]) as image:
        if max(image.size) > MAX_PAINT:
            raise InputError(f"What is painted has {image.width}x{image.height} pixels, more than its picture.")
        yield {}, [np.asarray(image.convert("RGBA").getchannel("A"))]


def read_depth_picture(path: Path) -> Iterator[Message]:
    """One array H W: a grey PNG of 16 bits as uint16, or a channel of an EXR as float32, whose name is `channel`."""
    channel, values = _read_exr(path) if path.suffix.lower() == ".exr" else ("", _read_png(path))
    yield {"channel": channel}, [values]


def read_photograph(path: Path, max_side: int) -> tuple[np.ndarray, dict[str, str], bool] | None:
    """A single picture H W 3 uint8, upright, no side above max_side; what it says of its lens; whether it has
    transparent parts, which are neutral grey. None for an animated one."""
    with _opened(path) as image:
        if len(_pages(image)) > 1:
            return None
        focal = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
        lens = {"exif.focal_length.35mm_equivalent": str(focal)} if focal else {}
        clear = image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())
        shown = Image.fromarray(_rgb(ImageOps.exif_transpose(image)))
        shown.thumbnail((max_side, max_side), Image.Resampling.BOX)
        return np.asarray(shown), lens, clear


def durations_of(path: Path) -> list[float]:
    """Milliseconds that each frame of an animated picture stays."""
    with _opened(path) as image:
        durations = []
        for page in _pages(image):
            image.seek(page)
            if image.format == "WEBP":
                image.load()  # says the duration only then
            durations.append(float(image.info.get("duration") or 40))
        return durations


def frames_of(path: Path, max_side: int) -> Iterator[np.ndarray]:
    """H W 3 uint8 each, no side above max_side."""
    with _opened(path) as image:
        for page in _pages(image):
            image.seek(page)
            shown = Image.fromarray(_rgb(image))
            shown.thumbnail((max_side, max_side), Image.Resampling.BOX)
            yield np.asarray(shown)


@contextlib.contextmanager
def _opened(path: Path, formats: list[str] = _FORMATS) -> Iterator[Any]:
    kind = f"{path.name} is not a picture that can be read: give a PNG, JPEG, WebP or HEIC."
    if path.is_dir():
        raise InputError(f"{path.name} is a folder: give a picture.")
    try:
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_many_pixels(path, image.width, image.height)
            yield image
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path.name}.") from error
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, struct.error) as error:
        raise InputError(kind) from error


def _rgb(image: Any) -> np.ndarray:
    """H W 3 uint8. Pillow's own conversion would clip 16-bit grey, and show the colours of what is transparent."""
    from pipeline.media.colour import over_neutral

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float32)
        most = float(values.max(initial=0))
        full = 1 if image.mode == "F" and most <= 1 else 255 if most <= 255 and image.mode != "I;16" else 65535
        grey = (values * (255 / full)).clip(0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if image.has_transparency_data:
        return over_neutral(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _is_lossless_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"VP8L" in file.read(64)


# --- depth ------------------------------------------------------------------------------------------------------------


def _checked_size(width: int, height: int, path: Path) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise InputError(
            f"The depth picture {path.name} is {width}x{height}; at most {MAX_SIDE} pixels a side can be read."
        )


def _read_png(path: Path) -> np.ndarray:
    import cv2

    with open(path, "rb") as stream:
        header = stream.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG") or header[12:16] != b"IHDR":
        raise InputError(f"The depth picture {path.name} is not a PNG file.")
    width, height, bits, kind = struct.unpack(">IIBB", header[16:26])
    if bits != 16 or kind != 0:
        raise InputError(
            f"The depth picture {path.name} is not a grey PNG of 16 bits; save depth with 16 bits, as grey."
        )
    _checked_size(width, height, path)
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != (height, width):
        raise InputError(f"The depth picture {path.name} is damaged; save it again.")
    return image


def _read_exr(path: Path) -> tuple[str, np.ndarray]:
    import OpenEXR  # OpenCV 5 is built without it

    try:
        with OpenEXR.File(str(path), header_only=True) as headers:
            low, high = headers.header()["dataWindow"]
        width, height = (int(n) for n in high - low + 1)
        _checked_size(width, height, path)
        with OpenEXR.File(str(path), separate_channels=True) as picture:
            channels = {name: channel.pixels for name, channel in picture.channels().items()}
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The depth picture {path.name} cannot be read as EXR; save it again.") from error
    # Renderers name it "Z" or "ViewLayer.Depth.Z"; a picture saved as grey or as colour holds it in Y, V or R.
    by_tail = {name.rsplit(".", 1)[-1].upper(): name for name in sorted(channels, reverse=True)}
    name = next((by_tail[tail] for tail in ("Z", "DEPTH", "Y", "V", "R") if tail in by_tail), None)
    if name is None and len(channels) != 1:
        raise InputError(f"The depth picture {path.name} has no channel Z, but {', '.join(sorted(channels)[:8])}.")
    name = name or next(iter(channels))
    values = channels[name]
    if values.ndim != 2:
        raise InputError(f"The depth picture {path.name} is not a plain picture (shape {values.shape}).")
    return name, values.astype(np.float32)
