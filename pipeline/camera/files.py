"""Camera paths in files: ours, TrajectoryCrafter's text, ReCamMaster's JSON, nerfstudio's transforms.json, and npz.

What COLMAP and ViPE solved (`solved`) is read, too, and not written.

Each is read into a `Move`, that is into keyframes relative to the camera that filmed the clip, with the distance to the
subject as the unit (see `pipeline.moves`). Files of others know neither that camera nor that unit: their first camera
is taken to be the one that filmed, unless we wrote the file, and `unit` says how many of their units make one distance.
Both are said in the move's `origin`.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.moves import MAX_KEYFRAMES, Move, move_from_poses, sample_move, spline_through
from pipeline.camera.solved import Solved, by_numbers, is_colmap, read_colmap, read_vipe
from pipeline.media import arrays
from pipeline.media.arrays import guarded

FORMATS: dict[str, tuple[str, str]] = {
    "recapture": ("Recapture (JSON, editable)", ".json"),
    "trajectorycrafter": ("TrajectoryCrafter (text)", ".txt"),
    "recammaster": ("ReCamMaster (camera JSON)", ".json"),
    "nerfstudio": ("nerfstudio, instant-ngp (transforms.json)", ".json"),
    "npz": ("OpenCV matrices (npz: K, world_from_cam)", ".npz"),
}
READ_ALONE = (
    "COLMAP (images.txt, its folder, or a zip of that)",
    "ViPE (pose npz)",
    "Blender (docs/blender_camera.py)",
)
SUFFIXES = [".json", ".txt", ".npz", ".zip"]
MAX_BYTES = 20_000_000
_MAX_POSES = 100_000
_SHEARED = 0.02  # how far rows of a rotation may be from unit length and right angles: files round
RECAMMASTER_UNIT = 5.0  # metres from its cameras to its people are 3, 5, 7 or 10 (the README of its data set)
SUBJECT_KEY = "subject_distance"  # of transforms.json: that of the first camera, in the file's unit
_OURS = "recapture_world"  # marks files of ours: the world is the filming camera, the unit the subject's distance
_FIRST = "The first camera is taken for the one that filmed, and one distance to the subject for"
_RECAM_FRAME = r"frame\d{1,9}"  # of ReCamMaster's names
_GL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL axes (y up, z back) to OpenCV axes


def read_moves(path: str | Path, *, unit: float | None = None) -> dict[str, Move]:
    """The camera moves in a file, by name; most files hold one. Raises `InputError`.

    path: a file, or the folder of a text model of COLMAP.
    unit: how many of the file's units make one distance to the subject; None for what the file tells of it (COLMAP's
    points, Blender's focus), else 1, or 5 for ReCamMaster's metres.
    Of others' cameras only the field of view is used of the intrinsics: the principal point stays the clip's.
    """
    path = Path(path)
    if unit is not None and not (math.isfinite(unit) and unit > 0):
        raise InputError(f"The unit of a camera file must be a positive number; it is {unit!r}.")
    formats = "; ".join((*(label for label, _ in FORMATS.values()), *READ_ALONE))
    with guarded(f"{path.name} is not a camera path that can be read", f"give one of: {formats}."):
        try:
            moves = _read(path, unit)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
    named = lambda words: f"{path.name}: {words}" if words.startswith(_FIRST) else words
    return {name: replace(move, origin=named(move.origin)) for name, move in moves.items()}


def _read(path: Path, unit: float | None) -> dict[str, Move]:
    if (path.is_dir() and not is_colmap(path)) or path.name in ("images.bin", "cameras.bin"):
        raise InputError(
            "there is no images.txt of COLMAP: export the model as text (colmap model_converter --output_type TXT)."
        )
    if is_colmap(path):
        return {path.stem: _from_solved(read_colmap(path), unit)}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"it is larger than {MAX_BYTES // 10**6} MB: it can't be a camera path.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror or error}.") from error
    if path.suffix.lower() == ".npz":
        return {path.stem: _from_npz(content, unit, path)}
    text = _decoded(content)
    if path.suffix.lower() == ".txt":
        return {path.stem: _from_angles(text)}
    if path.suffix.lower() not in SUFFIXES and not text.lstrip().startswith("{"):
        raise ValueError("of another kind")
    return _from_json(text, path.stem, unit)


def _decoded(content: bytes) -> str:
    """Text with or without a byte order mark, as Windows programs write it."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


def read_move(path: str | Path, *, name: str | None = None, unit: float | None = None) -> Move:
    """The move called `name` in a file, or its first. Raises `InputError`."""
    moves = read_moves(path, unit=unit)
    if name is not None and name not in moves:
        raise InputError(f"{Path(path).name} has no camera {name!r}; it has {', '.join(moves)}.")
    return moves[name] if name is not None else next(iter(moves.values()))


def write_move(format: str, move: Move, *, frames: int, own_fov: float, size: tuple[int, int]) -> bytes:
    """A move as the content of a file in one of `FORMATS`.

    frames: how many cameras the formats without keyframes get. own_fov: field of view of the clip in degrees along the
    longer side; size: (h, w) of the picture that K is written for. Raises `InputError` where the format cannot say it.
    """
    if format not in FORMATS:
        raise InputError(f"The camera format {format!r} is unknown: choose one of {', '.join(FORMATS)}.")
    if format == "recapture":
        return _json(move.to_dict())
    poses, fov = (values.numpy() for values in sample_move(move, frames, own_fov))
    focal = 0.5 * max(size) / np.tan(np.radians(fov) / 2)
    if format == "npz":
        K = np.zeros((frames, 3, 3))
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, :, 2] = [size[1] / 2, size[0] / 2, 1]
        file = io.BytesIO()
        np.savez(file, K=K, world_from_cam=poses, size=np.array(size))
        return file.getvalue()
    if format == "nerfstudio":
        each = [
            {"file_path": f"{i:04d}.png", "fl_x": f, "fl_y": f, "transform_matrix": (pose @ _GL).tolist()}
            for i, (pose, f) in enumerate(zip(poses, focal.tolist(), strict=True))
        ]
        h, w = size
        shared = {"camera_model": "OPENCV", "w": w, "h": h, "cx": w / 2, "cy": h / 2, _OURS: True}
        return _json(shared | {"frames": each})
    if format == "recammaster":
        return _json({_OURS: True} | {f"frame{i}": {"cam01": _unreal(pose)} for i, pose in enumerate(poses)})
    return _angles(poses, fov, own_fov)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _move(poses: np.ndarray, fov: list[float | None] | None, *, unit: float, ours: bool) -> Move:
    """world_from_cam N 4 4 in the file's unit; of others, relative to the first."""
    poses = np.asarray(poses, np.float64)
    if not len(poses):
        raise InputError("there are no cameras in it.")
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise InputError(f"poses of shape {poses.shape} are not N 4 4.")
    poses = poses if ours else _rigid(poses)
    if len(poses) > MAX_KEYFRAMES:  # evenly thinned: a path of thousands of cameras is far below the clip's frames
        kept = np.linspace(0, len(poses) - 1, MAX_KEYFRAMES).round().astype(int)
        poses, fov = poses[kept], None if fov is None else [fov[i] for i in kept]
    if not ours and len(poses):
        poses = np.linalg.inv(poses[0]) @ poses
    poses = poses.copy()
    poses[:, :3, 3] /= 1.0 if ours else unit
    return move_from_poses(torch.from_numpy(poses), fov, "" if ours else f"{_FIRST} {unit:.4g} of its units.")


def _rigid(poses: np.ndarray) -> np.ndarray:
    """Poses N 4 4 without the scale that programs leave in the rotation. Raises InputError for what is no rotation.

    A world with left-handed axes (Unreal) is mirrored: how the cameras move relative to the first stays the same.
    """
    poses = poses.copy()
    if len(poses) and (np.linalg.det(poses[:, :3, :3]) < 0).all():
        poses[:, 0] *= -1
    for number, pose in enumerate(poses, 1):
        wrong = f"Pose {number} of the camera path is not a rotation with a position"
        if not np.isfinite(pose).all():
            raise InputError(f"{wrong}: it has numbers that are not finite.")
        volume = np.linalg.det(pose[:3, :3])
        if volume < 0:
            raise InputError(f"{wrong}: it is mirrored, and others are not.")
        rotation = pose[:3, :3] / max(volume, 1e-30) ** (1 / 3)
        if volume < 1e-9 or np.abs(rotation.T @ rotation - np.eye(3)).max() > _SHEARED:
            raise InputError(f"{wrong}.")
        left, _, right = np.linalg.svd(rotation)
        exact = left @ right
        pose[:3, :3] = rotation if np.abs(exact - rotation).max() < 1e-6 else exact
        pose[3] = [0, 0, 0, 1]
    return poses


def _fov(focal: float, side: float) -> float:
    return math.degrees(2 * math.atan(side / (2 * focal)))


# --- npz --------------------------------------------------------------------------------------------------------------


def _from_solved(solved: Solved, unit: float | None) -> Move:
    """A missing frame's camera lies between its neighbours; where more than half are missing, what there is, evenly."""
    poses, fov, numbers = solved.world_from_cam, solved.fov, np.array(solved.numbers)
    if numbers[-1] < 2 * len(numbers):
        fov = [fov[np.searchsorted(numbers, number, side="right") - 1] for number in range(numbers[-1] + 1)]
        poses = _without_gaps(poses, numbers.tolist())
    return _move(poses, fov, unit=unit or solved.distance or 1.0, ours=False)


def _from_npz(content: bytes, unit: float | None, path: Path) -> Move:
    """world_from_cam N 4 4 in OpenCV axes, as is; K N 3 3 or 3 3, with size (h, w), or the principal point doubled."""
    file = io.BytesIO(content)
    found = arrays.headers(file)
    if "data" in found and "world_from_cam" not in found:
        return _from_solved(read_vipe(file, found, path), unit)
    if "world_from_cam" not in found:
        raise InputError(f"there is no world_from_cam in it, only {', '.join(found) or 'nothing'}.")
    given = {}
    for name in ("world_from_cam", "K", "size"):
        if name in found:
            shape, dtype = found[name]
            if math.prod(shape) > 16 * _MAX_POSES or dtype.kind not in "fiu":
                raise InputError(
                    f"the array {name} has shape {shape} and type {dtype}: not a camera path that can be read."
                )
            given[name] = np.asarray(arrays.read_array(file, name), np.float64)
    poses = given["world_from_cam"]
    fov: list[float | None] | None = None
    if "K" in given:
        K = np.broadcast_to(given["K"], (len(poses), 3, 3))
        sizes = [given["size"]] * len(K) if "size" in given else [(2 * k[1, 2], 2 * k[0, 2]) for k in K]
        fov = [_fov(k[0, 0] if w >= h else k[1, 1], max(h, w)) for k, (h, w) in zip(K, sizes, strict=True)]
    poses = poses.copy()
    poses[:, :3, 3] /= unit or 1.0
    return _move(poses, fov, unit=1.0, ours=True)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _from_json(text: str, name: str, unit: float | None) -> dict[str, Move]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"it is not valid JSON (line {error.lineno}): not a camera path that can be read.") from error
    if not isinstance(given, dict):
        raise InputError("there is no JSON object in it.")
    if isinstance(given.get("camera_path"), list):
        return {name: _from_viewer(given, unit or 1.0)}
    if "keyframes" in given:
        return {name: Move.from_dict(given)}
    ours = given.get(_OURS) is True
    if isinstance(given.get("frames"), list):
        told = given.get(SUBJECT_KEY)
        if told is not None and not (isinstance(told, (int, float)) and math.isfinite(told) and told > 0):
            raise InputError(f"{SUBJECT_KEY} must be a positive number; it is {told!r}.")
        return {name: _from_nerfstudio(given, unit or told or 1.0, ours)}
    if any(re.fullmatch(_RECAM_FRAME, key) for key in given):
        return _from_recammaster(given, unit or RECAMMASTER_UNIT, ours)
    raise InputError("there are neither keyframes nor frames in it.")


def _from_nerfstudio(given: dict[str, Any], unit: float, ours: bool) -> Move:
    """docs.nerf.studio, "Data conventions": transform_matrix is world_from_cam in OpenGL axes; fl_x, w in pixels."""
    poses, fov = [], []
    for frame in _in_order(given["frames"]):
        has = given | frame
        pose = np.eye(4)
        matrix = np.array(has["transform_matrix"], np.float64)
        pose[: len(matrix)] = matrix
        poses.append(pose @ _GL)
        w, h = (float(has.get(side, 0)) or 2 * float(has.get(centre, 0)) for side, centre in (("w", "cx"), ("h", "cy")))
        if "fl_x" in has and w:
            fov.append(_fov(float(has.get("fl_y", has["fl_x"])), h) if h > w else _fov(float(has["fl_x"]), w))
        elif "camera_angle_x" in has:  # of the width, which is the longer side where nothing else is said
            angle = float(has["camera_angle_x"])
            fov.append(math.degrees(2 * math.atan(math.tan(angle / 2) * max(1.0, h / w if w else 1.0))))
        else:
            fov.append(None)
    return _move(np.array(poses), fov, unit=unit, ours=ours)


def _in_order(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the numbers in their pictures' names, as nerfstudio itself does: COLMAP lists pictures as it finds them."""
    names = [str(frame.get("file_path") or "") for frame in frames]
    if len(set(names)) < len(names) or "" in names:
        return frames
    return [frame for _, frame in sorted(zip(names, frames, strict=True), key=lambda pair: by_numbers(pair[0]))]


def _from_viewer(given: dict[str, Any], unit: float) -> Move:
    """camera_path.json of nerfstudio's viewer: camera_to_world row by row in OpenGL axes, fov of the height."""
    poses, fov = [], []
    for camera in given["camera_path"]:
        poses.append(np.array(camera["camera_to_world"], np.float64).reshape(4, 4) @ _GL)
        aspect = float(camera.get("aspect") or 0) or float(given["render_width"]) / float(given["render_height"])
        tangent = math.tan(math.radians(float(camera["fov"])) / 2) * max(1.0, aspect)
        fov.append(math.degrees(2 * math.atan(tangent)))
    return _move(np.array(poses), fov, unit=unit, ours=False)


def _from_recammaster(given: dict[str, Any], unit: float, ours: bool) -> dict[str, Move]:
    """KwaiVGI/ReCamMaster: frame0..frameN, each with cam01.. as text "[x x x 0] [y y y 0] [z z z 0] [t t t 1]".

    The rows are the columns of world_from_cam in Unreal's left-handed axes (x forward, y right, z up), in centimetres;
    ReCamMaster takes the columns y, -z, x for the camera's OpenCV axes.
    """
    moves = {}
    for name, (poses, numbers) in _metres(given).items():
        if ours:  # the world's axes too: from Unreal's to OpenCV's
            poses[:, :3] = poses[:, [1, 2, 0]] * np.array([1.0, -1.0, 1.0])[:, None]
            poses[:, :3, 3] /= RECAMMASTER_UNIT
        moves[name] = _move(_without_gaps(poses, numbers), None, unit=unit, ours=ours)
    return moves


def multicam_poses(path: Path) -> dict[str, Float[Tensor, "N 4 4"]]:
    """The cameras of a scene of MultiCamVideo by name, world_from_cam in metres, OpenCV axes of the cameras.

    The world is Unreal's, made right-handed by a mirror, as all of them alike. Raises `InputError`.
    """
    with guarded(f"{path} holds no cameras of a scene", "it is to be as MultiCamVideo has it."):
        found = _metres(json.loads(path.read_text(encoding="utf-8")))
        return {
            name: torch.from_numpy(_without_gaps(_rigid(poses), frames)).float()
            for name, (poses, frames) in found.items()
        }


def _metres(given: dict[str, Any]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The poses of each camera and which frames they are of, see `_from_recammaster`."""
    numbers = sorted(int(key[5:]) for key in given if re.fullmatch(_RECAM_FRAME, key))
    if numbers[0] != 0 or not isinstance(given["frame0"], dict):
        raise InputError("its cameras do not begin with frame0.")
    if 2 * len(numbers) <= numbers[-1]:
        raise InputError(f"more than half of its frames 0 to {numbers[-1]} are missing.")
    if not given["frame0"]:
        raise InputError("there is no camera in its frames.")
    found = {}
    for name in given["frame0"]:
        rows = [_numbers_of(given[f"frame{i}"][name]) for i in numbers]
        unreal = np.array(rows, np.float64).reshape(len(rows), 4, 4).transpose(0, 2, 1)
        poses = unreal[:, :, [1, 2, 0, 3]]
        poses[:, :3, 1] *= -1
        poses[:, :3, 3] /= 100
        found[str(name)] = poses, numbers
    return found


def _numbers_of(matrix: Any) -> list[Any]:
    if isinstance(matrix, str):
        return matrix.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return [value for row in matrix for value in row]


def _without_gaps(poses: np.ndarray, numbers: list[int]) -> np.ndarray:
    """A pose for each frame from 0 to the last; those that are missing lie between their neighbours."""
    from scipy.spatial.transform import Rotation, Slerp

    if len(numbers) == numbers[-1] + 1:
        return poses
    poses, every = _rigid(poses), np.arange(numbers[-1] + 1)
    filled = np.tile(np.eye(4), (len(every), 1, 1))
    filled[:, :3, :3] = Slerp(numbers, Rotation.from_matrix(poses[:, :3, :3]))(every).as_matrix()
    filled[:, :3, 3] = np.stack([np.interp(every, numbers, poses[:, axis, 3]) for axis in range(3)], 1)
    return filled


def _unreal(pose: np.ndarray) -> str:
    pose = pose.copy()
    pose[:3, 3] *= 100 * RECAMMASTER_UNIT
    pose[:3] = (pose[:3] * np.array([1.0, -1.0, 1.0])[:, None])[[2, 0, 1]]
    pose[:3, 1] *= -1
    columns = pose[:, [2, 0, 1, 3]].T
    return " ".join("[" + " ".join(f"{value + 0.0:.9g}" for value in column) + "]" for column in columns) + " "


# --- TrajectoryCrafter ------------------------------------------------------------------------------------------------


def _from_angles(text: str) -> Move:
    """TrajectoryCrafter/TrajectoryCrafter, test/trajs/*.txt: degrees up, degrees to the right, and how far forward.

    Each line has as many values as it likes, spread over the clip; forward is in depths of
    the first frame's middle, here in distances to the subject. Its cameras turn about the subject, or about what has
    come in its place:
    p_target = R (p_source - (0, 0, 1 + forward)) + (0, 0, 1) with R = R_y(right) R_x(up). Its own program smooths the
    values; here they are met.
    """
    lines = [[float(word) for word in line.replace(",", " ").split()] for line in text.splitlines() if line.strip()]
    if len(lines) != 3 or not all(lines):
        raise InputError("a text file needs three lines of numbers: degrees up, degrees to the right, how far forward.")
    if not all(math.isfinite(value) for line in lines for value in line):
        raise InputError("there is a number in it that is not finite.")
    count = min(MAX_KEYFRAMES, max(map(len, lines)))
    count = count if len({len(line) for line in lines if len(line) > 1}) <= 1 else max(count, 33)
    at = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    up, right, forward = (
        spline_through(np.linspace(0, 1, len(line)) if len(line) > 1 else np.zeros(1), np.array(line)[:, None])(at)[
            :, 0
        ]
        for line in lines
    )
    return _move(_about_subject(np.radians(up), np.radians(right), forward), None, unit=1.0, ours=True)


def _about_subject(up: np.ndarray, right: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """source_cam_from_target_cam N 4 4 of TrajectoryCrafter's angles (radians)."""
    from scipy.spatial.transform import Rotation

    R = Rotation.from_euler("YX", np.stack([right, up], 1)).as_matrix()
    poses = np.tile(np.eye(4), (len(up), 1, 1))
    poses[:, :3, :3] = R.transpose(0, 2, 1)
    poses[:, :3, 3] = np.stack([0 * up, 0 * up, 1 + forward], 1) - R[:, 2]
    return poses


def _angles(poses: np.ndarray, fov: np.ndarray, own_fov: float) -> bytes:
    up, right = np.arctan2(poses[:, 1, 2], poses[:, 2, 2]), np.arcsin(np.clip(-poses[:, 0, 2], -1, 1))
    forward = poses[:, 2, 3] + poses[:, 2, 2] - 1
    # a spline leaves the circle by some ten thousandths of the distance
    if np.abs(_about_subject(up, right, forward) - poses).max() > 2e-3 or np.abs(fov - own_fov).max() > 1e-6:
        raise InputError(
            "TrajectoryCrafter's text knows only orbits about the subject, to the side or up and down, and dollies: no "
            "pan, roll, zoom or sideways move. Choose another format."
        )
    lines = (np.degrees(up), np.degrees(right), forward)
    return "".join(" ".join(f"{value + 0.0:.9g}" for value in line) + "\n" for line in lines).encode()
