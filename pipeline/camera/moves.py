"""Camera moves as people make them: keyframes, the smooth path through them, and moves to start from.

A move is said relative to the camera that filmed the clip, in OpenCV axes (x right, y down, z forward), with the
distance to the subject as the unit: that camera stands at (0, 0, 0) and the subject at (0, 0, 1). So a move means the
same whatever unit the depth has. Angles are degrees here, since people read and write them; times run from 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import DEFAULT_FOV, ORBITS, PRESETS, CameraPath, Preset, follow

Point = tuple[float, float, float]

MOVE_VERSION = 1
SPEEDS = {
    "keyframes": "Each keyframe at its own time",
    "eased": "Slow start and end",
    "constant": "The same speed throughout",
}
EASES = {  # how the camera goes on from a keyframe to the next, where each has its own time
    "": "As the path goes",
    "in": "Slow start",
    "out": "Slow end",
    "in-out": "Slow start and end",
}
TIMINGS = {  # (time of the result, moment of the clip), both from 0 to 1; named for people
    "as-filmed": ("As filmed", ()),
    "slow": ("Half as fast", ((0.0, 0.0), (1.0, 0.5))),
    "reverse": ("Backwards", ((0.0, 1.0), (1.0, 0.0))),
    "there-and-back": ("There and back", ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0))),
    "freeze-then-go": ("Stands still, then goes", ((0.0, 0.0), (0.4, 0.0), (1.0, 1.0))),
    "bullet-time": ("Stops halfway, then goes on", ((0.0, 0.0), (0.3, 0.5), (0.7, 0.5), (1.0, 1.0))),
    "ramp": ("Slow, then fast", ((0.0, 0.0), (0.6, 0.3), (1.0, 1.0))),
}
MAX_KEYFRAMES = 512
MAX_TIMING = 64
MAX_WORDS = 400
SAME_LENS = 1e-4  # degrees; less of a zoom cannot be seen, and intrinsics are rounded
MAX_REACH = 100.0  # subject distances; a camera farther off sees a dot
SUBJECT: Point = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Keyframe:
    """Where the camera stands and looks at one moment.

    time: in [0, 1] of the result. eye, target: positions in subject distances. roll: degrees, clockwise as the camera
    turns. fov: degrees along the longer side of the picture, None for the clip's own. ease: a name of `EASES`, for the
    way to the next keyframe.
    """

    time: float
    eye: Point = (0.0, 0.0, 0.0)
    target: Point = SUBJECT
    roll: float = 0.0
    fov: float | None = None
    ease: str = ""


@dataclass(frozen=True)
class Move:
    """Keyframes in the order of their times, and how the camera travels through them. Raises `InputError`.

    speed: a name of `SPEEDS`; the times of the keyframes count for "keyframes" alone.
    timing: (time of the result, moment of the clip) pairs in [0, 1], in the order of their times; straight between
        them, and at rest before the first and after the last. None: the clip plays as filmed. One: it stands still.
    origin: where a path is from that was not drawn here, and in which unit, in words for the report.
    """

    keyframes: tuple[Keyframe, ...]
    speed: str = "keyframes"
    timing: tuple[tuple[float, float], ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        _validate(self)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can say; `from_dict` reads it."""
        return {"version": MOVE_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, given: Any) -> Move:
        """The move that `to_dict` wrote; what is left out takes its default. Raises `InputError`.

        `frozen`, a moment of the clip, is read as a timing of that moment alone.
        """
        if not isinstance(given, dict) or not isinstance(given.get("keyframes"), (list, tuple)):
            raise InputError('The camera move must be an object such as {"version": 1, "keyframes": [{"time": 0}]}.')
        given = dict(given)
        version = given.pop("version", None)
        if version != MOVE_VERSION:
            raise InputError(f"The camera move has version {version!r}; this program reads version {MOVE_VERSION}.")
        frozen = given.pop("frozen", None)
        _no_others(given, cls, "The camera move")
        if frozen is not None and given.get("timing"):
            raise InputError("The camera move has both frozen and timing; leave one of the two out.")
        given["timing"] = standing_at(frozen) if frozen is not None else _pairs(given.get("timing", ()))
        keyframes = []
        for number, keyframe in enumerate(given.pop("keyframes"), 1):
            if not isinstance(keyframe, dict) or "time" not in keyframe:
                raise InputError(f'Keyframe {number} must be an object with a "time".')
            _no_others(keyframe, Keyframe, f"Keyframe {number}")
            fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in keyframe.items()}
            keyframes.append(Keyframe(**fixed))
        return cls(tuple(keyframes), **given)

    @classmethod
    def from_json(cls, text: str) -> Move:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("The camera move is not valid JSON; write it as `Move.to_dict` says it.") from error
        return cls.from_dict(given)


def _no_others(given: dict, cls: type, what: str) -> None:
    known = [field.name for field in fields(cls)]
    if others := sorted(set(map(str, given)) - set(known)):
        raise InputError(f"{what} has unknown fields: {', '.join(others)}. Known are: {', '.join(known)}.")


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _validate(move: Move) -> None:
    if not 1 <= len(move.keyframes) <= MAX_KEYFRAMES:
        raise InputError(f"A camera move needs from 1 to {MAX_KEYFRAMES} keyframes; it has {len(move.keyframes)}.")
    if move.speed not in tuple(SPEEDS):
        raise InputError(f"speed must be one of {', '.join(SPEEDS)}; it is {move.speed!r}.")
    _check_timing(move.timing)
    if not isinstance(move.origin, str) or len(move.origin) > MAX_WORDS:
        raise InputError(f"origin must be a text of at most {MAX_WORDS} letters; it is {str(move.origin)[:80]!r}.")
    last = -math.inf
    for number, keyframe in enumerate(move.keyframes, 1):

        def need(ok: bool, name: str, wanted: str, number=number, keyframe=keyframe) -> None:
            if not ok:
                raise InputError(f"Keyframe {number}: {name} must be {wanted}; it is {getattr(keyframe, name)!r}.")

        need(_number(keyframe.time, 0, 1), "time", "from 0 to 1")
        need(keyframe.time > last, "time", "after the time of the keyframe before")
        last = keyframe.time
        for name in ("eye", "target"):
            point = getattr(keyframe, name)
            ok = isinstance(point, tuple) and len(point) == 3 and all(_number(v, -MAX_REACH, MAX_REACH) for v in point)
            need(ok, name, f"three numbers from {-MAX_REACH:g} to {MAX_REACH:g} subject distances")
        need(_number(keyframe.roll, -3600, 3600), "roll", "an angle from -3600 to 3600 degrees")
        need(keyframe.fov is None or _number(keyframe.fov, 5, 150), "fov", "from 5 to 150 degrees, or nothing")
        need(keyframe.ease in tuple(EASES), "ease", f"one of {', '.join(filter(None, EASES))}, or nothing")
        _look(np.array([keyframe.eye]), np.array([keyframe.target]), np.zeros(1), f"Keyframe {number}: the camera")


def standing_at(moment: float) -> tuple[tuple[float, float], ...]:
    """The timing of a clip that stands still at a moment in [0, 1]. Raises `InputError`."""
    if not _number(moment, 0, 1):
        raise InputError(f"frozen must be a moment of the clip from 0 to 1, or nothing; it is {moment!r}.")
    return ((0.0, float(moment)),)


def timing_of(text: str) -> tuple[tuple[float, float], ...]:
    """The timing that a person writes: a name of `TIMINGS`, or pairs such as "0:0,0.5:1,1:0". Raises `InputError`."""
    if text in TIMINGS:
        return TIMINGS[text][1]
    try:
        pairs = [tuple(float(part) for part in pair.split(":")) for pair in text.split(",")]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(
            f"time {text!r}: give one of {', '.join(TIMINGS)}, or pairs of the result's time and the clip's moment, "
            "each from 0 to 1, such as 0:0,0.5:1,1:0"
        )
    timing = _pairs(pairs)
    _check_timing(timing)
    return timing


def frames_at(timing: tuple[tuple[float, float], ...], frames: int) -> list[int]:
    """Which frame of a clip each frame of the result shows, where both have as many."""
    if not timing or frames < 2:
        return list(range(frames))
    return [int(moment * (frames - 1) + 0.5) for moment in _moments(timing, frames)]


def pace_of(timing: tuple[tuple[float, float], ...], frames: int) -> float | None:
    """How fast the clip plays, as a multiple of how it was filmed; None where that changes. 0: it stands still."""
    if not timing or frames < 2:
        return 1.0
    steps = np.diff(_moments(timing, frames)) * (frames - 1)
    return float(steps.mean()) if np.ptp(steps) < 1e-6 else None


def _moments(timing: tuple[tuple[float, float], ...], frames: int) -> np.ndarray:
    times, moments = zip(*timing, strict=True)
    return np.interp(np.linspace(0, 1, frames), times, moments)


def _pairs(given: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(pair, (list, tuple)) for pair in given):
        raise InputError(f"timing must be a list of pairs such as [[0, 0], [1, 0.5]]; it is {given!r}.")
    return tuple(tuple(pair) for pair in given)


def _check_timing(timing: tuple[tuple[float, float], ...]) -> None:
    if len(timing) > MAX_TIMING:
        raise InputError(f"timing can have {MAX_TIMING} pairs; it has {len(timing)}.")
    last = -math.inf
    for number, pair in enumerate(timing, 1):
        if len(pair) != 2 or not all(_number(value, 0, 1) for value in pair):
            raise InputError(f"Pair {number} of timing must be two numbers from 0 to 1; it is {pair!r}.")
        if pair[0] <= last:
            raise InputError(f"Pair {number} of timing must come after the one before; its time is {pair[0]:g}.")
        last = pair[0]


# --- the path through the keyframes -----------------------------------------------------------------------------------


def target_path(move: Move, source: CameraPath, distance: float, size: tuple[int, int]) -> CameraPath:
    """The cameras of a move, one for each frame of the source path; size: (h, w) in pixels that K belongs to.

    distance: to the subject, in the unit of the source's poses. The principal point stays the source's.
    """
    own = fov_of(source, size)
    motion, fov = sample_move(move, len(source.K), own)
    motion[:, :3, 3] *= distance
    path = follow(source, motion.float())
    if (fov - own).abs().max() <= SAME_LENS:
        return path
    K = source.K.clone()
    focal = 0.5 * max(size) / torch.tan(torch.deg2rad(fov) / 2)
    K[:, 0, 0] = K[:, 1, 1] = focal.to(K)
    return CameraPath(path.world_from_cam, K)


def scaled(move: Move, times: float) -> Move:
    """The move that goes so many times as far, and turns and zooms as before. Raises `InputError`."""
    if not _number(times, 0, 1000):
        raise InputError(f"The scale of a camera path must be a number from 0 to 1000; it is {times!r}.")
    if times == 1:
        return move
    keyframes = []
    for keyframe in move.keyframes:
        eye, target = np.array(keyframe.eye), np.array(keyframe.target)
        keyframes.append(replace(keyframe, eye=_point(times * eye), target=_point(times * eye + target - eye)))
    return replace(move, keyframes=tuple(keyframes), origin=f"{move.origin} It goes {times:g} times as far.".strip())


def surely_moves(move: Move) -> bool:
    """Whether the camera of a move moves or zooms, whatever clip it is of. (A single lens may be the clip's own.)"""
    poses, _ = sample_move(move, 33, 55.0)
    lenses = [keyframe.fov for keyframe in move.keyframes if keyframe.fov is not None]
    zooms = max(lenses, default=0.0) - min(lenses, default=0.0) > 2 * SAME_LENS
    return zooms or not torch.equal(poses, torch.eye(4, dtype=poses.dtype).expand_as(poses))


def fov_of(source: CameraPath, size: tuple[int, int]) -> float:
    """Field of view of a path's first camera in degrees, along the longer side of a picture of (h, w) pixels."""
    focal = source.K[0, 0, 0] if size[1] >= size[0] else source.K[0, 1, 1]
    return math.degrees(2 * math.atan(max(size) / (2 * focal.item())))


def sample_move(move: Move, frames: int, own_fov: float) -> tuple[Float[Tensor, "T 4 4"], Float[Tensor, "T"]]:
    """Poses source_cam_from_target_cam, float64, in subject distances, and fields of view in degrees.

    The eye, the target, the roll and the logarithm of the field of view each follow a modified Akima spline (little
    overshoot), at rest where a keyframe repeats the one before. The camera looks from the one at the other: the up
    vector cannot flip, and keyframes that share a target keep it in the middle. A single frame gets the end pose.
    """
    values = np.array(
        [(*k.eye, *k.target, math.radians(k.roll), math.log(k.fov or own_fov)) for k in move.keyframes], np.float64
    )
    times = np.array([k.time for k in move.keyframes])
    spline = spline_through(times, values)
    at = np.linspace(0, 1, frames) if frames > 1 else np.ones(1)
    if move.speed == "keyframes":
        at = _eased(move.keyframes, times, at)
    else:
        at = _even(spline, 3 * at**2 - 2 * at**3 if move.speed == "eased" else at)
    rows = spline(at)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = _look(rows[:, :3], rows[:, 3:6], rows[:, 6], "Between the keyframes the camera")
    poses[:, :3, 3] = rows[:, :3]
    fov = np.where(np.isclose(rows[:, 7], math.log(own_fov), atol=1e-12), own_fov, np.exp(rows[:, 7]))
    return torch.from_numpy(poses), torch.from_numpy(fov.clip(5, 150))


def spline_through(times: np.ndarray, values: np.ndarray):
    """Through the values at their times; before the first and after the last the camera stands still."""
    from scipy.interpolate import Akima1DInterpolator, CubicHermiteSpline

    if len(times) == 1 or (values == values[0]).all():
        return lambda at: np.repeat(values[:1], len(at), 0)
    slopes = Akima1DInterpolator(times, values, method="makima")(times, 1)
    rests = (values[1:] == values[:-1]).all(axis=1)
    slopes[np.append(rests, False) | np.append(False, rests)] = 0.0
    inner = CubicHermiteSpline(times, values, slopes)
    return lambda at: inner(np.clip(at, times[0], times[-1]))


def _eased(keyframes: tuple[Keyframe, ...], times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Times at which the spline is where an eased camera is at the times `at`."""
    if len(times) < 2 or not any(keyframe.ease for keyframe in keyframes):
        return at
    ways = {"in": lambda u: u**2, "out": lambda u: 1 - (1 - u) ** 2, "in-out": lambda u: u**2 * (3 - 2 * u)}
    eased = at.copy()
    for keyframe, begins, ends in zip(keyframes[:-1], times[:-1], times[1:], strict=True):
        inside = (at > begins) & (at < ends)
        if keyframe.ease:
            eased[inside] = begins + (ends - begins) * ways[keyframe.ease]((at[inside] - begins) / (ends - begins))
    return eased


def _even(spline, share: np.ndarray) -> np.ndarray:
    """Times at which a share of the way is done: way of the eye, of the line of sight, of roll and zoom together."""
    fine = np.linspace(0, 1, 2049)
    rows = spline(fine)
    aim = rows[:, 3:6] - rows[:, :3]
    aim /= np.linalg.norm(aim, axis=1, keepdims=True).clip(1e-9)
    steps = np.concatenate([rows[:, :3], aim, rows[:, 6:]], 1)
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(steps, axis=0), axis=1))])
    if way[-1] < 1e-12:
        return fine[-1] * share
    moving = np.concatenate([[True], np.diff(way) > 0])  # a time for each place, though the camera may rest there
    return np.interp(share * way[-1], way[moving], fine[moving])


def _look(eye: np.ndarray, target: np.ndarray, roll: np.ndarray, who: str) -> np.ndarray:
    """Rotations N 3 3 of cameras at `eye` N 3 that look at `target` N 3, level before they `roll` (radians)."""
    from scipy.spatial.transform import Rotation

    z = target - eye
    length = np.linalg.norm(z, axis=1, keepdims=True)
    if (length < 1e-4).any():
        raise InputError(f"{who} stands at the very point that it looks at; move one of the two.")
    z = z / length
    x = np.cross([0.0, 1.0, 0.0], z)
    level = np.linalg.norm(x, axis=1, keepdims=True)
    if (level < 1e-3).any():
        raise InputError(f"{who} looks straight up or down, where left and right have no meaning; tilt it a little.")
    x = x / level
    rotation = np.stack([x, np.cross(z, x), z], -1)
    return rotation @ Rotation.from_rotvec(np.outer(roll, [0.0, 0.0, 1.0])).as_matrix()


def keyframe_from_pose(pose: np.ndarray, time: float, fov: float | None) -> Keyframe:
    """The keyframe of a pose source_cam_from_target_cam (4 4, in subject distances).

    Its target lies on the optical axis, as far off as the subject is, and no nearer than a tenth of a distance.
    """
    eye, rotation = pose[:3, 3], pose[:3, :3]
    reach = max(0.1, float(rotation[:, 2] @ (np.array(SUBJECT) - eye)))
    target = eye + reach * rotation[:, 2]
    level = _look(eye[None], target[None], np.zeros(1), "The camera")[0]
    roll = math.degrees(math.atan2(level[:, 1] @ rotation[:, 0], level[:, 0] @ rotation[:, 0]))
    return Keyframe(time, _point(eye), _point(target), 0.0 if abs(roll) < 1e-9 else roll, fov)


def move_from_poses(poses: Float[Tensor, "N 4 4"], fov: Sequence[float | None] | None = None, origin: str = "") -> Move:
    """A move with a keyframe for each pose (source_cam_from_target_cam, subject distances), evenly in time.

    Raises `InputError` where there are no poses, too many, or not rigid ones.
    """
    matrices = poses.double().numpy()
    if not 1 <= len(matrices) <= MAX_KEYFRAMES:
        raise InputError(f"The camera path has {len(matrices)} poses; from 1 to {MAX_KEYFRAMES} can be read.")
    times = np.linspace(0, 1, len(matrices)) if len(matrices) > 1 else np.zeros(1)
    rolls = 0.0
    keyframes = []
    for number, (pose, time) in enumerate(zip(matrices, times, strict=True), 1):
        R = pose[:3, :3]
        if not np.isfinite(pose).all() or np.abs(R.T @ R - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
            raise InputError(f"Pose {number} of the camera path is not a rotation with a position.")
        keyframe = keyframe_from_pose(pose, float(time), None if fov is None else fov[number - 1])
        rolls = keyframe.roll + 360 * round((rolls - keyframe.roll) / 360)  # the short way from one to the next
        keyframes.append(Keyframe(keyframe.time, keyframe.eye, keyframe.target, rolls, keyframe.fov))
    return Move(tuple(keyframes), origin=origin[:MAX_WORDS])


def _point(values: Sequence[float] | np.ndarray) -> Point:
    x, y, z = (round(float(v), 9) + 0.0 for v in values)
    return x, y, z


# --- moves to start from ----------------------------------------------------------------------------------------------

# The six of `geometry.PRESETS` and what film people call the others. Positive goes the way that is named.
MOVES: dict[str, Preset] = (
    {"still": Preset("No move (as filmed)", "percent", (0.0, 0.0), 0.0)}
    | PRESETS
    | {
        "pan": Preset("Pan (right)", "degrees", (-60.0, 60.0), 15.0),
        "tilt": Preset("Tilt (up)", "degrees", (-45.0, 45.0), 10.0),
        "truck": Preset("Truck (right)", "percent", (-100.0, 100.0), 25.0),
        "pedestal": Preset("Pedestal (up)", "percent", (-100.0, 100.0), 20.0),
        "roll": Preset("Roll (clockwise)", "degrees", (-90.0, 90.0), 15.0),
        "dolly-zoom": Preset("Dolly zoom", "percent", (-60.0, 150.0), 50.0),
        "arc-dolly-zoom": Preset("Arc with dolly zoom", "degrees", (-60.0, 60.0), 20.0),
        "spiral": Preset("Spiral", "percent", (0.0, 60.0), 15.0),
        "hand-held": Preset("Hand-held shake", "percent", (0.0, 20.0), 3.0),
    }
)


def preset_move(name: str, amount: float | None = None, own_fov: float = DEFAULT_FOV) -> Move:
    """A named move as keyframes; amount in its unit, None for its default. Raises `InputError`.

    Orbits turn about the subject. Dolly zoom goes back by `amount` percent of the distance (in, if negative) and zooms
    so that the subject keeps its size; the arc orbits meanwhile. A spiral circles once with a radius of `amount`
    percent, and draws in by as much. The shake is the same at each call.
    """
    if name not in MOVES:
        raise InputError(f"camera {name!r} is unknown: choose one of {', '.join(MOVES)}")
    preset = MOVES[name]
    low, high = preset.range
    amount = preset.default if amount is None else float(amount)
    if not low <= amount <= high:  # also refuses NaN
        raise InputError(f"amount {amount:g} for {name}: give {preset.unit} from {low:g} to {high:g}")
    count = {"still": 1, "spiral": 13, "hand-held": 17}.get(
        name, 5 if preset.unit == "degrees" or "zoom" in name else 2
    )
    keyframes = []
    for time in np.linspace(0, 1, count):
        eye, target, roll, zoom = _at(name, amount, float(time))
        fov = None
        if zoom != 1:
            fov = math.degrees(2 * math.atan(math.tan(math.radians(own_fov) / 2) / zoom))
            fov = min(150.0, max(5.0, fov))
        keyframes.append(Keyframe(round(float(time), 6), _point(eye), _point(target), round(roll, 6), fov))
    return Move(tuple(keyframes))


def _at(name: str, amount: float, time: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Eye, target, roll (degrees) and magnification of a named move at a time in [0, 1]."""
    from scipy.spatial.transform import Rotation

    subject, origin = np.array(SUBJECT), np.zeros(3)
    share, angle = amount / 100 * time, math.radians(amount) * time
    turn = lambda axis: Rotation.from_rotvec(angle * np.array(axis, float)).as_matrix()
    steps = {"dolly-in": (0, 0, 1), "dolly-out": (0, 0, -1), "truck": (1, 0, 0), "pedestal": (0, -1, 0)}
    if name == "still":
        return origin, subject, 0.0, 1.0
    if name in ORBITS:
        return subject - turn(ORBITS[name]) @ subject, subject, 0.0, 1.0
    if name in steps:
        step = share * np.array(steps[name], float)
        return step, subject + step, 0.0, 1.0
    if name in ("pan", "tilt"):
        return origin, turn((0, 1, 0) if name == "pan" else (1, 0, 0)) @ subject, 0.0, 1.0
    if name == "roll":
        return origin, subject, amount * time, 1.0
    if name == "dolly-zoom":
        return np.array([0, 0, -share]), subject, 0.0, 1 + share
    if name == "arc-dolly-zoom":
        reach = 1 + 0.5 * time  # half a distance back while it turns
        return subject - turn((0, 1, 0)) @ subject * reach, subject, 0.0, reach
    if name == "spiral":
        radius = amount / 100 * math.sin(math.pi * time)
        return radius * np.array([math.cos(4 * math.pi * time), math.sin(4 * math.pi * time), 1.0]), subject, 0.0, 1.0
    # hand-held: sines whose periods share no beat, at rest at the start; the aim trembles less than the hand
    phases = np.array([0.0, 1.3, 2.1, 0.7, 2.9, 1.9])
    rates = 2 * math.pi * np.array([1.31, 1.73, 0.89, 2.23, 1.97, 1.13])
    sway = amount / 100 * (np.sin(rates * time + phases) - np.sin(phases))
    return sway[:3], subject + 0.5 * np.array([sway[3], sway[4], 0.0]), float(20 * sway[5]), 1.0
