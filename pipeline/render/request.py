"""Everything that decides a result, validated when it is made, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline import InputError
from pipeline.camera.moves import MOVES, Move, preset_move, surely_moves
from pipeline.depth.files import KINDS as DEPTH_KINDS
from pipeline.masks.files import check_mask_file
from pipeline.media.video import read_picture
from pipeline.method.guidance import Guidance, checks, is_int, is_number
from pipeline.method.lavr import check_soft, followed, scene_model_of
from pipeline.method.methods import METHODS
from pipeline.method.problem import check_mask
from pipeline.models import hub, memory, table
from pipeline.prior.fast import FEW_STEPS, check_fast
from pipeline.prior.said import said_of
from pipeline.prior.settings import check_encoder

REQUEST_VERSION = 1
GUIDANCE = tuple(given.name for given in fields(Guidance))


@dataclass(frozen=True)
class RenderRequest:
    """Everything that decides the result of a render, and nothing else. Raises `InputError` on values out of range.

    Its JSON and its command line are flat: the settings of `guidance` stand among the others, see `of` and `flat`.

    clip: path of a video file, of a folder of numbered pictures, or of a single picture, which is filmed for `frames`.
    camera: a name of `moves.MOVES`.
    amount: of the camera move, in its unit; None for its default.
    move: a camera move of one's own, which goes before `camera`; None for none.
    fov: field of view of the clip in degrees along its longer side; None for what the file says of its lens, or 55.
    frames: how many are used; None for the clip's, up to `Settings.length`. More than the model was made for are
        sampled in overlapping windows.
    start, stride: the first frame that is used, and every which; they count in frames of the clip.
    size: (h, w) at which the model works; None for the model's own at the clip's aspect.
    guidance: what the method reads, the prompts and the seed among it.
    mask: a file that shows an object of the clip, which is replaced by what the prompt says, see `masks.files`; None
        replaces nothing.
    mask_frame: the frame of the clip that a single picture shows; None for the first that is used. The object is
        followed from there.
    mask_label: which label of a mask file counts; None for all.
    invert: everything but that object is replaced.
    grow: percent of the picture's shorter side by which what is replaced is widened; negative values shrink it.
    remove: what stood behind the object is taken from other frames of the clip first, where they saw it.
    other_frames: what a frame does not see from the new camera is taken from frames that do, see `known.gather`; not
        where something new is to stand in the place of an object.
    first_frame: a picture of what the result is to begin with; what is unknown of the first frame is taken from it.
    first_frame_model: an image model that paints what is unknown of the first frame: a name of `table.MODELS`, a
        folder or a hub id; None leaves it to the video model.
    backbone: the video model: a name, a folder or a hub id.
    depth: a file or folder of the user's own depth; None to estimate it.
    depth_kind: what its numbers mean, one of `depth.files.KINDS`; None where the file says it.
    depth_model: a name, a folder or a hub id, see `depth.load`; None for what comes with the backbone.
    accepted: names of models whose terms the user has accepted. It is not written to JSON: everyone accepts for
        themselves.
    memory: how the model is placed on a GPU, a name of `memory.MODES`, or "auto".
    compile: compile the transformer's blocks first, which pays in many or long renders.
    composite: put the untouched known pixels back, at the clip's full resolution.
    seam: percent of the shorter side over which they fade into the model's, inside of what is known; 0 is a hard cut.
    grain: there, what is painted gets grain like that of what is filmed around it, see `finish.grain`; not something
        new in the place of an object.
    stereo: percent of the distance to the subject by which a second eye stands farther right, see `render.stereo`; None
        for one eye.
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
    guidance: Guidance = field(default_factory=Guidance)
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
    memory: str = "auto"
    compile: bool = False
    composite: bool = True
    seam: float = 1.0
    grain: bool = True
    stereo: float | None = None

    def __post_init__(self) -> None:
        _validate(self)

    @classmethod
    def of(cls, clip: str, **given: Any) -> RenderRequest:
        """The request with these fields, those of its guidance among them, as in its JSON."""
        return cls(clip).changed(**given)

    def changed(self, **given: Any) -> RenderRequest:
        """The request with other values of these fields, those of its guidance among them."""
        told = {name: value for name, value in given.items() if name in GUIDANCE}
        rest = {name: value for name, value in given.items() if name not in GUIDANCE}
        if told:
            rest["guidance"] = replace(rest.get("guidance", self.guidance), **told)
        return replace(self, **rest)

    def flat(self) -> dict[str, Any]:
        """All fields but `accepted`, those of the guidance among them, as plain values (but for the move)."""
        given = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "accepted"}
        return {
            k: v
            for name, value in given.items()
            for k, v in (asdict(value) if name == "guidance" else {name: value}).items()
        }

    @property
    def timing(self) -> tuple[tuple[float, float], ...]:
        """Of the move, see `Move`; empty where the clip plays as filmed."""
        return () if self.move is None else self.move.timing

    def to_dict(self) -> dict[str, Any]:
        """The request as plain values that JSON knows."""
        return self.flat() | {"move": self.move.to_dict() if self.move else None}

    def to_json(self) -> str:
        """The request as versioned JSON text."""
        return json.dumps({"version": REQUEST_VERSION, **self.to_dict()}, indent=2, ensure_ascii=False) + "\n"

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
        if unknown := sorted(set(given) - set(DEFAULTS)):
            raise InputError(f"The request has unknown fields: {', '.join(unknown)}. Known are: {', '.join(DEFAULTS)}.")
        if "clip" not in given:
            raise InputError('The request names no clip; give the path of a video or a picture as "clip".')
        if isinstance(given.get("size"), list):
            given["size"] = tuple(given["size"])
        if given.get("move") is not None:
            given["move"] = Move.from_dict(given["move"])
        return cls.of(given.pop("clip"), **given, accepted=accepted)


def _validate(request: RenderRequest) -> None:
    need, optional, one_of = checks(request)
    method = request.guidance.method
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; it is {method!r}.")
    need(isinstance(request.clip, str) and bool(request.clip), "clip", "the path of a video or a picture")
    one_of("camera", MOVES)
    low, high = MOVES[request.camera].range
    unit = MOVES[request.camera].unit
    optional("amount", lambda value: is_number(value) and low <= value <= high, f"from {low:g} to {high:g} {unit}")
    optional("move", lambda value: isinstance(value, Move), "a camera move")
    optional("fov", lambda value: is_number(value) and 5 <= value <= 150, "an angle from 5 to 150 degrees")
    optional("frames", lambda value: is_int(value) and value >= 1, "a whole number, 1 or more")
    need(is_int(request.start) and 0 <= request.start < 2**31, "start", "a whole number, 0 or more, below 2^31")
    need(is_int(request.stride) and 1 <= request.stride < 2**31, "stride", "a whole number, 1 or more, below 2^31")
    optional(
        "size",
        lambda size: isinstance(size, tuple) and len(size) == 2 and all(is_int(n) and n > 0 for n in size),
        "a height and a width in pixels",
    )
    need(isinstance(request.backbone, str), "backbone", "text")
    one_of("memory", memory.CHOICES)
    need(isinstance(request.compile, bool), "compile", "true or false")
    need(
        not request.compile or request.guidance.fast == "off",
        "compile",
        "false with a fast mode, which changes the blocks",
    )
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
        FEW_STEPS.model if request.guidance.fast == "lora" else None,
    )
    for ref in filter(None, used):
        table.check_accepted(ref, request.accepted)
    optional("mask_label", lambda value: is_int(value) and value >= 0, "the number of a label")
    optional("mask_frame", lambda value: is_int(value) and value >= 0, "a whole number, 0 or more")
    need(is_number(request.grow) and -10 <= request.grow <= 25, "grow", "from -10 to 25 percent")
    need(isinstance(request.remove, bool), "remove", "true or false")
    need(isinstance(request.invert, bool), "invert", "true or false")
    need(not request.remove or request.mask is not None, "remove", "false where there is no mask to say what to remove")
    need(isinstance(request.other_frames, bool), "other_frames", "true or false")
    need(isinstance(request.grain, bool), "grain", "true or false")
    need(isinstance(request.composite, bool), "composite", "true or false")
    optional("stereo", lambda value: is_number(value) and 0 <= value <= 20, "from 0 to 20 percent")
    need(is_number(request.seam) and 0 <= request.seam <= 20, "seam", "from 0 to 20 percent")


def check_asked(request: RenderRequest) -> None:
    """Raises `InputError` before any work for what this machine, the model or the method cannot do, and for files that
    are not there or cannot be read."""
    memory.check_wanted(request.memory)
    method = request.guidance.method
    check_soft(method, request.backbone, replaces=request.mask is not None, compiled=request.compile)
    if scene := scene_model_of(method, request.backbone):
        table.check_accepted(scene, request.accepted)
    _check_served(request)
    for name, path in (("depth", request.depth), ("mask", request.mask), ("first frame", request.first_frame)):
        if path is not None and not Path(path).exists():
            raise InputError(f"There is no file {path} for the {name}; give the path of one.")
    if request.first_frame is not None:
        read_picture(request.first_frame)  # a small one, and its use comes late
    if request.mask is not None:
        check_mask_file(request.mask, request.mask_label)


def _check_served(request: RenderRequest) -> None:
    """Raises `InputError` for a fast mode or a latent mask that the backbone or the camera path does not go with."""
    guidance, said = followed(request.guidance), said_of(request.backbone)
    if said is not None:
        if said.width is not None and said.layers is not None:
            check_fast(guidance.fast, request.backbone, said.width, said.layers, memory.MODES.get(request.memory))
        if guidance.latent_mask == "learned" and guidance.solver != "none":
            check_encoder(request.backbone, said.mask_encoder)
    if guidance.fast == "lora" and not hub.obtainable(FEW_STEPS.model):
        hub.locate(FEW_STEPS.model)
    move = request.move or preset_move(request.camera, request.amount)
    check_mask(guidance, clean=not (surely_moves(move) or request.stereo))


def amount_of(request: RenderRequest) -> float:
    """How far the named camera move goes, in its unit."""
    return MOVES[request.camera].default if request.amount is None else request.amount


def seam_of(request: RenderRequest, size: tuple[int, int]) -> int:
    """Over how many pixels `composite` blends in pictures of this size (H, W)."""
    pixels = request.seam / 100 * min(size)
    return max(2, round(pixels)) if pixels else 0  # less than two could not be seen


DEFAULTS: dict[str, Any] = RenderRequest("(clip)").flat()  # of every field by its flat name; the clip has none
