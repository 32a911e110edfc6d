"""The controls of the page: their names, and what their values mean as a request."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import InputError
from pipeline.camera.moves import MOVES, Move
from pipeline.depth.files import KINDS
from pipeline.media.cache import content_key
from pipeline.method.guidance import CONDITIONS
from pipeline.method.latent_mask import LATENT_MASKS, PHI
from pipeline.method.lavr import scene_model_of
from pipeline.method.methods import METHODS, WORDS
from pipeline.method.solvers import SCHEDULES, SOLVERS
from pipeline.models import table
from pipeline.models.memory import CHOICES as MEMORY
from pipeline.prior.fast import FAST
from pipeline.render.request import DEFAULTS, RenderRequest
from ui.terms import Terms, ask_terms

DEPTH_SUFFIXES = [".npz", ".npy", ".exr"]
NO_MASK = "Say first what is to be replaced: click on it on the tab Replace an object, then press Follow."
NO_CLIP = "Choose a clip first: upload a video or a photograph, or press an example."
EMPTY_CLOUD = "Your clip appears here as a point cloud, with the camera path in it."
CHANGES = {"camera": "The camera path", "object": "The object", "both": "Both"}
BEFORE_RENDER = {"first_frame_model": None, "fast": "off"}  # whose terms nobody has to accept for an analysis
NUMBERS: dict[str, tuple[str, type]] = {
    "steps": ("Steps", int),
    "guidance_scale": ("Guidance scale", float),
    "strength": ("Start from σ", float),
    "seed": ("Seed", int),
    "gamma": ("Gamma", float),
    "iterations": ("Solver iterations", int),
    "step_size": ("Solver step size", float),
    "tau": ("Temperature of φ", float),
    "guide_from": ("Guided from σ", float),
    "guide_until": ("Guided until σ", float),
    "frames": ("Frames", int),
    "start": ("First frame", int),
    "stride": ("Every n-th frame", int),
    "height": ("Working height", int),
    "width": ("Working width", int),
    "fov": ("Field of view (degrees)", float),
    "seam": ("Soft seam (percent)", float),
    "stereo": ("Stereo: right eye (percent)", float),
}
CHOICES: dict[str, dict[str, str]] = {
    "method": {"inversecrafter": "InverseCrafter", "lavr": "LaVR", "recammaster": "ReCamMaster", "both": "Both"},
    "latent_mask": {name: kind.label for name, kind in LATENT_MASKS.items()},
    "solver": {name: solver.label for name, solver in SOLVERS.items()},
    "schedule": {"constant": "The same throughout", "falling": "More at high noise", "rising": "More at low noise"},
    "phi": {"wiener": "Wiener, x² / (1 + x²)", "exp": "1 − exp(−x)", "tanh": "tanh(x)", "ratio": "x / (1 + x)",
            "quantile": "Linear, clamped", "minmax": "Linear"},
    "condition": {"warp": "The warped clip", "first-frame": "Its first frame", "none": "Nothing"},
    "fast": {"off": "Off: full quality", "cache": "Skip what changes little", "lora": "Few steps (LoRA)"},
    "memory": {"auto": "Automatic", "whole": "All on the GPU", "offload": "Parts in turn",
               "tiles": "Parts in turn, in tiles", "fp8": "8 bits", "groups": "Block by block",
               "fp8-groups": "Block by block, 8 bits"},
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask of a server: megabytes of a file, frames, pixels of the longer side, sampling steps."""

    megabytes: int = 500
    frames: int = 1025
    side: int = 1920
    steps: int = 1000


def limits() -> Limits:
    """Those of this machine: tighter on a Space, where everybody's renders wait for one another."""
    return Limits(megabytes=200, frames=81, side=832, steps=50) if os.environ.get("SPACE_ID") else Limits()


def request_from(values: dict[str, Any], backbone: str) -> RenderRequest:
    """The request that the controls' values mean. An empty field means the default."""
    if not values.get("clip"):
        raise InputError(NO_CLIP)
    allowed = limits()
    given = {name: value for name, value in values.items() if value not in (None, "")}
    given["move"] = own_move(given.get("move"))
    spec = table.find(backbone)
    own = (spec.name,) if spec is not None and spec.terms else ()  # accepted by who started the app, see `app.main`
    given["accepted"] = tuple({name: None for name in (*given.get("accepted", ()), *own)})
    change, mask = given.pop("change", "camera"), given.pop("mask", None)
    if change == "camera":
        given = {name: value for name, value in given.items() if name not in ("invert", "grow", "remove")}
    if change == "object":
        given |= {"camera": "still", "amount": None, "move": None}
    for name, (label, kind) in NUMBERS.items():
        if name in given:
            given[name] = number_from(given[name], label, kind)
    height, width = given.pop("height", None), given.pop("width", None)
    if (height is None) != (width is None):
        raise InputError("Working size: give both a height and a width, or neither.")
    if height and width:
        if max(height, width) > allowed.side:
            raise InputError(f"Working size: {height} x {width} is too large; give sides up to {allowed.side}.")
        given["size"] = (height, width)
    for name in ("frames", "steps"):
        if given.get(name, 1) > (most := getattr(allowed, name)):
            hint = ", or every n-th frame with Every n-th" if name == "frames" else ""
            raise InputError(f"{NUMBERS[name][0]}: {given[name]} is too many here; give up to {most}{hint}.")
    if change == "camera":
        return RenderRequest.of(**given, backbone=backbone)
    if mask is None:
        raise InputError(NO_MASK)
    request = RenderRequest.of(**given, mask=mask["path"], backbone=backbone)
    if mask["of"] != frames_of(request):
        raise InputError("The mask belongs to other frames of the clip; press Follow through the clip again.")
    return request


def frames_of(request: RenderRequest) -> tuple:
    """What a mask belongs to: a clip, and which of its frames are used, and how they are cut.

    The clip counts by its content, since Gradio keeps copies of the files that it shows.
    """
    clip = Path(request.clip)
    content = _clip_key(clip, clip.stat().st_mtime_ns) if clip.is_file() else request.clip
    return content, request.start, request.stride, request.frames, request.size


@lru_cache(maxsize=64)
def _clip_key(clip: Path, changed: int) -> str:
    return content_key(clip)


def number_from(value: Any, label: str, kind: type) -> int | float:
    try:
        number = float(str(value).replace(",", "."))
        if kind is int and number != int(number):
            raise ValueError
        return kind(number)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{label}: {value!r} is not a {'whole ' if kind is int else ''}number.") from error


def own_move(editor: dict[str, Any] | None) -> Move | None:
    """The visitor's own path in the value of the camera editor; None while it shows a named move."""
    return Move.from_dict(editor.get("move")) if editor and editor.get("own") else None


def editor_value(shown: dict[str, Any], move: Move | None, *, own: bool) -> dict[str, Any]:
    """The camera editor's value: what it shows, and a path that takes the place of the one it has, if there is one."""
    rest = {name: value for name, value in shown.items() if name not in ("move", "own", "serial", "download")}
    return rest | ({"move": move.to_dict(), "own": own, "serial": uuid.uuid4().hex} if move else {"own": False})


def values_from(request: RenderRequest) -> dict[str, Any]:
    """The controls' values that mean this request."""
    values = request.flat() | {"accepted": request.accepted}
    for name in ("backbone", "size", "mask_frame", "mask_label"):
        del values[name]
    for name in ("first_frame_model", "latent_mask", "depth_kind"):
        values[name] = values[name] or ""
    values["height"], values["width"] = request.size or (None, None)
    values["depth_model"] = request.depth_model or ""
    values["mask"] = {"path": request.mask, "of": frames_of(request)} if request.mask else None
    values["change"] = "camera" if not request.mask else "object" if request.camera == "still" else "both"
    if request.move is not None and request.mask:
        values["change"] = "both"
    values["move"] = editor_value({"empty": EMPTY_CLOUD}, request.move, own=True)
    for name in NUMBERS:
        values[name] = (
            "" if values[name] is None else f"{values[name]:g}" if NUMBERS[name][1] is float else str(values[name])
        )
    if request.amount is None:
        values["amount"] = MOVES[request.camera].default
    return values


def depth_choices(extra: str | None = None) -> list[tuple[str, str]]:
    """(label, value) of the depth models of the page; the empty one is what comes with the backbone."""
    named = [(f"{spec.name} · {spec.note}", spec.name) for spec in table.of_role("depth")]
    choices = [("What comes with the model", ""), *named]
    if extra and extra not in dict(named).values():
        choices.append((Path(extra).name if Path(extra).is_dir() else extra, extra))
    return choices


def amount_slider(camera: str, amount: float | None = None) -> dict[str, Any]:
    """Range, unit and value of the amount slider for a camera move."""
    preset = MOVES[camera]
    low, high = preset.range
    how = f"{preset.unit} of the distance to the subject" if preset.unit == "percent" else preset.unit
    value = preset.default if amount is None else min(high, max(low, amount))
    return {
        "minimum": low,
        "maximum": high if high > low else low + 1,  # a slider needs a range; one without a choice is put away
        "value": value,
        "label": f"How far, in {how}",
        "visible": high > low,
    }


def advanced_settings(backbone: str = "nano") -> tuple[dict[str, Any], list[Terms]]:
    """The settings most people leave alone, by their names in a RenderRequest; and the terms of models among them."""
    controls: dict[str, Any] = {}

    def numbers(*names: str, placeholder: str = "Automatic") -> None:
        # Text fields: a number field of Gradio cannot be empty, and shows 0 where nothing was given.
        with gr.Row(elem_classes="rc-fields"):
            for name in names:
                default = DEFAULTS.get(name)
                controls[name] = gr.Textbox(
                    label=NUMBERS[name][0], value="" if default is None else f"{default:g}", lines=1, max_lines=1,
                    placeholder="55" if name == "fov" else placeholder, max_length=20, min_width=110,
                    elem_id=f"set-{name}",
                )  # fmt: skip

    def choice(name: str, label: str, names: Iterable[str]) -> None:
        automatic = [("Automatic", "")] if DEFAULTS[name] is None else []
        options = automatic + [(CHOICES[name].get(option, option), option) for option in names]
        value = DEFAULTS[name] or ""
        controls[name] = gr.Dropdown(options, value=value, label=label, min_width=160, elem_id=f"set-{name}")

    choice("method", "Method", METHODS)
    gr.HTML("".join(f'<p class="rc-caption">{escape(words)}</p>' for words in WORDS.values()), elem_id="method-words")
    terms = [ask_terms(controls["method"], "method", lambda method: scene_model_of(method or "", backbone))]
    numbers("steps", "guidance_scale", "strength", "seed")
    controls["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, max_lines=3, max_length=2000)
    with gr.Row(elem_classes="rc-fields"):
        # those that need the wanted video, which a new camera path never has, are left out
        choice("latent_mask", "Latent mask", [name for name, kind in LATENT_MASKS.items() if not kind.needs_target])
        choice("phi", "φ of the latent mask", PHI)
        choice("condition", "The model is shown", CONDITIONS)
    with gr.Row(elem_classes="rc-fields"):
        choice("solver", "Data consistency", SOLVERS)
        choice("schedule", "Solver iterations over σ", SCHEDULES)
    numbers("gamma", "iterations", "step_size", "tau")
    numbers("guide_from", "guide_until")
    with gr.Row(elem_classes="rc-fields"):
        choice("fast", "Fast mode", FAST)
        choice("memory", "GPU memory", MEMORY)
    terms.append(ask_terms(controls["fast"], "fast"))
    numbers("frames", "start", "stride")
    numbers("height", "width", "fov", "seam")
    numbers("stereo", placeholder="One eye")
    own = [
        ("The video model's own", ""),
        *((f"Inpainted by {spec.title}", spec.name) for spec in table.of_role("first frame")),
    ]
    model = controls["first_frame_model"] = gr.Dropdown(
        own, value="", label="What is unknown of the first frame", elem_id="set-first_frame_model"
    )
    terms.append(ask_terms(model, "first-frame"))
    controls["other_frames"] = gr.Checkbox(
        value=DEFAULTS["other_frames"], label="What a frame does not see, take from frames that do", elem_id="set-other"
    )
    controls["composite"] = gr.Checkbox(
        value=DEFAULTS["composite"], label="Keep what your clip shows untouched, at its full resolution"
    )
    controls["grain"] = gr.Checkbox(
        value=DEFAULTS["grain"], label="Give what is painted there the grain of what is filmed", elem_id="set-grain"
    )
    controls["depth"] = gr.File(
        label="Depth of your own (npz or EXR)",
        file_types=DEPTH_SUFFIXES,
        type="filepath",
        height=140,
        elem_id="set-depth",
    )
    kinds = [("As the file says", ""), *((label[0].upper() + label[1:], kind) for kind, label in KINDS.items())]
    controls["depth_kind"] = gr.Dropdown(kinds, value="", label="Kind of your depth", elem_id="set-depth_kind")
    return controls, terms
