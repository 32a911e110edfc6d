"""Cameras that other programs solved from pictures: COLMAP's text model, and the npz of ViPE.

COLMAP (colmap.github.io/format.html): images.txt has a line for each picture, ID QW QX QY QZ TX TY TZ CAMERA_ID NAME,
with the rotation and shift of cam_from_world in OpenCV axes, and a line of its points, which may be empty or missing.
cameras.txt has ID MODEL WIDTH HEIGHT PARAMS with the focal length first; points3D.txt has ID X Y Z and more.

ViPE (nv-tlabs/vipe): pose/NAME.npz has `data`, world_from_cam N 4 4 in OpenCV axes, and `inds`, which frames they are
of; intrinsics/NAME.npz beside that folder has `data` N 4, fx fy cx cy in pixels.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float

from pipeline import InputError
from pipeline.media import arrays

MAX_BYTES = 512_000_000  # of a text with the points of every picture
_MAX_POSES = 100_000
_MAX_POINTS = 300_000  # that are enough to tell how far off they are
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")


@dataclass(frozen=True, eq=False)
class Solved:
    """world_from_cam: N 4 4, float64, OpenCV axes. numbers: which frame each is of, ascending from 0. fov: degrees
    along the longer side, None where it is not said. distance: to what the first camera sees, in the poses' unit, None
    where that is not said.
    """

    world_from_cam: Float[np.ndarray, "N 4 4"]
    numbers: list[int]
    fov: list[float | None]
    distance: float | None


def is_colmap(path: Path) -> bool:
    """Whether a path names a text model of COLMAP: its folder, its images.txt, or a zip of it."""
    if path.is_dir():
        return (path / "images.txt").is_file()
    return path.name == "images.txt" or path.suffix.lower() == ".zip"


def read_colmap(path: Path) -> Solved:
    """The cameras of a text model in the order of their pictures' names. Raises `InputError`, and anything else."""
    with _model(path) as files:
        if "images.txt" not in files:
            raise InputError("there is no images.txt in it: export the model as text (colmap model_converter).")
        with files["images.txt"]() as stream:
            pictures = sorted(_pictures(_lines(stream)), key=lambda picture: by_numbers(picture[0]))
        if not pictures:
            raise InputError("there are no pictures in images.txt.")
        lenses: dict[int, tuple[float, float, float, float]] = {}
        if "cameras.txt" in files:
            with files["cameras.txt"]() as stream:
                lenses = dict(map(_lens, _lines(stream)))
        poses = np.stack([pose for _, _, pose in pictures])
        distance = None
        if "points3D.txt" in files:
            with files["points3D.txt"]() as stream:
                distance = _distance(_points(_lines(stream)), poses[0], lenses.get(pictures[0][1]))
    fov = [_fov(*lenses[camera]) if camera in lenses else None for _, camera, _ in pictures]
    return Solved(poses, _numbers([by_numbers(name) for name, _, _ in pictures]), fov, distance)


def read_vipe(file: io.BytesIO, found: dict[str, arrays.Header], path: Path) -> Solved:
    """The cameras in a pose file of ViPE, whose headers are `found`. Raises `InputError`, and anything else."""
    poses = _array(file, found, "data")
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise InputError(f"its data of shape {poses.shape} are no poses N 4 4: give the file of the folder pose.")
    numbers = _array(file, found, "inds").astype(int).tolist() if "inds" in found else list(range(len(poses)))
    if len(numbers) != len(poses) or any(b <= a for a, b in pairwise(numbers)):
        raise InputError("its inds do not say which frames the poses are of.")
    fov: list[float | None] = [None] * len(poses)
    beside = path.parent.parent / "intrinsics" / path.name
    if beside.is_file() and beside.stat().st_size <= MAX_BYTES:
        lens = _array(beside, arrays.headers(beside), "data")
        if lens.ndim != 2 or lens.shape[0] != len(poses) or lens.shape[1] < 4:
            raise InputError(f"the intrinsics beside it have shape {lens.shape}, not {len(poses)} 4.")
        fov = [_fov(fx, fy, 2 * cx, 2 * cy) for fx, fy, cx, cy in lens[:, :4].tolist()]
    return Solved(poses, [number - numbers[0] for number in numbers], fov, None)


def _array(file: Path | io.BytesIO, found: dict[str, arrays.Header], name: str) -> np.ndarray:
    shape, dtype = found[name]
    if math.prod(shape) > 16 * _MAX_POSES or dtype.kind not in "fiu":
        raise InputError(f"the array {name} has shape {shape} and type {dtype}: not a camera path that can be read.")
    return np.asarray(arrays.read_array(file, name), np.float64)


def _fov(fx: float, fy: float, width: float, height: float) -> float:
    focal = fx if width >= height else fy
    return math.degrees(2 * math.atan(max(width, height) / (2 * focal)))


# --- COLMAP's text ----------------------------------------------------------------------------------------------------


@contextmanager
def _model(path: Path) -> Iterator[dict]:
    """What opens each file of a model, by name: of a folder, of the folder of images.txt, or of a zip."""
    names = ("images.txt", "cameras.txt", "points3D.txt")
    if path.suffix.lower() != ".zip":
        folder = path if path.is_dir() else path.parent
        there = [folder / name for name in names if (folder / name).is_file()]
        for file in there:
            if file.stat().st_size > MAX_BYTES:
                raise InputError(f"{file.name} is larger than {MAX_BYTES // 10**6} MB.")
        yield {file.name: lambda file=file: file.open("rb") for file in there}
        return
    with zipfile.ZipFile(path) as archive:
        inside = {}
        for entry in archive.infolist()[:10_000]:
            name = entry.filename.rsplit("/", 1)[-1]
            if name in names and name not in inside:
                if entry.file_size > MAX_BYTES:  # what is unpacked is never more than this says
                    raise InputError(f"{name} in it is larger than {MAX_BYTES // 10**6} MB.")
                inside[name] = lambda entry=entry: archive.open(entry)
        yield inside


def _lines(stream: IO[bytes]) -> Iterator[list[str]]:
    """The words of each line that says something."""
    for line in io.TextIOWrapper(stream, encoding="utf-8-sig"):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def _pictures(lines: Iterator[list[str]]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, camera and world_from_cam of each picture. Lines of points are numbers alone."""
    from scipy.spatial.transform import Rotation

    count = 0
    for words in lines:
        if len(words) < 10 or _is_number(words[9]):
            continue
        count += 1
        if count > _MAX_POSES:
            raise InputError(f"there are more than {_MAX_POSES} pictures in images.txt.")
        w, x, y, z, *shift = map(float, words[1:8])
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix().T
        pose[:3, 3] = -pose[:3, :3] @ shift
        yield " ".join(words[9:]), int(words[8]), pose


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _lens(words: list[str]) -> tuple[int, tuple[float, float, float, float]]:
    """A camera's number, and its fx, fy, width and height in pixels."""
    width, height, focal, other = map(float, (*words[2:5], words[4 if words[1] in _ONE_FOCAL else 5]))
    return int(words[0]), (focal, other, width, height)


def _points(lines: Iterator[list[str]]) -> Float[np.ndarray, "N 3"]:
    found = [[float(word) for word in words[1:4]] for _, words in zip(range(_MAX_POINTS), lines, strict=False)]
    return np.array(found, np.float64).reshape(-1, 3)


def _distance(
    points: Float[np.ndarray, "N 3"], world_from_cam: np.ndarray, lens: tuple[float, float, float, float] | None
) -> float | None:
    """The median depth of the points that a camera sees; None where it sees none."""
    x, y, z = np.linalg.inv(world_from_cam)[:3] @ np.concatenate([points, np.ones((len(points), 1))], 1).T
    seen = np.isfinite(z) & (z > 0)
    if lens is not None:
        fx, fy, width, height = lens
        seen &= (np.abs(x) * fx <= z * width / 2) & (np.abs(y) * fy <= z * height / 2)
    return float(np.median(z[seen])) if seen.any() else None


def by_numbers(name: str) -> list[tuple[int, int, str]]:
    """What names are sorted by: the numbers in them as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _numbers(parts: list[list[tuple[int, int, str]]]) -> list[int]:
    """Which frame each picture is of: the last number in its name, where the names differ in that alone."""
    split = [max((i for i, part in enumerate(name) if part[0] == 0), default=None) for name in parts]
    at = split[0]
    alike = at is not None and all(
        other == at and name[:at] + name[at + 1 :] == parts[0][:at] + parts[0][at + 1 :]
        for name, other in zip(parts, split, strict=True)
    )
    if at is None or not alike:
        return list(range(len(parts)))
    found = [name[at][1] - parts[0][at][1] for name in parts]
    step = max(1, math.gcd(*found))
    if any(b <= a for a, b in pairwise(found)):
        return list(range(len(parts)))
    return [number // step for number in found]
