"""Files as people have them, and damaged ones: which are read as meant, which refused with a clear message.

    python -m pipeline.evaluation.inputs [--output inputs.jsonl]

Every file is made here, small, and read as the app reads a visitor's. What has a right answer must give it; what is
damaged must be read or refused by an `InputError` that names the file. Anything else is a fault, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline import InputError
from pipeline.camera.files import read_moves
from pipeline.camera.moves import sample_move
from pipeline.depth.files import load_depth
from pipeline.masks.files import load_mask
from pipeline.media.video import probe, read_picture, read_video

SIZE = H, W = 48, 80
COUNT = 8
_FOREIGN = ("Traceback", "Error:", "NoneType", "object has no", "codec can't", "dtype(")
Case = tuple[str, str, Callable[[], bool]]  # group, name, whether what is read is right


def frame(number: int) -> np.ndarray:
    """Three blocks say a number in binary, light or dark; the corner on the upper left is red."""
    image = np.full((H, W, 3), 90, np.uint8)
    for bit in range(4):
        image[H // 2 :, bit * W // 4 : (bit + 1) * W // 4] = 220 if number >> bit & 1 else 20
    image[: H // 4, : W // 8] = (220, 30, 30)
    return image


def numbers_in(path: Path, **options: Any) -> list[int]:
    """What the frames of a clip say."""
    found = []
    for image in read_video(path, **options).frames.mean(1):
        lower = image[int(0.7 * image.shape[0]) : int(0.9 * image.shape[0])].mean(0)
        lights = [float(part.mean()) > 0.45 for part in lower.chunk(4)]
        found.append(sum(light << bit for bit, light in enumerate(lights)))
    return found


def write_clip(
    path: Path, codec: str = "libx264", fmt: str = "yuv420p", times: list[int] | None = None, **options: Any
) -> Path:
    """COUNT frames at 25 Hz, or shown from these milliseconds on. options: of the container."""
    with av.open(str(path), "w", **options) as container:
        quiet = {"x265-params": "log-level=error"} if codec == "libx265" else {}
        stream: Any = container.add_stream(codec, rate=25, options=quiet)
        stream.height, stream.width, stream.pix_fmt = H, W, fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(len(times) if times else COUNT):
            picture = av.VideoFrame.from_ndarray(frame(number % 16), format="rgb24")
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def clips(folder: Path) -> Iterator[Case]:
    """Containers, codecs, display matrices and times."""
    every = list(range(COUNT))
    kinds = [("libx264", "yuv420p"), ("libx264", "yuv422p10le"), ("mpeg4", "yuv420p"), ("mjpeg", "yuvj422p")]
    kinds += [("ffv1", "bgr0"), ("ffv1", "gray"), ("libvpx", "yuv420p"), ("libvpx-vp9", "yuv420p")]
    kinds += [("prores_ks", "yuv422p10le"), ("qtrle", "rgb24"), ("libx265", "yuv420p")]
    fit = {
        "mp4": ("libx264", "mpeg4", "libx265"),
        "mov": ("libx264", "prores_ks", "qtrle", "mjpeg"),
        "mkv": ("libx264", "ffv1", "mpeg4", "libvpx", "libvpx-vp9", "libx265", "mjpeg"),
        "webm": ("libvpx", "libvpx-vp9"),
        "avi": ("mpeg4", "mjpeg", "ffv1"),
        "ts": ("libx264",),
        "flv": ("libx264",),
    }
    for suffix, codecs in fit.items():
        for codec, fmt in kinds:
            if codec in codecs:
                path = write_clip(folder / f"{codec}-{fmt}.{suffix}", codec, fmt)
                yield "clips", path.name, lambda path=path: numbers_in(path) == every and probe(path).frames == COUNT
    for name in ("live.webm", "live.mkv"):
        path = write_clip(folder / name, "libvpx", options={"live": "1"})
        yield "clips", name, lambda path=path: probe(path).frames == COUNT == len(numbers_in(path))
    part = write_clip(folder / "part.ts").read_bytes()
    (folder / "twice.ts").write_bytes(part + part)
    yield "clips", "twice.ts", lambda: numbers_in(folder / "twice.ts") == every * 2
    patterns = {
        "hour": [3_600_000 + 40 * k for k in every],
        "24Hz": [round(k * 1000 / 24) for k in every],
        "60Hz": [round(k * 1000 / 60) for k in every],
        "still": [*range(0, 280, 40), 2000],
        "two-rates": [round(k * 1000 / 30) for k in range(8)] + [267 + 42 * k for k in range(8)],
    }
    for name, times in patterns.items():
        path = write_clip(folder / f"{name}.mkv", times=times)
        wanted = list(range(len(times)))
        yield "clips", path.name, lambda path=path, wanted=wanted: sorted(set(numbers_in(path))) == wanted
    for turn in range(8):
        path = write_clip(folder / f"turned-{turn}.mp4")
        data = bytearray(path.read_bytes())
        x, y = (-1) ** (turn & 1) << 16, (-1) ** (turn >> 1 & 1) << 16
        at = data.index(b"tkhd") + 44
        swapped = turn > 3
        data[at : at + 36] = struct.pack(">9i", *((0, y, 0, x, 0) if swapped else (x, 0, 0, 0, y)), 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        corner = (0 if y > 0 else -1, 0 if x > 0 else -1)
        yield "clips", path.name, lambda path=path, corner=corner, swapped=swapped: _is_red(path, corner, swapped)


def _is_red(path: Path, corner: tuple[int, int], swapped: bool) -> bool:
    picture = read_video(path, frames=1).frames[0]
    red, green, _ = picture[:, corner[0], corner[1]].tolist()
    return red > 0.6 > 0.4 > green and (picture.shape[1] > picture.shape[2]) == swapped


def animations(folder: Path) -> Iterator[Case]:
    """GIF, WebP and PNG that move, with even and uneven delays."""
    images = [Image.fromarray(frame(number)) for number in range(COUNT)]
    kinds: list[tuple[str, dict[str, Any]]] = [("gif", {}), ("webp", {"lossless": True}), ("png", {})]
    for suffix, options in kinds:
        for name, delays in (("even", [40] * COUNT), ("uneven", [40, 40, 200, *[40] * (COUNT - 3)])):
            path = folder / f"{name}.{suffix}"
            images[0].save(path, save_all=True, append_images=images[1:], duration=delays, **options)
            wanted = [n for n, delay in enumerate(delays) for _ in range(delay // 40)]
            yield "clips", path.name, lambda path=path, wanted=wanted: numbers_in(path) == wanted


def pictures(folder: Path) -> Iterator[Case]:
    """Kinds of pictures, and EXIF's eight orientations."""
    ramp = np.linspace(0, 255, W).round().astype(np.uint8)[None].repeat(H, 0)
    near = lambda path: float((read_picture(path)[1] * 255 - ramp).abs().max()) < 6
    grey, colour = Image.fromarray(ramp), Image.fromarray(np.repeat(ramp[..., None], 3, 2))
    for name, image in (("grey", grey), ("colour", colour), ("16", Image.fromarray(ramp.astype(np.uint16) * 257))):
        for suffix in ("png", "tif", *(() if name == "16" else ("jpg", "webp", "bmp"))):
            path = folder / f"{name}.{suffix}"
            image.save(path, quality=98) if suffix in ("jpg", "webp") else image.save(path)
            yield "pictures", path.name, lambda path=path: near(path)
    for orientation in range(1, 9):
        exif, path = Image.Exif(), folder / f"exif-{orientation}.jpg"
        exif[0x112] = orientation
        Image.fromarray(frame(5)).save(path, exif=exif, quality=95)
        tall = orientation > 4
        yield "pictures", path.name, lambda path=path, tall=tall: (read_picture(path).shape[1] == W) == tall
    clear = np.dstack([np.full((H, W), 255, np.uint8)] + [np.zeros((H, W), np.uint8)] * 3)
    Image.fromarray(clear).save(folder / "clear.png")
    yield "pictures", "clear.png", lambda: float((read_picture(folder / "clear.png") - 0.5).abs().max()) < 0.01


def masks(folder: Path) -> Iterator[Case]:
    """Label maps, brightness, transparency, arrays; one of two objects has label 2."""
    labels = np.zeros(SIZE, np.uint8)
    labels[8:30, 8:30], labels[20:40, 45:70] = 1, 2
    right = lambda path, frames=1: bool((load_mask(path, frames, SIZE)[0].numpy() == (labels > 0)).mean() > 0.995)
    white = np.where(labels > 0, 255, 0).astype(np.uint8)
    save = {
        "index.png": labels,
        "index16.png": labels.astype(np.uint16),
        "ids16.png": labels.astype(np.uint16) * 1000,
        "spread.png": labels * 100,
        "white.png": white,
        "white.bmp": white,
        "white.tif": white,
        "white.jpg": white,
        "white.webp": white,
        "red.png": np.dstack([white, 0 * white, 0 * white]),
        "red.jpg": np.dstack([white, 0 * white, 0 * white]),
        "clear.png": np.dstack([frame(3), white]),
    }
    for name, values in save.items():
        options: dict[str, Any] = {"subsampling": 0, "quality": 95} if "jpg" in name else {}
        Image.fromarray(values).save(folder / name, **options)
        yield "masks", name, lambda name=name: right(folder / name)
    palette = Image.fromarray(labels)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(folder / "palette.png")
    (folder / "masks").mkdir()
    for number in range(3):
        palette.save(folder / "masks" / f"{number:05d}.png")
    yield "masks", "palette.png", lambda: right(folder / "palette.png")
    yield "masks", "folder", lambda: right(folder / "masks", 3)
    for name, values in {
        "bool": labels > 0,
        "labels": labels,
        "float": (labels > 0).astype(np.float32),
        "logits": np.where(labels > 0, 8.0, -8.0),
        "TCHW": np.repeat((labels > 0)[None, None], 3, 0),
        "THWC": np.repeat((labels > 0)[None, ..., None], 3, 0),
    }.items():
        np.savez(folder / f"{name}.npz", masks=values, frames=np.ones((3, *SIZE), np.uint8))
        frames = 3 if values.ndim == 4 else 1
        yield "masks", f"{name}.npz", lambda name=name, frames=frames: right(folder / f"{name}.npz", frames)
        np.save(folder / f"{name}.npy", values)
        yield "masks", f"{name}.npy", lambda name=name, frames=frames: right(folder / f"{name}.npy", frames)


def depths(folder: Path) -> Iterator[Case]:
    """A wall with a box before it, as distance and as disparity, where the file says which or must be asked about."""
    z = np.full((1, *SIZE), 6.0, np.float32)
    z[:, 12:36, 25:60] = 2
    behind = lambda path, **o: (
        float(load_depth(path, 1, SIZE, **o).z[0, 2, 2] / load_depth(path, 1, SIZE, **o).z[0, 24, 40]) > 1.5
    )
    flat = (1 / z - 1 / 6) * 3
    for name, values in {"z": z, "depth": z, "distance": z, "disparity": 1 / z, "inverse_depth": 1 / z}.items():
        np.savez(folder / f"{name}.npz", **{name: values})  # type: ignore[arg-type]
        yield "depth", f"{name}.npz", lambda name=name: behind(folder / f"{name}.npz")
    for name, key, values in (("dc", "depth", flat), ("vda", "depths", 300 / z), ("other", "arr_0", z)):
        path = folder / f"{name}.npz"
        np.savez(path, **{key: values})  # type: ignore[arg-type]
        yield "depth", f"{name}.npz, asked about", lambda path=path: _is_asked(lambda: load_depth(path, 1, SIZE))
        kind = "depth" if name == "other" else "disparity"
        yield "depth", f"{name}.npz, as {kind}", lambda path=path, kind=kind: behind(path, kind=kind)
    millimetres = (z[0] * 1000).astype(np.uint16)
    millimetres[:4, 20:30] = 65535
    Image.fromarray(millimetres).save(folder / "mm.png")
    yield (
        "depth",
        "mm.png",
        lambda: behind(folder / "mm.png") and bool(load_depth(folder / "mm.png", 1, SIZE).z.max() < 7000),
    )


def _is_asked(read: Callable[[], Any]) -> bool:
    try:
        read()
    except InputError as error:
        return "--depth-kind" in str(error)
    return False


def cameras(folder: Path) -> Iterator[Case]:
    """Paths of others, a step of 0.1 to the right in each frame."""
    pose = lambda i, s=1.0: [[s, 0, 0, 0.1 * i], [0, s, 0, 0], [0, 0, s, 0], [0, 0, 0, 1]]
    entries = [{"file_path": f"a/{i + 1:04d}.png", "transform_matrix": pose(i)} for i in range(5)]
    shared = {"w": 160, "h": 96, "fl_x": 150.0, "cx": 80.0, "cy": 48.0}
    scaled = [entry | {"transform_matrix": pose(i, 2.0)} for i, entry in enumerate(entries)]
    flat = [{"camera_to_world": np.ravel(pose(i)).tolist(), "fov": 50.0, "aspect": 1.5} for i in range(5)]
    unreal = {f"frame{i}": {"cam01": f"[1 0 0 0] [0 1 0 0] [0 0 1 0] [0 {50 * i} 0 1]"} for i in range(5)}
    given = {
        "plain": shared | {"frames": entries},
        "unsorted": shared | {"frames": [entries[i] for i in (2, 0, 4, 1, 3)]},
        "scaled": shared | {"frames": scaled},
        "three-rows": shared | {"frames": [e | {"transform_matrix": e["transform_matrix"][:3]} for e in entries]},
        "no-width": {"fl_x": 150.0, "cx": 80.0, "cy": 48.0, "frames": entries},
        "camera_path": {"keyframes": [], "render_width": 3, "render_height": 2, "camera_path": flat},
        "unreal": unreal,
        "gap": {name: value for name, value in unreal.items() if name != "frame2"},
    }
    for name, content in given.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path = folder / f"{name}-{encoding}.json"
            path.write_bytes(json.dumps(content, indent=1).replace("\n", "\r\n").encode(encoding))
            yield "cameras", path.name, lambda path=path: _steps(path)
    np.savez(folder / "poses.npz", world_from_cam=np.array([pose(i) for i in range(5)]))
    yield "cameras", "poses.npz", lambda: _steps(folder / "poses.npz")


def _steps(path: Path) -> bool:
    move = next(iter(read_moves(path).values()))
    return bool(np.abs(sample_move(move, 5, 55.0)[0][:, 0, 3].numpy() - 0.1 * np.arange(5)).max() < 1e-4)


def damaged(folder: Path) -> Iterator[Case]:
    """Good files cut off and with bytes that were flipped: whatever is read is right, the rest must be refused."""
    seeds: dict[str, Callable[[Path], Any]] = {
        "a.mp4": read_video, "a.mkv": read_video, "a.webm": read_video, "a.gif": read_video, "a.png": read_picture,
        "a.jpg": read_picture, "mask.png": lambda path: load_mask(path, 1, SIZE),
        "mask.npz": lambda path: load_mask(path, 1, SIZE), "depth.npz": lambda path: load_depth(path, 1, SIZE),
        "depth.png": lambda path: load_depth(path, 1, SIZE), "camera.npz": read_moves, "camera.json": read_moves,
    }  # fmt: skip
    for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")):
        write_clip(folder / f"a.{suffix}", codec)
    images = [Image.fromarray(frame(number)) for number in range(4)]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:], duration=40)
    images[0].save(folder / "a.png")
    images[0].save(folder / "a.jpg")
    square = np.zeros(SIZE, np.uint8)
    square[9:30, 9:30] = 255
    Image.fromarray(square).save(folder / "mask.png")
    np.savez_compressed(folder / "mask.npz", mask=square > 0)
    np.savez_compressed(folder / "depth.npz", z=np.linspace(1, 2, H * W).reshape(1, H, W))
    Image.fromarray(np.linspace(900, 2000, H * W).reshape(SIZE).astype(np.uint16)).save(folder / "depth.png")
    np.savez_compressed(folder / "camera.npz", world_from_cam=np.tile(np.eye(4), (3, 1, 1)))
    (folder / "camera.json").write_text(json.dumps({"version": 1, "keyframes": [{"time": 0}, {"time": 1}]}))
    rng = np.random.default_rng(0)
    for name, read in seeds.items():
        good = (folder / name).read_bytes()
        spoilt = {f"cut-{share}": good[: len(good) * share // 100] for share in (0, 10, 60, 95)}
        for n in range(8):
            data = bytearray(good)
            for at in rng.integers(0, len(good), 1 + n):
                data[at] ^= int(rng.integers(1, 256))
            spoilt[f"flipped-{n}"] = bytes(data)
        for how, data in spoilt.items():
            path = folder / f"{how}-{name}"
            path.write_bytes(data)
            yield "damaged", path.name, lambda path=path, read=read: read(path) is not None


def outcome(name: str, right: Callable[[], bool]) -> tuple[str, str]:
    """right, refused, wrong, unclear or foreign; and the words."""
    try:
        return ("right", "") if right() else ("wrong", "")
    except InputError as error:
        words = str(error)
        clear = name.split(",")[0].rsplit(".", 1)[0] in words and not any(word in words for word in _FOREIGN)
        return ("refused" if clear else "unclear"), words
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=None, metavar="FILE", help="also write a JSON line for each file")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    lines = []
    with tempfile.TemporaryDirectory() as root:
        for number, group in enumerate((clips, animations, pictures, masks, depths, cameras, damaged)):
            folder = Path(root) / str(number)
            folder.mkdir()
            for kind, name, right in group(folder):
                found, words = outcome(name, right)
                if kind != "damaged" and found == "refused":  # it has a right answer
                    found = "wrong"
                counts.setdefault(kind, Counter())[found] += 1
                lines.append({"group": kind, "name": name, "outcome": found, "words": words})
                if found not in ("right", "refused"):
                    print(f"{found}: {kind}/{name}: {words}")
    columns = ("right", "refused", "wrong", "unclear", "foreign")
    print(f"| inputs | tried | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {kind} | {sum(found.values())} | {' | '.join(str(found[column]) for column in columns)} |")
    if options.output:
        Path(options.output).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return int(any(line["outcome"] not in ("right", "refused") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
