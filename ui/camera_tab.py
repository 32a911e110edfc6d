"""The tab with the camera editor: a path in the clip's point cloud, and the clip seen from it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from pipeline import InputError, relayed
from pipeline.camera.files import FORMATS, READ_ALONE, SUFFIXES, read_moves, write_move
from pipeline.camera.moves import MOVES, fov_of, scaled
from pipeline.media.video import size_of, to_uint8
from pipeline.render.analysis import Analysis, read_mask
from pipeline.render.filmed import looking_at, move_of_clip, stabilised
from pipeline.render.request import DEFAULTS, RenderRequest
from pipeline.render.view import measure, move_of, path_warnings, preview, retimed, show_holes, wants_other_frames
from ui import media, widgets
from ui.controls import EMPTY_CLOUD, amount_slider, editor_value, number_from
from ui.page import LATEST, QUIET, Page
from ui.words import share_words

EMPTY_WARP = "Your clip, seen from the new camera path, appears here."


def scale_from(given: str | None) -> float:
    """How many times as far a path from elsewhere goes. Raises `InputError`."""
    return float(number_from(given, "Times as far", float)) if given else 1.0


@dataclass(frozen=True, eq=False)
class CameraTab:
    """The parts of the tab."""

    camera: gr.Dropdown
    amount: gr.Slider
    warp: gr.HTML
    status: gr.HTML
    file: gr.File
    file_name: gr.Dropdown
    file_unit: gr.Textbox
    scale: gr.Textbox
    other_clip: gr.UploadButton
    seconds: gr.Slider
    steady: gr.Button
    look: gr.Button
    said: gr.HTML
    editor: Any


def camera_tab(page: Page) -> CameraTab:
    """The inside of the tab."""
    with gr.Column(min_width=300, scale=2):
        camera = page.controls["camera"] = gr.Dropdown(
            [(preset.label, name) for name, preset in MOVES.items()], value=DEFAULTS["camera"],
            label="Start from", elem_id="camera",
        )  # fmt: skip
        amount = page.controls["amount"] = gr.Slider(
            **amount_slider(DEFAULTS["camera"]), step=1, buttons=[], elem_id="amount"
        )
        warp = widgets.loop_view("Your clip from the new path", EMPTY_WARP, elem_id="warp", elem_classes=["rc-warp"])
        status = gr.HTML(widgets.status_html(""), elem_id="warp-status")
        with gr.Accordion(
            "A path from a file, or of another clip", open=False, elem_classes="rc-advanced", elem_id="open-path"
        ):
            formats = "; ".join((*(label for label, _ in FORMATS.values()), *READ_ALONE))
            gr.HTML(f'<p class="rc-caption">{escape(formats)}.</p>')
            file = gr.File(
                label="Camera path", file_types=SUFFIXES, type="filepath", height=120,
                elem_id="camera-file",
            )  # fmt: skip
            with gr.Row(elem_classes="rc-fields"):
                name = gr.Dropdown([], label="Camera in the file", min_width=130, interactive=True)
                unit = gr.Textbox(
                    label="Units to the subject", placeholder="As the file says", max_length=20, min_width=130
                )
                scale = gr.Textbox(
                    label="Times as far", placeholder="1", max_length=20, min_width=130, elem_id="camera-scale"
                )
            other_clip = gr.UploadButton(
                "Move as the camera of another clip", file_types=["video"], size="sm", elem_id="camera-clip"
            )
        with gr.Accordion("Stabilise", open=False, elem_classes="rc-advanced", elem_id="stabilise"):
            gr.HTML('<p class="rc-caption">The clip\'s own camera path, smoothed. What is lacking is filled in.</p>')
            seconds = gr.Slider(0.1, 5.0, value=1.0, step=0.1, label="Smoothed over, in seconds", buttons=[])
            steady = gr.Button("Smooth the path", size="sm", elem_id="stabilise-go")
        look = gr.Button("Look at the object that is followed", size="sm", elem_id="look-at")
        # what is said of a path from elsewhere stays, while the warp says its own
        said = gr.HTML("", elem_id="camera-said")
    with gr.Column(min_width=320, scale=3):
        # the path lives in the page, so that whatever is asked for next has the latest
        editor = page.controls["move"] = widgets.camera_editor(EMPTY_CLOUD, elem_id="editor", elem_classes="rc-editor")
    return CameraTab(
        camera, amount, warp, status, file, name, unit, scale, other_clip, seconds, steady, look, said, editor
    )


@dataclass(frozen=True, eq=False)
class Warping:
    """The handlers."""

    page: Page
    tab: CameraTab

    def failed(self, error: Exception) -> dict[Any, Any]:
        return {self.tab.status: widgets.status_html(widgets.failure_words(error), "error")}

    def show(self, known, *values):
        """The clip along the chosen path; uses the analysis that is at hand."""
        tab, page = self.tab, self.page
        if known is None:  # no clip, or its analysis failed and says so beside it
            yield {tab.status: widgets.status_html("")}
            return
        try:
            request = page.warp_request(values)
        except InputError:  # a setting is wrong, and its message stands already
            yield {tab.status: gr.skip()}
            return
        try:
            say = lambda event: {tab.status: widgets.status_html(f"{event.message} …", "busy")}
            analysis = page.analyses.get(request) or (yield from relayed(page.analyses.find(request), say))
            analysis = page.analyses.hidden(request, analysis)
            measurement = measure(analysis, request)
            unknown = 1 - measurement.mask.float().mean(dim=(1, 2, 3))
            file = page.store.new_folder() / "warp.webp"
            file.write_bytes(media.loop_webp(to_uint8(show_holes(measurement)), analysis.fps))
            warnings = "".join(
                widgets.status_html(words, "warning")
                for words in path_warnings(retimed(analysis, request), request, 1 - unknown)
            )
            words = widgets.status_html(
                share_words(unknown.mean().item(), wants_other_frames(analysis, request, measurement))
            )
            yield {
                tab.warp: {"url": widgets.file_url(file), "alt": "Your clip from the new path; unknown is checkered"},
                tab.status: words + widgets.unknown_strip(unknown.tolist()) + warnings,
            }
        except Exception as error:
            yield self.failed(error) | {tab.warp: {"empty": EMPTY_WARP}}

    def show_named(self, known, *values):
        """The path of the named move, in place of the visitor's own."""
        given = self.page.given(values)
        standing = given["move"] or {"empty": EMPTY_CLOUD}
        given["move"] = editor_value(standing, None, own=False)
        try:
            request = self.page.camera_request(tuple(given.values()))
            analysis = self.page.analyses.get(request)
            if known is not None and analysis is not None:
                given["move"] = editor_value(standing, move_of(request, analysis), own=False)
        except InputError:  # no clip yet, or a setting is wrong, and its message stands already
            pass
        yield {self.tab.editor: given["move"]}
        yield from self.show(known, *given.values())

    def show_edited(self, event: gr.EventData, known, *values):
        """The visitor's own path: one frame of the warp at once, then all of it."""
        page = self.page
        try:
            request = page.warp_request(values)
            analysis = page.analyses.get(request)
            if known is not None and analysis is not None:
                picture = preview(page.analyses.hidden(request, analysis), request, float(event.at))
                shown = {"url": media.picture_url(picture), "alt": "One frame of your clip from the new path"}
                yield {self.tab.warp: shown}
        except (InputError, TypeError, ValueError) as error:
            yield self.failed(error)
            return
        yield from self.show(known, *values)

    def save(self, event: gr.EventData, known, *values):
        """The camera path as a file that the page downloads."""
        try:
            request = self.page.camera_request(values)
            analysis = self.page.analyses.get(request)
            standing = self.page.given(values)["move"]
            if known is None or standing is None or analysis is None:
                raise InputError("Analyse the clip again first: its frames decide how many cameras are written.")
            name = str(event.format)
            content = write_move(
                name, move_of(request, analysis), frames=len(analysis.clip.frames),
                own_fov=fov_of(analysis.source, size_of(analysis.clip.frames)), size=size_of(analysis.full.frames),
            )  # fmt: skip
            file = self.page.store.new_folder() / f"camera-path-{name}{FORMATS[name][1]}"
            file.write_bytes(content)
            return standing | {"download": widgets.file_url(file)}, gr.skip()
        except Exception as error:
            return gr.skip(), widgets.status_html(widgets.failure_words(error), "error")

    def open(self, file, name, unit, scale, standing):
        """The move in a file: the names in it, and the path for the editor."""
        tab = self.tab
        if not file:
            return {tab.file_name: gr.Dropdown([], value=None)}
        try:
            moves = read_moves(file, unit=number_from(unit, "Units to the subject", float) if unit else None)
            name = name if name in moves else next(iter(moves))
            move = scaled(moves[name], scale_from(scale))
            return {
                tab.editor: editor_value(standing or {"empty": EMPTY_CLOUD}, move, own=True),
                tab.file_name: gr.Dropdown(list(moves), value=name),
                tab.said: widgets.status_html(move.origin, "done") if move.origin else "",
            }
        except Exception as error:
            return {tab.said: widgets.status_html(widgets.failure_words(error), "error")}

    def open_clip(self, clip, scale, *values):
        """The move of another clip's camera, for the editor."""
        tab, page = self.tab, self.page
        try:
            yield {tab.said: widgets.status_html("Reading the other clip …", "busy")}
            own = page.camera_request(values)
            kept = {name: getattr(own, name) for name in ("frames", "depth_model", "accepted", "memory")}
            request = RenderRequest.of(clip, **kept, backbone=own.backbone, camera="still")
            say = lambda event: {tab.said: widgets.status_html(f"{event.message} …", "busy")}
            move = yield from relayed(move_of_clip(request, page.analyses.find(request)), say)
            move = scaled(move, scale_from(scale))
            yield {
                tab.editor: editor_value(page.given(values)["move"] or {"empty": EMPTY_CLOUD}, move, own=True),
                tab.said: widgets.status_html(move.origin, "done"),
            }
        except Exception as error:
            yield {tab.said: widgets.status_html(widgets.failure_words(error), "error")}

    def stabilise(self, seconds, *values):
        """The clip's own path, smoothed, for the editor."""
        tab, page = self.tab, self.page
        try:
            yield {tab.said: widgets.status_html("Finding how the camera moves …", "busy")}
            move = stabilised(page.analysis_at_hand(values), float(seconds))
            yield {
                tab.editor: editor_value(page.given(values)["move"] or {"empty": EMPTY_CLOUD}, move, own=True),
                tab.said: widgets.status_html(move.origin, "done"),
            }
        except Exception as error:
            yield {tab.said: widgets.status_html(widgets.failure_words(error), "error")}

    def look_at(self, *values):
        """The path as it stands, with the camera looking at the object of the mask, for the editor."""
        tab, page = self.tab, self.page
        try:
            analysis, mask = page.analysis_at_hand(values), page.given(values)["mask"]
            if mask is None or tuple(mask["of"]) != page.frames_of(values):
                raise InputError("Follow an object first, on the tab Replace an object; it stays as it is.")
            request = page.camera_request(values)
            frames = read_mask(mask["path"], analysis, start=request.start, stride=request.stride)
            seen = torch.stack([frames[t] for t in sorted(frames)])
            move = looking_at(move_of(request, analysis), analysis, seen)
            yield {
                tab.editor: editor_value(page.given(values)["move"] or {"empty": EMPTY_CLOUD}, move, own=True),
                tab.said: widgets.status_html(move.origin, "done"),
            }
        except Exception as error:
            yield {tab.said: widgets.status_html(widgets.failure_words(error), "error")}


def connect(page: Page, tab: CameraTab) -> Any:
    """Let the tab work. Returns what chains the warp to an event."""
    handlers = Warping(page, tab)
    known, shown = [page.shown, *page.inputs], [tab.warp, tab.status]
    then_warp = lambda event: event.then(handlers.show, known, shown, **QUIET)
    named = known, [tab.editor, *shown]
    slid = tab.camera.input(lambda name: gr.Slider(**amount_slider(name)), tab.camera, tab.amount, **QUIET)
    slid.then(handlers.show_named, *named, **QUIET)
    tab.amount.input(handlers.show_named, *named, **LATEST)
    tab.editor.reset(handlers.show_named, *named, **QUIET)
    page.controls["change"].input(handlers.show, known, shown, **LATEST)
    tab.editor.edit(handlers.show_edited, known, shown, **LATEST)
    tab.editor.save(handlers.save, known, [tab.editor, tab.status], **QUIET)
    opened = [tab.file, tab.file_name, tab.file_unit, tab.scale, tab.editor], [tab.editor, tab.file_name, tab.said]
    for trigger in (tab.file.upload, tab.file_name.input, tab.file_unit.submit, tab.scale.submit):
        then_warp(trigger(handlers.open, *opened, **QUIET))
    of_clip = [tab.other_clip, tab.scale, *page.inputs], [tab.editor, tab.said]
    then_warp(tab.other_clip.upload(handlers.open_clip, *of_clip, **QUIET))
    then_warp(tab.steady.click(handlers.stabilise, [tab.seconds, *page.inputs], of_clip[1], **QUIET))
    then_warp(tab.look.click(handlers.look_at, page.inputs, of_clip[1], **QUIET))
    return then_warp


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
