"""The page: its parts, what they ask of the pipeline, and how a job's progress comes back to them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from pipeline import InputError
from pipeline.camera.files import FORMATS, read_moves, write_move
from pipeline.camera.moves import MOVES, Move, fov_of
from pipeline.media.cache import content_key
from pipeline.method.latent_mask import LATENT_MASKS, PHI
from pipeline.method.solvers import SCHEDULES, SOLVERS
from pipeline.models import table as models
from pipeline.models.caption import Caption, caption
from pipeline.models.memory import CHOICES as MEMORY
from pipeline.prior.backbone import FAST, FEW_STEPS, vocabulary_of
from pipeline.render import render
from pipeline.render.render import CONDITIONS, Analysis, RenderRequest, RenderResult, StageEvent
from ui import mask_editor, media, widgets
from ui.jobs import JobStore, JobView
from ui.theme import CSS, theme

log = logging.getLogger(__name__)

NAME = "Recapture"
Analyse = Callable[[RenderRequest], Iterator[StageEvent | Analysis]]
Describe = Callable[[Tensor], Caption]
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(RenderRequest)}
DEPTH_SUFFIXES = [".npz", ".exr"]
WAITS_FOR_CLIP = "Starts by itself once there is a clip."
NO_MASK = "Say first what is to be replaced: paint over it on the tab Replace an object, then press Follow."
NO_CLIP = "Choose a clip first: upload a video or press an example."
EMPTY_CLOUD = "Your clip appears here as a point cloud, with the camera path in it."
EMPTY_DEPTH = "Depth of the clip"
EMPTY_WARP = "Your clip, seen from the new camera path, appears here."
CHANGES = {"camera": "The camera path", "object": "The object", "both": "Both"}
BEFORE_RENDER = {"first_frame_model": None, "fast": "off"}  # whose terms nobody has to accept for an analysis
EMPTY_PREVIEW = "While a render runs, you see it form here."
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
}
CHOICES: dict[str, dict[str, str]] = {
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


class Analyses:
    """The last few analyses, so that another camera move costs no second one. One analysis runs at a time."""

    def __init__(self, analyse: Analyse, keep: int = 4):
        self._analyse = analyse
        self._kept: OrderedDict[tuple, Analysis] = OrderedDict()
        self._keep = keep
        self._running = threading.Lock()
        self._hidden: tuple[tuple, Analysis] | None = None

    def hidden(self, request: RenderRequest, analysis: Analysis) -> Analysis:
        """The analysis without what the request replaces."""
        names = ("mask", "invert", "grow", "remove", "first_frame")
        key = (self.key(request), *(getattr(request, name) for name in names))
        if self._hidden is None or self._hidden[0] != key:
            (*_, found) = render.hide(analysis, request)
            assert isinstance(found, Analysis), "hiding ends with an analysis"
            self._hidden = key, found
        return self._hidden[1]

    @staticmethod
    def key(request: RenderRequest) -> tuple:
        """What an analysis depends on."""
        return tuple(
            getattr(request, name)
            for name in ("clip", "fov", "frames", "start", "stride", "size", "depth", "depth_model", "backbone")
        )

    def get(self, request: RenderRequest) -> Analysis | None:
        return self._kept.get(self.key(request))

    def find(self, request: RenderRequest) -> Iterator[StageEvent | Analysis]:
        """Stage events, then the analysis; at once if it is at hand."""
        while not self._running.acquire(timeout=1.0):
            yield StageEvent("waiting", "Waiting for another clip's analysis to finish …", 0.0)
        try:
            known = self.get(request)
            if known is not None:
                self._kept.move_to_end(self.key(request))
                yield known
                return
            for event in self._analyse(request):
                if isinstance(event, Analysis):
                    self._kept[self.key(request)] = event
                    while len(self._kept) > self._keep:
                        self._kept.popitem(last=False)
                yield event
        finally:
            self._running.release()


def request_from(values: dict[str, Any], backbone: str) -> RenderRequest:
    """The request that the controls' values mean. An empty field means the default."""
    if not values.get("clip"):
        raise InputError(NO_CLIP)
    allowed = limits()
    given = {name: value for name, value in values.items() if value not in (None, "")}
    given["move"] = own_move(given.get("move"))
    given["accepted"] = tuple(given.get("accepted", ()))
    change, mask = given.pop("change", "camera"), given.pop("mask", None)
    if change == "camera":
        given = {name: value for name, value in given.items() if name not in ("invert", "grow", "remove")}
    if change == "object":
        given |= {"camera": "still", "amount": None, "move": None}
    for name, (label, kind) in NUMBERS.items():
        if name in given:
            given[name] = _number(given[name], label, kind)
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
        return RenderRequest(**given, backbone=backbone)
    if mask is None:
        raise InputError(NO_MASK)
    request = RenderRequest(**given, mask=mask["path"], backbone=backbone)
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


def _number(value: Any, label: str, kind: type) -> int | float:
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


def values_from(request: RenderRequest) -> dict[str, Any]:
    """The controls' values that mean this request."""
    without = ("backbone", "size", "mask_frame")
    values = {name: getattr(request, name) for name in DEFAULTS if name not in without}
    for name in ("first_frame_model", "latent_mask"):
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


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of what is chosen in a dropdown, and the box that accepts them; put away where there are none."""

    choice: gr.Dropdown
    column: gr.Column
    words: gr.HTML
    box: gr.Checkbox


def ask_terms(choice: gr.Dropdown, elem_id: str) -> Terms:
    """The place for the terms of what is chosen in a dropdown, below it."""
    model = chosen_model(choice.value)
    with gr.Column(elem_classes=terms_classes(model), elem_id=f"{elem_id}-terms") as column:
        words = gr.HTML(terms_html(model))
        box = gr.Checkbox(label="I accept these terms", elem_id=f"{elem_id}-accept")
    return Terms(choice, column, words, box)


def chosen_model(choice: Any) -> str:
    """The model that a choice in a dropdown means; the fast mode of that name is one."""
    return FEW_STEPS.model if choice == "lora" else choice or ""


def depth_choices(extra: str | None = None) -> list[tuple[str, str]]:
    """(label, value) of the depth models of the page; the empty one is what comes with the backbone."""
    named = [(f"{spec.name} · {spec.note}", spec.name) for spec in models.of_role("depth")]
    choices = [("What comes with the model", ""), *named]
    if extra and extra not in dict(named).values():
        choices.append((Path(extra).name if Path(extra).is_dir() else extra, extra))
    return choices


def terms_html(model: str | None) -> str:
    """What has to be accepted before a model's first use; empty if nothing has to be."""
    spec = models.find(model) if model else None
    if spec is None or not spec.terms:
        return ""
    size = f"About {models.size(spec.download_bytes)} are fetched once, and nothing before you have ticked the box."
    return f'<p class="rc-caption">{escape(spec.terms)} ({escape(spec.licence)}.) {size}</p>'


def terms_classes(model: str | None) -> list[str]:
    return ["rc-terms"] if terms_html(model) else ["rc-terms", "rc-away"]


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


def find_examples(folder: Path) -> list[tuple[str, RenderRequest, bool]]:
    """(title, request, described) of every clip in the folder; a JSON request of the same name describes it."""
    examples = []
    for clip in sorted(folder.glob("*.mp4")):
        request = RenderRequest(clip=str(clip))
        file, described = clip.with_suffix(".json"), False
        if file.exists():
            try:
                request = RenderRequest.from_json(file.read_text(encoding="utf-8"))
                mask = str(folder / request.mask) if request.mask else None
                request, described = replace(request, clip=str(clip), mask=mask), True
            except InputError as error:
                log.warning("%s: %s", file.name, error)
        examples.append((clip.stem.replace("-", " ").replace("_", " ").capitalize(), request, described))
    return examples


def editor_scene(analysis: Analysis, folder: Path) -> dict[str, Any]:
    """What the camera editor shows whatever the path is; writes the point clouds into folder."""
    frames, _, height, width = analysis.clip.frames.shape
    clouds = []
    for number, content in enumerate(media.cloud_files(analysis)):
        (folder / f"cloud-{number}.bin").write_bytes(content)
        clouds.append(widgets.file_url(folder / f"cloud-{number}.bin"))
    return {
        "clouds": clouds,
        "plotly": widgets.file_url(widgets.plotly_script()),
        "width": width,
        "height": height,
        "fov": fov_of(analysis.source, (height, width)),
        "frames": frames,
        "fps": analysis.fps,
    }


def editor_value(shown: dict[str, Any], move: Move | None, *, own: bool) -> dict[str, Any]:
    """The camera editor's value: what it shows, and a path that takes the place of the one it has, if there is one."""
    rest = {name: value for name, value in shown.items() if name not in ("move", "own", "serial", "download")}
    return rest | ({"move": move.to_dict(), "own": own, "serial": uuid.uuid4().hex} if move else {"own": False})


def duration_words(seconds: float) -> str:
    if seconds < 1.5:
        return "about a second"
    if seconds < 90:
        return f"about {round(seconds)} seconds"
    return f"about {round(seconds / 60)} minutes"


def preview_words(by: str) -> str:
    return f'<p class="rc-caption">Preview by {escape(by)}.</p>' if by else ""


def share_words(share: float, other_frames: bool) -> str:
    """other_frames: whether what those saw is put in first."""
    percent = 100 * share
    if percent < 0.5:
        return "Almost everything is seen by your clip from here."
    by = "what other frames saw is put in, the model fills in the rest" if other_frames else "the model will fill it in"
    return f"{percent:.0f} % of the picture is unknown from here (checkered): {by}."


def progress_words(view: JobView) -> str:
    left = f" · {duration_words(view.seconds_left)} left" if view.seconds_left is not None else ""
    return view.message + left


def change_words(report: dict[str, Any]) -> str:
    """What a render changed of its clip, as its report tells: "Orbit left, 20 degrees, an object removed"."""
    request, words = report.get("request") or {}, []
    if request.get("move"):
        words.append("Your own camera path")
    elif preset := MOVES.get(request.get("camera", "")):
        amount = report.get("amount")
        words.append(f"{preset.label}, {amount:g} {preset.unit}" if amount else preset.label)
    if request.get("mask"):
        what = "the surroundings" if request.get("invert") else "an object"
        if request.get("remove"):
            words.append(f"{what} removed")
        else:
            words.append(f"{what} replaced" + (f": “{request['prompt']}”" if request.get("prompt") else ""))
    return ", ".join(words)


def figures_html(report: dict[str, Any]) -> str:
    """The figures of a report in plain words; what a report lacks is left out."""

    def at(*path: str) -> Any:
        value: Any = report
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def row(title: str, figure: str, note: str = "") -> str:
        small = f"<small>{escape(note)}</small>" if note else ""
        return f"<div><dt>{escape(title)}</dt><dd>{escape(figure)}{small}</dd></div>"

    rows = []
    if name := at("request", "clip"):
        rows.append(row("Your clip", name))
    if changed := change_words(report):
        rows.append(row("What was changed", changed))
    if (unknown := at("unknown")) is not None:
        rows.append(row("Filled in by the model", f"{100 * unknown:.1f} %", "of the picture, not seen by your clip"))
    if elsewhere := at("from_other_frames"):
        rows.append(row("Seen by other frames", f"{100 * elsewhere:.1f} %", "of the picture, and taken from there"))
    raw, kept = at("measurement", "raw"), at("measurement", "composited")
    if raw:
        decibels = "equal" if raw.get("psnr") is None else f"{raw['psnr']:.1f} dB"
        note = "PSNR where your clip is known, before it is put back"
        if kept:
            note += ", " + ("equal" if kept.get("psnr") is None else f"{kept['psnr']:.1f} dB") + " after"
        rows.append(row("Faithful to your clip", decibels, note))
        if raw.get("ssim") is not None:
            after = f", {kept['ssim']:.3f} after" if kept and kept.get("ssim") is not None else ""
            rows.append(row("Structure kept", f"{raw['ssim']:.3f}", f"SSIM in the same place, 1 is equal{after}"))
    if source := at("first_frame", "from"):
        rows.append(row("First frame", source[0].upper() + source[1:]))
    if (total := at("seconds", "total")) is not None:
        sampling = at("seconds", "sample")
        note = f"of which {sampling:.1f} s in {at('steps')} steps" if sampling is not None else ""
        rows.append(row("Time taken", f"{total:.1f} s", note))
    if (count := at("frames", "count")) and (size := at("sizes", "result")):
        worked = at("sizes", "working")
        note = f"the model worked at {worked[1]} × {worked[0]}" if worked else ""
        rows.append(row("Video", f"{count} frames, {size[1]} × {size[0]}", note))
    if at("seed") is not None:
        rows.append(row("Seed", str(at("seed")), "the same settings and seed give the same video"))
    notes = "".join(f'<p class="rc-caption">{escape(note)}</p>' for note in at("notes") or [])
    return f'<dl class="rc-figures">{"".join(rows)}</dl>{notes}'


def public_report(result: RenderResult) -> dict[str, Any]:
    """The report without the places of files on the server: those are nobody's business."""
    report = dict(result.report)
    request = dict(report.get("request") or {})
    for name in ("clip", "depth", "mask", "first_frame"):
        if request.get(name):
            request[name] = Path(request[name]).name
    if report.get("request"):
        report["request"] = request
    if isinstance(report.get("depth"), dict) and report["depth"].get("from"):
        report["depth"] = report["depth"] | {"from": Path(report["depth"]["from"]).name}
    return report


def build(
    backbone: str,
    store: JobStore,
    *,
    examples: Path,
    analyse: Analyse = render.analyse,
    describe: Describe = caption,
    depth_model: str | None = None,
) -> gr.Blocks:
    """The page, for one backbone. `launch_options` holds what else `launch` needs.

    depth_model: what is chosen at first, a name of the table, a folder or a hub id; one that is not in the
    table joins the choices. Visitors choose among these only: what a server fetches and reads is its host's to say.
    """
    analyses = Analyses(analyse)
    if depth_model and (spec := models.find(depth_model)):
        depth_model = spec.name
    found = find_examples(examples)
    gr.set_static_paths([widgets.plotly_script()])

    # What each control is called in a RenderRequest; the handlers get their values in this order.
    controls: dict[str, Any] = {}

    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 12 * 3600)) as page:
        job_id = gr.BrowserState("", storage_key="recapture-job", secret="recapture-browser-state")
        shown = gr.State(None)  # what the analysis on the page was made of
        gr.HTML(
            f'<header class="rc-header"><h1>{NAME}</h1>'
            "<p>Film a clip you already have once more, along a new camera path, or with an object replaced.</p>"
            "</header>"
        )

        with gr.Row(elem_classes="rc-row"):
            with gr.Column(elem_classes="rc-card", min_width=320):
                widgets.heading(1, "Clip", f"Up to {limits().megabytes} MB; a few seconds are used, from its start")
                clip = controls["clip"] = gr.Video(
                    label="Your clip", show_label=False, sources=["upload"], height=300, buttons=[], elem_id="clip",
                    elem_classes="rc-clip",
                )  # fmt: skip
                strip = None
                if found:
                    pictures = [
                        (title, media.data_url(media.poster(request.clip), "image/jpeg")) for title, request, _ in found
                    ]
                    strip = widgets.example_strip(pictures, elem_id="examples")
            with gr.Column(elem_classes="rc-card", min_width=320):
                widgets.heading(2, "Analyse", "How far everything is, estimated from the clip")
                depth = widgets.loop_view("Depth", EMPTY_DEPTH, elem_id="depth", elem_classes=["rc-depth", "rc-grow"])
                with gr.Row(elem_classes="rc-depth-row"):
                    analysis_status = gr.HTML(widgets.status_html(WAITS_FOR_CLIP), elem_id="analysis-status")
                    analyse_button = gr.Button(
                        "Analyse again", size="sm", elem_id="analyse", interactive=False, min_width=120, scale=0
                    )
                analysis_notes = gr.HTML("", elem_id="analysis-notes")
                depth_choice = controls["depth_model"] = gr.Dropdown(
                    depth_choices(depth_model), value=depth_model or "", label="Depth from", elem_id="depth-model"
                )
                accepted = controls["accepted"] = gr.State(())
                depth_terms = ask_terms(depth_choice, "depth")

        with gr.Column(elem_classes="rc-card"):
            widgets.heading(3, "What to change", "A new camera path, another object, or both")
            with gr.Tabs(elem_classes="rc-tabs") as tabs:
                with gr.Tab("Camera path", id="camera", render_children=True), gr.Row(elem_classes="rc-camera"):
                    with gr.Column(min_width=300, scale=2):
                        camera = controls["camera"] = gr.Dropdown(
                            [(preset.label, name) for name, preset in MOVES.items()], value=DEFAULTS["camera"],
                            label="Start from", elem_id="camera",
                        )  # fmt: skip
                        amount = controls["amount"] = gr.Slider(
                            **amount_slider(DEFAULTS["camera"]), step=1, buttons=[], elem_id="amount"
                        )
                        warp = widgets.loop_view(
                            "Your clip from the new path", EMPTY_WARP, elem_id="warp", elem_classes=["rc-warp"]
                        )
                        warp_status = gr.HTML(widgets.status_html(""), elem_id="warp-status")
                        with gr.Accordion(
                            "Open a camera file", open=False, elem_classes="rc-advanced", elem_id="open-path"
                        ):
                            formats = "; ".join(label for label, _ in FORMATS.values())
                            gr.HTML(f'<p class="rc-caption">{escape(formats)}.</p>')
                            camera_file = gr.File(
                                label="Camera path", file_types=[".json", ".txt", ".npz"], type="filepath", height=120,
                                elem_id="camera-file",
                            )  # fmt: skip
                            with gr.Row(elem_classes="rc-fields"):
                                camera_name = gr.Dropdown(
                                    [], label="Camera in the file", min_width=130, interactive=True
                                )
                                camera_unit = gr.Textbox(
                                    label="Units to the subject",
                                    placeholder="1; ReCamMaster 5",
                                    max_length=20,
                                    min_width=130,
                                )
                    with gr.Column(min_width=320, scale=3):
                        # the path lives in the page, so that whatever is asked for next has the latest
                        editor = controls["move"] = widgets.camera_editor(
                            EMPTY_CLOUD, elem_id="editor", elem_classes="rc-editor"
                        )
                with gr.Tab("Replace an object", id="object", render_children=True, elem_id="replace-tab"):
                    tab = mask_editor.replace_tab(DEFAULTS["grow"])
                    controls |= tab.controls

        with gr.Column(elem_classes="rc-card"):
            widgets.heading(4, "Render", "The model fills what your clip did not see")
            with gr.Row(elem_classes="rc-camera"):
                with gr.Column(min_width=320, scale=3):
                    controls["change"] = gr.Radio(
                        [(words, name) for name, words in CHANGES.items()], value="camera", label="Change",
                        elem_id="change",
                    )  # fmt: skip
                    with gr.Row(elem_classes="rc-prompt"):
                        controls["prompt"] = gr.Textbox(
                            label="Prompt (optional)", placeholder="What is in the scene", lines=1,
                            max_lines=4, max_length=2000, elem_id="prompt", min_width=160,
                            info=vocabulary_of(backbone) or None,
                        )  # fmt: skip
                        suggest_button = gr.Button("Suggest", scale=0, min_width=96, elem_id="suggest")
                    prompt_status = gr.HTML("", elem_id="prompt-status", elem_classes="rc-optional")
                    with gr.Accordion("Advanced settings", open=False, elem_classes="rc-advanced", elem_id="advanced"):
                        advanced, other_terms = _advanced()
                        controls |= advanced
                    with gr.Row(elem_classes=["rc-buttons", "rc-actions"]):
                        start_button = gr.Button("Render", variant="primary", elem_id="render", scale=3)
                        stop_button = gr.Button("Stop", elem_id="stop", interactive=False, scale=1)
                    progress = gr.HTML(widgets.status_html(""), elem_id="progress")
                with gr.Column(min_width=300, scale=2):
                    preview = widgets.loop_view(
                        "The render, forming", EMPTY_PREVIEW, elem_id="preview", elem_classes=["rc-preview"]
                    )
                    preview_note = gr.HTML("", elem_id="preview-note", elem_classes="rc-optional")

        # Put away by its class, not by visible=False: a part that is not mounted loses its template with an update.
        with gr.Column(elem_classes=["rc-card", "rc-away"], elem_id="result") as result_card:
            widgets.heading(None, "Result", "Your clip and the new one, playing in step")
            compare = widgets.compare_view(elem_id="compare")
            with gr.Row(elem_classes="rc-buttons"):
                video_file = gr.DownloadButton("Download the video", variant="primary", elem_id="download-video")
                report_file = gr.DownloadButton("Download the report (JSON)", elem_id="download-report")
            figures = gr.HTML("", elem_id="figures")

        inputs = list(controls.values())

        def request_of(values: tuple) -> RenderRequest:
            return request_from(dict(zip(controls, values, strict=True)), backbone)

        def camera_request(values: tuple) -> RenderRequest:
            """The request without what it replaces: all that an analysis needs."""
            given = dict(zip(controls, values, strict=True)) | {"change": "camera"}
            return request_from(given | BEFORE_RENDER, backbone)

        def warp_request(values: tuple) -> RenderRequest:
            """What the warp shows: the camera path, and what is replaced where the render will have both."""
            given = dict(zip(controls, values, strict=True))
            request, mask = camera_request(values), given["mask"]
            both = given["change"] == "both" and mask is not None and mask["of"] == frames_of(request)
            return request_from(given | BEFORE_RENDER, backbone) if both else request

        def has_clip(values: tuple) -> bool:
            return bool(dict(zip(controls, values, strict=True))["clip"])

        def set_controls(request: RenderRequest) -> list[Any]:
            values = values_from(request)
            values["amount"] = gr.Slider(**amount_slider(request.camera, values["amount"]))
            values["accepted"] = request.accepted or gr.skip()  # an example takes back nothing
            return [values[name] for name in controls]

        # --- analysis and warp ---------------------------------------------------------------------------------

        def nothing(values: tuple) -> dict[Any, Any]:
            """The page without an analysis; the visitor's own path stays."""
            kept = dict(zip(controls, values, strict=True))["move"] or {}
            return {
                shown: None,
                analysis_notes: "",
                editor: {"empty": EMPTY_CLOUD} | {k: kept[k] for k in ("move", "own", "serial") if kept.get("own")},
                depth: {"empty": EMPTY_DEPTH},
                warp: {"empty": EMPTY_WARP},
                warp_status: widgets.status_html(""),
            }

        def show_analysis(*values):
            """Depth and point cloud of the chosen clip."""
            button_on, button_off = gr.Button(interactive=True), gr.Button(interactive=False)
            if not has_clip(values):
                yield nothing(values) | {
                    analysis_status: widgets.status_html(WAITS_FOR_CLIP),
                    analyse_button: button_off,
                }
                return
            yield {analysis_status: widgets.status_html("Reading the clip …", "busy"), analyse_button: button_off}
            try:
                request = camera_request(values)
                for event in analyses.find(request):
                    if isinstance(event, StageEvent):
                        yield {analysis_status: widgets.status_html(f"{event.message} …", "busy")}
                        continue
                    yield {analysis_status: widgets.status_html("Drawing depth and point cloud …", "busy")}
                    folder = store.new_folder()
                    standing = editor_scene(event, folder)
                    z = event.depth.z.float().cpu().numpy()
                    (folder / "depth.webp").write_bytes(media.loop_webp(media.depth_frames(z), event.fps))
                    yield {
                        shown: analyses.key(request),
                        analysis_status: widgets.status_html(analysis_words(event), "done"),
                        analysis_notes: f'<p class="rc-caption">{escape(" ".join(event.notes))}</p>',
                        analyse_button: button_on,
                        editor: editor_value(standing, render.move_of(request, event), own=request.move is not None),
                        depth: {"url": widgets.file_url(folder / "depth.webp"), "alt": "Depth: near is bright"},
                    }
            except Exception as error:
                words = widgets.status_html(widgets.failure_words(error), "error")
                yield nothing(values) | {analysis_status: words, analyse_button: button_on}

        def show_terms(choice, names):
            """The terms of the chosen model, if it has any."""
            model = chosen_model(choice)
            return terms_html(model), gr.Checkbox(value=model in names), gr.Column(elem_classes=terms_classes(model))

        def accept(ticked, choice, names):
            """The names of all models whose terms this visitor has accepted."""
            model = chosen_model(choice)
            return tuple(name for name in names if name != model) + ((model,) if ticked else ())

        def show_if_new(known, *values):
            """As `show_analysis`, unless a field was left as it was."""
            try:
                wanted = analyses.key(camera_request(values)) if has_clip(values) else None
            except InputError as error:  # half typed, perhaps: what stands on the page stays
                yield {analysis_status: widgets.status_html(widgets.failure_words(error), "error")}
                return
            if wanted is None or wanted == known:
                standing = analyses.get(camera_request(values)) if wanted else None
                words = widgets.status_html(analysis_words(standing), "done") if standing else gr.skip()
                yield {analysis_status: words}
            else:
                yield from show_analysis(*values)

        def show_warp(known, *values):
            """The clip along the chosen path; uses the analysis that is at hand."""
            if known is None:  # no clip, or its analysis failed and says so beside it
                yield {warp_status: widgets.status_html("")}
                return
            try:
                request = warp_request(values)
            except InputError:  # a setting is wrong, and its message stands already
                yield {warp_status: gr.skip()}
                return
            try:
                analysis = analyses.get(request)
                if analysis is None:
                    for event in analyses.find(request):
                        if isinstance(event, StageEvent):
                            yield {warp_status: widgets.status_html(f"{event.message} …", "busy")}
                        else:
                            analysis = event
                assert analysis is not None, "an analysis ends with its result or an error"
                analysis = analyses.hidden(request, analysis)
                measurement = render.measure(analysis, request)
                unknown = 1 - measurement.mask.float().mean(dim=(1, 2, 3))
                frames = render.to_uint8(render.show_holes(measurement))
                file = store.new_folder() / "warp.webp"
                file.write_bytes(media.loop_webp(frames, analysis.fps))
                warnings = "".join(
                    widgets.status_html(words, "warning")
                    for words in render.path_warnings(analysis, request, 1 - unknown)
                )
                words = widgets.status_html(
                    share_words(unknown.mean().item(), render.wants_other_frames(analysis, request, measurement))
                )
                yield {
                    warp: {"url": widgets.file_url(file), "alt": "Your clip from the new path; unknown is checkered"},
                    warp_status: words + widgets.unknown_strip(unknown.tolist()) + warnings,
                }
            except Exception as error:
                words = widgets.status_html(widgets.failure_words(error), "error")
                yield {warp_status: words, warp: {"empty": EMPTY_WARP}}

        def show_named(known, *values):
            """The path of the named move, in place of the visitor's own."""
            given = dict(zip(controls, values, strict=True))
            standing = given["move"] or {"empty": EMPTY_CLOUD}
            given["move"] = editor_value(standing, None, own=False)
            try:
                request = camera_request(tuple(given.values()))
                analysis = analyses.get(request)
                if known is not None and analysis is not None:
                    given["move"] = editor_value(standing, render.move_of(request, analysis), own=False)
            except InputError:  # no clip yet, or a setting is wrong, and its message stands already
                pass
            yield {editor: given["move"]}
            yield from show_warp(known, *given.values())

        def show_edited(event: gr.EventData, known, *values):
            """The visitor's own path: one frame of the warp at once, then all of it."""
            try:
                request = warp_request(values)
                analysis = analyses.get(request)
                if known is not None and analysis is not None:
                    picture = render.preview(analyses.hidden(request, analysis), request, float(event.at))
                    yield {warp: {"url": media.picture_url(picture), "alt": "One frame of your clip from the new path"}}
            except (InputError, TypeError, ValueError) as error:
                yield {warp_status: widgets.status_html(widgets.failure_words(error), "error")}
                return
            yield from show_warp(known, *values)

        def save_path(event: gr.EventData, known, *values):
            """The camera path as a file that the page downloads."""
            try:
                request = camera_request(values)
                analysis = analyses.get(request)
                standing = dict(zip(controls, values, strict=True))["move"]
                if known is None or standing is None or analysis is None:
                    raise InputError("Analyse the clip again first: its frames decide how many cameras are written.")
                name = str(event.format)
                content = write_move(
                    name, render.move_of(request, analysis), frames=len(analysis.clip.frames),
                    own_fov=fov_of(analysis.source, render.size_of(analysis.clip.frames)),
                    size=render.size_of(analysis.full.frames),
                )  # fmt: skip
                file = store.new_folder() / f"camera-path-{name}{FORMATS[name][1]}"
                file.write_bytes(content)
                return standing | {"download": widgets.file_url(file)}, gr.skip()
            except Exception as error:
                return gr.skip(), widgets.status_html(widgets.failure_words(error), "error")

        def open_path(file, name, unit, standing):
            """The move in a file: the names in it, and the path for the editor."""
            if not file:
                return {camera_name: gr.Dropdown([], value=None)}
            try:
                moves = read_moves(file, unit=_number(unit, "Units to the subject", float) if unit else None)
                name = name if name in moves else next(iter(moves))
                return {
                    editor: editor_value(standing or {"empty": EMPTY_CLOUD}, moves[name], own=True),
                    camera_name: gr.Dropdown(list(moves), value=name),
                }
            except Exception as error:
                return {warp_status: widgets.status_html(widgets.failure_words(error), "error")}

        analysis_outputs = [
            shown, analysis_status, analysis_notes, analyse_button, editor, depth, warp, warp_status,
        ]  # fmt: skip
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}

        def then_warp(event):
            return event.then(show_warp, [shown, *inputs], [warp, warp_status], **quiet)

        def analysis_at_hand(values: tuple) -> Analysis:
            analysis = analyses.get(camera_request(values))
            if analysis is None:
                raise InputError("The clip is not analysed yet; wait until it is.")
            return analysis

        def suggest(*values):
            """The clip's middle frame in words, as the prompt."""
            yield {prompt_status: widgets.status_html("Describing the clip …", "busy")}
            try:
                frames = analysis_at_hand(values).full.frames
                found = describe(frames[len(frames) // 2])
                words = f"Suggested by {found.by}, from the clip's middle frame. Change it as you like."
                yield {controls["prompt"]: found.words, prompt_status: widgets.status_html(words)}
            except Exception as error:
                yield {prompt_status: widgets.status_html(widgets.failure_words(error), "error")}

        suggest_button.click(suggest, inputs, [controls["prompt"], prompt_status], **quiet, concurrency_limit=1)

        start_painting = mask_editor.connect(
            tab, controls, analysis_at_hand, lambda values: frames_of(camera_request(values)), store.new_folder
        )

        def then_all(event):
            """What follows an analysis: the warp, and the picture to paint on."""
            return start_painting(then_warp(event))

        for trigger in (clip.upload, clip.clear, analyse_button.click):
            then_all(trigger(show_analysis, inputs, analysis_outputs, **quiet))
        # what was said of one clip says nothing of the next
        said = {request.prompt for _, request, _ in found}
        of_clip = [controls[name] for name in ("prompt", "mask", "change")]
        for trigger in (clip.upload, clip.clear):
            trigger(lambda words: ("" if words in said else gr.skip(), None, "camera"), of_clip[:1], of_clip, **quiet)
        settings = [controls[name] for name in ("fov", "frames", "start", "stride", "height", "width")]
        changes = [event for field in settings for event in (field.submit, field.blur)]
        changes += [controls["depth"].upload, controls["depth"].clear, depth_choice.input]
        then_all(gr.on(changes, show_if_new, [shown, *inputs], analysis_outputs, trigger_mode="always_last", **quiet))
        for terms in (depth_terms, *other_terms):
            choice, told = terms.choice, [terms.words, terms.box, terms.column]
            choice.change(show_terms, [choice, accepted], told, **quiet)
            ticked = terms.box.input(accept, [terms.box, choice, accepted], accepted, **quiet)
            if terms is depth_terms:
                then_all(ticked.then(show_if_new, [shown, *inputs], analysis_outputs, **quiet))

        # While a warp is computed only the latest of the changes that come meanwhile is kept.
        latest: Any = quiet | {"trigger_mode": "always_last"}
        named = ([shown, *inputs], [editor, warp, warp_status])
        camera.input(lambda name: gr.Slider(**amount_slider(name)), camera, amount, **quiet).then(
            show_named, *named, **quiet
        )
        amount.input(show_named, *named, **latest)
        editor.reset(show_named, *named, **quiet)
        controls["change"].input(show_warp, [shown, *inputs], [warp, warp_status], **latest)
        editor.edit(show_edited, [shown, *inputs], [warp, warp_status], **latest)
        editor.save(save_path, [shown, *inputs], [editor, warp_status], **quiet)
        opened = [camera_file, camera_name, camera_unit, editor], [editor, camera_name, warp_status]
        for trigger in (camera_file.upload, camera_name.input, camera_unit.submit):
            then_warp(trigger(open_path, *opened, **quiet))

        if strip is not None:

            def pick(event: gr.EventData):
                request, described = found[int(event.index)][1:]
                own = dict.fromkeys(controls, gr.skip()) | {"clip": request.clip, "mask": None, "change": "camera"}
                tab = gr.Tabs(selected="object" if request.mask else "camera")
                return [*(set_controls(request) if described else own.values()), tab]

            picked = strip.pick(pick, None, [*inputs, tabs], **quiet)
            then_all(picked.then(show_analysis, inputs, analysis_outputs, **quiet))

        # --- renders as jobs -----------------------------------------------------------------------------------

        def start(*values):
            try:
                return store.submit(request_of(values)), widgets.status_html("Starting …", "busy", 0.0)
            except Exception as error:
                return gr.skip(), widgets.status_html(widgets.failure_words(error), "error")

        def follow(wanted):
            """Bring the page to where the job is, until it ends. A closed page ends this, never the job."""
            last = None
            # A generator that yields nothing would empty all of its outputs.
            yield {start_button: gr.Button(interactive=True), stop_button: gr.Button(interactive=False)}
            for view in store.follow(wanted):
                update: dict[Any, Any] = {
                    start_button: gr.Button(interactive=not view.active),
                    stop_button: gr.Button(interactive=view.active),
                }
                if view.active:
                    update[progress] = widgets.status_html(progress_words(view), "busy", view.fraction)
                    if last is None:
                        update[preview] = {"empty": "The first preview comes with the first step."}
                        update[result_card] = gr.Column(elem_classes=["rc-card", "rc-away"])
                else:
                    kind = {"done": "done", "failed": "error"}.get(view.state, "")
                    update[progress] = widgets.status_html(widgets.without_paths(view.message), kind)
                if view.preview is not None and (last is None or view.step != last.step):
                    update[preview_note] = preview_words(view.preview_by)
                    update[preview] = {"url": media.preview_url(view.preview), "alt": f"Preview of step {view.step}"}
                if view.result is not None:
                    update |= finished(view.result, watched=last is not None)
                last = view
                yield update

        def finished(result: RenderResult, watched: bool) -> dict[Any, Any]:
            height, width = (result.report.get("sizes") or {}).get("result") or (9, 16)
            # downloads are told apart by the clip's name; the report is written last, so that both stand with it
            public = public_report(result)
            given = Path((public.get("request") or {}).get("clip") or "clip").stem
            video, report = (result.folder / f"{given}-recaptured{end}" for end in (".mp4", ".json"))
            if not report.exists():
                shutil.copyfile(result.video, video)
                report.write_text(json.dumps(public, indent=2, ensure_ascii=False), encoding="utf-8")
            return {
                result_card: gr.Column(elem_classes=["rc-card"]),
                compare: {
                    "source": widgets.file_url(result.source),
                    "result": widgets.file_url(result.video),
                    "width": width,
                    "height": height,
                    "scroll": watched,
                },
                video_file: gr.DownloadButton(value=str(video)),
                report_file: gr.DownloadButton(value=str(report)),
                figures: figures_html(public),
            }

        job_outputs = [
            start_button,
            stop_button,
            progress,
            preview,
            preview_note,
            result_card,
            compare,
            video_file,
            report_file,
            figures,
        ]

        started = start_button.click(start, inputs, [job_id, progress], **quiet)
        started.then(follow, job_id, job_outputs, **quiet)
        stop_button.click(store.cancel, job_id, None, **quiet)

        # --- coming back ---------------------------------------------------------------------------------------

        def restore(wanted):
            """The clip and the settings of the visitor's own last job."""
            job = store.get(wanted)
            return [gr.skip()] * len(controls) if job is None else set_controls(job.request)

        page.load(follow, job_id, job_outputs, **quiet)
        restored = page.load(restore, job_id, inputs, **quiet)
        then_all(restored.then(show_analysis, inputs, analysis_outputs, **quiet))

    page.queue(default_concurrency_limit=None)
    return page


def _advanced() -> tuple[dict[str, Any], list[Terms]]:
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
    terms = [ask_terms(controls["fast"], "fast")]
    numbers("frames", "start", "stride")
    numbers("height", "width", "fov", "seam")
    own = [
        ("The video model's own", ""),
        *((f"Inpainted by {spec.title}", spec.name) for spec in models.of_role("first frame")),
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
    return controls, terms


def analysis_words(analysis: Analysis) -> str:
    """What was found, in a sentence."""
    frames, _, height, width = analysis.clip.frames.shape
    seconds = frames / max(analysis.fps, 0.1)
    return (
        f"Ready: {frames} frames, {seconds:.1f} seconds, worked on at {width} × {height}. In the depth, near is bright."
    )


def launch_options(store: JobStore, examples: Path) -> dict[str, Any]:
    """What `launch` must be told so that the page looks and works as meant."""
    return {
        "theme": theme(),
        "css": CSS,
        "allowed_paths": [str(store.root), str(examples)],
        "max_file_size": f"{limits().megabytes}mb",
        "max_threads": 100,
        "footer_links": [],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
    }
