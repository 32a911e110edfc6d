"""Everything that decides a result, validated when it is made, and its JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline import InputError
from pipeline.camera.moves import MOVES, Move
from pipeline.depth.files import KINDS as DEPTH_KINDS
from pipeline.method.latent_mask import LATENT_MASKS, PHI, TAU
from pipeline.method.solvers import SCHEDULES, SOLVERS
from pipeline.models import memory, table
from pipeline.prior.fast import FAST, FEW_STEPS

REQUEST_VERSION = 1
CONDITIONS = ("warp", "first-frame", "none")
DEFAULT_FOV = 55.0  # degrees, along the longer side


@dataclass(frozen=True)
class RenderRequest:
    """Everything that decides the result of a render, and nothing else. Raises `InputError` on values out of range.

    clip: path of a video file, or of a folder of numbered pictures.
    camera: a name of `moves.MOVES`; amount in its unit, None for its default.
    move: a camera move of one's own, which goes before `camera`; None for none.
    fov: field of view of the clip in degrees along its longer side, None for what the file says of its lens, or 55.
    frames, start, stride: which frames are used; start counts in frames of the clip, frames None means as many as the
        model was made for; more are sampled in overlapping windows. size: (h, w) at which the model works, None for
        the model's own at the clip's aspect.
    seed: of the noise. steps, guidance_scale, strength: None for what the model was made for. strength: the noise level
        in (0, 1] from which sampling starts; 1 is pure noise, below it the filled warp shines through (SDEdit).
    latent_mask, solver: a name of `latent_mask.LATENT_MASKS` (None: see `latent_mask_of`), of `solvers.SOLVERS`;
        guidance acts while guide_until <= sigma <= guide_from. phi: a name of `latent_mask.PHI`, for the masks that
        need one; tau: its temperature.
    gamma > 0: how much DDS trusts the model over the measurement. iterations, step_size: of the solver, where it has
        them; None for its own. schedule: of `solvers.SCHEDULES`, how the iterations go with the noise level.
    condition: what the model's inpainting channels show: the warp, only its first frame, or nothing.
    mask: a file that shows an object of the clip, which is replaced by what the prompt says, see `segment.load_mask`;
        None replaces nothing. mask_frame: the frame of the clip that a single picture shows, None for the first that is
        used; the object is followed from there. invert: everything but that object is replaced. grow: percent of the
        picture's shorter side by which what is replaced is widened (shrunk, if negative).
    remove: what stood behind the object is taken from other frames of the clip first, where they saw it.
    other_frames: what a frame does not see from the new camera is taken from frames that do, see `gather`; not where
        something new is to stand in the place of an object.
    first_frame: a picture of what the result is to begin with; what is unknown of the first frame is taken from it.
    first_frame_model: an image model that paints what is unknown of the first frame: a name of
        `models.MODELS`, a folder or a hub id; None leaves it to the video model.
    mask_label: which label of a mask file counts, None for all.
    backbone: a name, a folder or a hub id. depth: a file or folder of the user's own depth, None to estimate it.
    depth_kind: what its numbers mean, one of `depth.files.KINDS`; None where the file says it.
    fast: a name of `backbone.FAST`, "off" for full quality. memory: how the model is placed on a GPU, a name of
        `memory.MODES`, or "auto". compile: compile the transformer's blocks first, which pays in many or long renders.
    depth_model: a name, a folder or a hub id, see `depth.load_depth_model`; None for what comes with the backbone.
    accepted: names of models whose terms the user has accepted, see `models.check_accepted`. It is not written to JSON:
        everyone accepts for themselves.
    composite: put the untouched known pixels back, at the clip's full resolution. seam: percent of the shorter side
        over which they fade into the model's, inside of what is known; 0 is a hard cut. grain: there, what is painted
        gets grain like that of what is filmed around it, see `grain`; not something new in the place of an object.
    """

    clip: str
    camera: str = "orbit-left"
    amount: float | None = None
    move: Move | None = None
    fov: float | None = None
    frames: int | None = None
    start: int = 0
    stride: int = 1
    size: tuple[int, int] | None = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    latent_mask: str | None = None
    solver: str = "dds"
    phi: str = "wiener"
    tau: float = TAU
    gamma: float = 0.03
    iterations: int | None = None
    step_size: float | None = None
    schedule: str = "constant"
    guide_from: float = 1.0
    guide_until: float = 0.0
    condition: str = "warp"
    mask: str | None = None
    mask_frame: int | None = None
    mask_label: int | None = None
    invert: bool = False
    grow: float = 2.0
    remove: bool = False
    other_frames: bool = True
    first_frame: str | None = None
    first_frame_model: str | None = None
    backbone: str = "nano"
    depth: str | None = None
    depth_kind: str | None = None
    depth_model: str | None = None
    accepted: tuple[str, ...] = ()
    fast: str = "off"
    memory: str = "auto"
    compile: bool = False
    composite: bool = True
    seam: float = 1.0
    grain: bool = True

    def __post_init__(self) -> None:
        _validate(self)

    def to_json(self) -> str:
        """The request as versioned JSON text."""
        given = {"version": REQUEST_VERSION, **_to_dict(self), "move": self.move.to_dict() if self.move else None}
        return json.dumps(given, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, accepted: tuple[str, ...] = ()) -> RenderRequest:
        """The request in JSON text as `to_json` writes it; fields that are left out take their defaults."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(f"The request is not valid JSON{line}; write it anew, or mend it there.") from error
        if not isinstance(given, dict):
            raise InputError('The request must be a JSON object such as {"version": 1, "clip": "clip.mp4"}.')
        version = given.pop("version", None)
        if version != REQUEST_VERSION:
            raise InputError(f"The request has version {version!r}; this program reads version {REQUEST_VERSION}.")
        known = [field.name for field in fields(cls) if field.name != "accepted"]
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"The request has unknown fields: {', '.join(unknown)}. Known are: {', '.join(known)}.")
        if "clip" not in given:
            raise InputError('The request names no clip; give the path of a video file as "clip".')
        if isinstance(given.get("size"), list):
            given["size"] = tuple(given["size"])
        if given.get("move") is not None:
            given["move"] = Move.from_dict(given["move"])
        return cls(**given, accepted=accepted)


def _to_dict(request: RenderRequest) -> dict[str, Any]:
    given = asdict(request)
    del given["accepted"]
    return given


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _validate(request: RenderRequest) -> None:
    def need(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise InputError(f"{name} must be {wanted}; it is {getattr(request, name)!r}.")

    def optional(name: str, ok, wanted: str) -> None:
        value = getattr(request, name)
        need(value is None or ok(value), name, wanted)

    def one_of(name: str, names) -> None:
        need(getattr(request, name) in tuple(names), name, f"one of {', '.join(names)}")

    need(isinstance(request.clip, str) and bool(request.clip), "clip", "the path of a video file")
    one_of("camera", MOVES)
    low, high = MOVES[request.camera].range
    unit = MOVES[request.camera].unit
    optional("amount", lambda value: _is_number(value) and low <= value <= high, f"from {low:g} to {high:g} {unit}")
    optional("move", lambda value: isinstance(value, Move), "a camera move")
    optional("fov", lambda value: _is_number(value) and 5 <= value <= 150, "an angle from 5 to 150 degrees")
    optional("frames", lambda value: _is_int(value) and value >= 1, "a whole number, 1 or more")
    need(_is_int(request.start) and request.start >= 0, "start", "a whole number, 0 or more")
    need(_is_int(request.stride) and request.stride >= 1, "stride", "a whole number, 1 or more")
    optional(
        "size",
        lambda size: isinstance(size, tuple) and len(size) == 2 and all(_is_int(n) and n > 0 for n in size),
        "a height and a width in pixels",
    )
    for name in ("prompt", "negative_prompt", "backbone"):
        need(isinstance(getattr(request, name), str), name, "text")
    need(_is_int(request.seed) and 0 <= request.seed < 2**63, "seed", "a whole number, 0 or more")
    optional("steps", lambda value: _is_int(value) and 1 <= value <= 1000, "a whole number from 1 to 1000")
    optional("guidance_scale", lambda value: _is_number(value) and 0 <= value <= 100, "a number from 0 to 100")
    optional("strength", lambda value: _is_number(value) and 0 < value <= 1, "a noise level above 0, up to 1")
    need(_is_number(request.gamma) and request.gamma > 0, "gamma", "a number above 0")
    need(_is_number(request.tau) and request.tau > 0, "tau", "a number above 0")
    optional("iterations", lambda value: _is_int(value) and 1 <= value <= 100, "a whole number from 1 to 100")
    optional("step_size", lambda value: _is_number(value) and value >= 0, "a number, 0 or more")
    for name in ("guide_from", "guide_until"):
        value = getattr(request, name)
        need(_is_number(value) and 0 <= value <= 1, name, "a noise level from 0 to 1")
    need(request.guide_until <= request.guide_from, "guide_until", f"at most guide_from ({request.guide_from})")
    optional("latent_mask", lambda value: value in tuple(LATENT_MASKS), f"one of {', '.join(LATENT_MASKS)}")
    one_of("solver", SOLVERS)
    one_of("phi", PHI)
    one_of("schedule", SCHEDULES)
    one_of("condition", CONDITIONS)
    one_of("fast", FAST)
    one_of("memory", memory.CHOICES)
    need(isinstance(request.compile, bool), "compile", "true or false")
    need(not request.compile or request.fast == "off", "compile", "false with a fast mode, which changes the blocks")
    optional("depth", lambda value: isinstance(value, str) and value, "the path of a depth file or folder")
    optional("depth_kind", lambda value: value in tuple(DEPTH_KINDS), f"one of {', '.join(DEPTH_KINDS)}")
    optional("depth_model", lambda value: isinstance(value, str) and value, "a name, a folder or a hub id")
    optional("mask", lambda value: isinstance(value, str) and value, "the path of a mask: a picture, a video or an npz")
    optional("first_frame", lambda value: isinstance(value, str) and value, "the path of a picture")
    optional("first_frame_model", lambda value: isinstance(value, str) and value, "a name, a folder or a hub id")
    need(
        request.first_frame is None or request.first_frame_model is None,
        "first_frame_model",
        "left out where a picture of the first frame is given",
    )
    used = (
        request.backbone,
        None if request.depth else request.depth_model,
        request.first_frame_model,
        FEW_STEPS.model if request.fast == "lora" else None,
    )
    for ref in filter(None, used):
        table.check_accepted(ref, request.accepted)
    optional("mask_label", lambda value: _is_int(value) and value >= 0, "the number of a label")
    optional("mask_frame", lambda value: _is_int(value) and value >= 0, "a whole number, 0 or more")
    need(_is_number(request.grow) and -10 <= request.grow <= 25, "grow", "from -10 to 25 percent")
    need(isinstance(request.remove, bool), "remove", "true or false")
    need(isinstance(request.invert, bool), "invert", "true or false")
    need(not request.remove or request.mask is not None, "remove", "false where there is no mask to say what to remove")
    need(isinstance(request.other_frames, bool), "other_frames", "true or false")
    need(isinstance(request.grain, bool), "grain", "true or false")
    need(isinstance(request.composite, bool), "composite", "true or false")
    need(_is_number(request.seam) and 0 <= request.seam <= 20, "seam", "from 0 to 20 percent")


def _amount(request: RenderRequest) -> float:
    return MOVES[request.camera].default if request.amount is None else request.amount


def seam_of(request: RenderRequest, size: tuple[int, int]) -> int:
    """Over how many pixels `composite` blends in pictures of this size (H, W)."""
    pixels = request.seam / 100 * min(size)
    return max(2, round(pixels)) if pixels else 0  # less than two could not be seen
