"""Marking an object by clicks or a brush: what the pictures show and say, and the mask over the clip.

Masks here: True is the object. They are as large as the part of the clip that is used, at its full resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import torch

from pipeline import InputError, relayed
from pipeline.masks.click import select
from pipeline.masks.follow import follow
from pipeline.masks.shape import Click, grow
from pipeline.media.video import read_paint, resize, size_of, to_uint8
from pipeline.render.analysis import Analysis, read_mask
from ui import media, widgets
from ui.page import LATEST, QUIET, Page

EMPTY = "The object, followed through your clip, appears here."
COLOUR = (255, 45, 85)
OPACITY = 0.6
MAX_SIDE = 832  # pixels of the picture that is painted or clicked on
ENLARGED = 4.0  # how much a small one is enlarged to be clicked on, at most
SUFFIXES = [
    ".npz", ".npy", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".mp4", ".mov", ".webm", ".mkv", ".avi",
]  # fmt: skip
LOADING = "The picture to mark the object on comes when the clip is analysed …"
DOTS = {True: (40, 200, 90), False: (255, 255, 255)}  # of clicks that add and that take away


def mask_editor(**options: Any) -> gr.ImageEditor:
    """A picture to paint over in one translucent colour, with an eraser, undo, and a brush of any size."""
    colour = f"rgb({COLOUR[0]}, {COLOUR[1]}, {COLOUR[2]})"
    editor = gr.ImageEditor(
        type="numpy", sources=(), transforms=(), layers=False, format="png", show_label=False, buttons=[],
        brush=gr.Brush(default_size=24, colors=[(colour, OPACITY)], color_mode="fixed"),
        eraser=gr.Eraser(default_size=24), interactive=True, **options,
    )  # fmt: skip

    def layers_of(payload: Any) -> dict[str, Any] | None:
        """The layers as they come, bytes or files: Gradio would decode them in this process."""
        if payload is None:
            return None
        sent = editor.blob_storage.pop(payload.id, None) if payload.id is not None else payload
        layers = [] if sent is None else [getattr(layer, "path", layer) for layer in sent.layers or ()]
        return {"layers": [layer for layer in layers if layer is not None]}

    widgets.takes(editor, layers_of)
    return editor


def editor_value(analysis: Analysis, frame: int, mask: np.ndarray | None) -> dict[str, Any]:
    """A frame of the clip, and the mask that it has (H W, or None) as paint on it."""
    size = _shown_size(analysis)
    picture = to_uint8(resize(analysis.full.frames[frame : frame + 1], size).clamp(0, 1))[0]
    layers = []
    if mask is not None and mask.any():
        shown = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_AREA) > 0
        layer = np.zeros((*size, 4), np.uint8)
        layer[shown] = (*COLOUR, round(255 * OPACITY))
        layers.append(layer)
    return {"background": picture, "layers": layers, "composite": None}


def clicked_picture(analysis: Analysis, clicks: Clicks, mask: np.ndarray | None) -> np.ndarray:
    """A frame of the clip with a mask H W in red and outlined, and a dot for each click: uint8 h w 3."""
    height, width = size = _shown_size(analysis, ENLARGED)
    frame = to_uint8(resize(analysis.full.frames[clicks.frame : clicks.frame + 1], size).clamp(0, 1))[0]
    shown = np.ascontiguousarray(_tinted(frame, np.zeros(size, bool) if mask is None else mask))
    for click in clicks.made:
        full = analysis.full.frames.shape
        at = (click.column * width // full[3], click.row * height // full[2])
        radius = max(4, max(size) // 120)
        cv2.circle(shown, at, radius + 2, (20, 20, 20), -1, cv2.LINE_AA)
        cv2.circle(shown, at, radius, DOTS[click.positive], -1, cv2.LINE_AA)
    return shown


def painted(value: dict[str, Any] | None, analysis: Analysis) -> np.ndarray:
    """Where there is paint in the editor's value: H W, all False if there is none."""
    height, width = size_of(analysis.full.frames)
    layers = (value or {}).get("layers") or []
    marks = [layer[..., 3] > 0 if isinstance(layer, np.ndarray) else read_paint(layer) for layer in layers]
    if not marks:
        return np.zeros((height, width), bool)
    enlarged = lambda mark: cv2.resize(mark.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return np.logical_or.reduce([enlarged(mark) for mark in marks])


def overlay(analysis: Analysis, mask: np.ndarray) -> np.ndarray:
    """The clip with the mask T H W on it in colour and outlined, uint8 T h w 3 at working size."""
    frames = to_uint8(analysis.clip.frames)
    return np.stack([_tinted(frame, hidden) for frame, hidden in zip(frames, mask, strict=True)])


def _tinted(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame uint8 h w 3 with a mask of any size on it."""
    small = cv2.resize(mask.astype(np.uint8), (frame.shape[1], frame.shape[0]), interpolation=cv2.INTER_AREA)
    shown = np.where(small[..., None] > 0, 0.5 * frame + 0.5 * np.array(COLOUR, np.float32), frame).astype(np.uint8)
    outline, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(shown), outline, -1, (255, 255, 255), 1)


def write_mask(path: Path, mask: np.ndarray, analysis: Analysis) -> Path:
    """A mask T H W as a file that `masks.files.load_mask` reads: as large as the whole picture of the clip."""
    height, width = mask.shape[1:]
    whole = np.zeros((len(mask), analysis.info.height, analysis.info.width), bool)
    top, left = (analysis.info.height - height) // 2, (analysis.info.width - width) // 2
    whole[:, top : top + height, left : left + width] = mask
    np.savez_compressed(path, mask=whole)
    return path


def _shown_size(analysis: Analysis, most: float = 1.0) -> tuple[int, int]:
    height, width = size_of(analysis.full.frames)
    scale = min(most, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks on a frame of the clip (from 0), in pixels of its full size. base: the mask H W that they correct."""

    frame: int = 0
    base: np.ndarray | None = None
    made: tuple[Click, ...] = ()


@dataclass(frozen=True, eq=False)
class ReplaceTab:
    """The parts of the tab; `controls` by their names in a RenderRequest. The mask among them is None, or
    {"path": of an npz with the whole clip's mask, "of": which frames it belongs to}."""

    controls: dict[str, Any]
    how: gr.Radio
    picture: gr.Image
    adds: gr.Radio
    undo: gr.Button
    editor: gr.ImageEditor
    frame: gr.Slider
    follow: gr.Button
    clear: gr.Button
    view: gr.HTML
    status: gr.HTML
    shown: gr.Checkbox
    file: gr.File
    painted: gr.State  # {frame: H W bool} of what the visitor painted
    editing: gr.State  # the frame in the editor, from 0
    clicks: gr.State  # Clicks on that frame


def replace_tab(grow: float) -> ReplaceTab:
    """The tab where the visitor says what is to be replaced. grow: percent, to begin with."""
    controls: dict[str, Any] = {"mask": gr.State(None)}
    with gr.Row(elem_classes="rc-camera"):
        with gr.Column(min_width=320, scale=3):
            gr.HTML(
                '<p class="rc-caption">Click on the object: it turns red, and what is red will be replaced. Click '
                "again on what is missing, or take away what is too much. Then follow it through the clip, and correct "
                "any frame where that went wrong.</p>"
            )
            how = gr.Radio(
                [("Click", "click"), ("Paint", "paint")], value="click", show_label=False, container=False,
                elem_id="mask-how",
            )  # fmt: skip
            with gr.Column(elem_id="mask-by-click") as by_click:
                picture = gr.Image(
                    type="filepath", interactive=False, show_label=False, buttons=[], height=430, format="png",
                    elem_id="mask-picture",
                )  # fmt: skip
                with gr.Row(elem_classes="rc-clicks"):
                    adds = gr.Radio(
                        [("Add", True), ("Take away", False)], value=True, show_label=False,
                        container=False, elem_id="mask-adds", scale=3,
                    )  # fmt: skip
                    undo = gr.Button("Undo click", size="sm", elem_id="mask-undo", scale=1)
            with gr.Column(elem_id="mask-by-brush", visible=False) as by_brush:
                editor = mask_editor(elem_id="paint", elem_classes="rc-paint", height=430)
            how.change(
                lambda chosen: [gr.Column(visible=chosen == "click"), gr.Column(visible=chosen == "paint")],
                how, [by_click, by_brush], **QUIET,
            )  # fmt: skip
            frame = gr.Slider(1, 2, value=1, step=1, label="Frame", buttons=[], elem_id="paint-frame")
            with gr.Row(elem_classes=["rc-buttons", "rc-paint-buttons"]):
                follow = gr.Button("Follow through the clip", variant="primary", elem_id="paint-follow", scale=3)
                clear = gr.Button("Clear", elem_id="paint-clear", scale=1)
        with gr.Column(min_width=300, scale=2):
            view = widgets.loop_view("What is replaced, in red", EMPTY, elem_id="mask", elem_classes=["rc-mask"])
            shown = gr.Checkbox(value=True, label="Show the mask", elem_id="mask-shown")
            status = gr.HTML(widgets.status_html(""), elem_id="mask-status")
            controls["remove"] = gr.Radio(
                [("What the prompt says", False), ("Nothing: remove it", True)], value=False, label="Put in its place",
                info="Shadows and reflections stay where they are not painted over too.", elem_id="remove",
            )  # fmt: skip
            controls["grow"] = gr.Slider(
                -5, 15, value=grow, step=0.5, buttons=[], elem_id="grow",
                label="Widen the mask, in percent of the picture's shorter side",
            )  # fmt: skip
            controls["invert"] = gr.Checkbox(
                value=False, label="Invert: replace everything but what is painted", elem_id="invert"
            )
            with gr.Accordion("Files of your own", open=False, elem_classes="rc-advanced", elem_id="replace-files"):
                file = gr.File(
                    label="Mask, the object in white: picture, video or npz", file_types=SUFFIXES, type="filepath",
                    height=120, elem_id="mask-file",
                )  # fmt: skip
                controls["first_frame"] = gr.Image(
                    label="What the first frame is to show", type="filepath", sources=["upload"], height=160,
                    elem_id="first-frame",
                )  # fmt: skip
                widgets.takes(controls["first_frame"], lambda payload: None if payload is None else payload.path)
    states = (gr.State({}), gr.State(0), gr.State(Clicks()))
    return ReplaceTab(
        controls, how, picture, adds, undo, editor, frame, follow, clear, view, status, shown, file, *states
    )


def mask_words(mask: np.ndarray) -> str:
    """How much a mask T H W hides, in a sentence."""
    without = int((~mask.any(axis=(1, 2))).sum())
    absent = f"; in {without} of {len(mask)} frames nothing" if without else ""
    return f"{100 * mask.mean():.1f} % of the clip will be replaced{absent}. Correct any frame, and follow again."


@dataclass(frozen=True, eq=False)
class Painting:
    """The handlers. What they are given of all controls is called `values`."""

    page: Page
    tab: ReplaceTab

    @property
    def outputs(self) -> list[Any]:
        tab, controls = self.tab, self.page.controls
        return [
            tab.picture, tab.editor, tab.frame, tab.editing, tab.clicks, tab.painted, tab.view, tab.status, tab.shown,
            controls["mask"], controls["change"],
        ]  # fmt: skip

    @property
    def nothing(self) -> dict[Any, Any]:
        """The tab without a mask."""
        return {self.tab.painted: {}, self.tab.view: {"empty": EMPTY}, self.tab.status: widgets.status_html("")}

    def followed(self, values: tuple, analysis: Analysis) -> np.ndarray | None:
        """The mask T H W as it was followed, if there is one of these frames."""
        mask = self.page.given(values)["mask"]
        if mask is None or tuple(mask["of"]) != self.page.frames_of(values):
            return None
        _, start, stride, *_ = mask["of"]
        frames = read_mask(mask["path"], analysis, start=start, stride=stride)
        return (
            np.stack([frames[t].numpy() for t in sorted(frames)]) if len(frames) == len(analysis.clip.frames) else None
        )

    def canvas(self, how: str, analysis: Analysis, frame: int, mask: np.ndarray | None) -> dict[Any, Any]:
        """A frame to mark the object on, with the mask H W that it has."""
        clicks = Clicks(frame, mask)
        update = {self.tab.editing: frame, self.tab.clicks: clicks}
        if how == "click":
            return update | {self.tab.picture: self.drawn(clicked_picture(analysis, clicks, mask))}
        return update | {self.tab.editor: editor_value(analysis, frame, mask)}

    def drawn(self, picture: np.ndarray) -> str:
        """A picture for the page as a file of the visitor's."""
        path = self.page.store.new_folder() / "frame.webp"
        cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 90])
        return str(path)

    def with_paint(self, how, value, frame: int, paint: dict, mask: np.ndarray | None, analysis: Analysis) -> dict:
        """What the visitor has marked, with what is new in the editor."""
        if how == "click":
            return paint
        before = paint.get(frame, None if mask is None else mask[frame])
        stood = painted(editor_value(analysis, frame, before), analysis)
        marks = painted(value, analysis)
        return paint if np.mean(stood != marks) < 2e-4 else paint | {frame: marks}

    def show(self, mask: np.ndarray, values: tuple, analysis: Analysis) -> dict[Any, Any]:
        """The view of a mask that was followed, and what it means."""
        wanted = self.page.given(values)
        mask = ~mask if wanted["invert"] else mask
        mask = grow(torch.from_numpy(mask), round(float(wanted["grow"]) / 100 * min(mask.shape[1:]))).numpy()
        folder, value = self.page.store.new_folder(), {"alt": "Your clip with the mask in red"}
        for name, frames in (("mask", overlay(analysis, mask)), ("clip", to_uint8(analysis.clip.frames))):
            (folder / f"{name}.webp").write_bytes(media.loop_webp(frames, analysis.fps))
            value[name] = widgets.file_url(folder / f"{name}.webp")
        return {
            self.tab.view: value | {"url": value["mask"]},
            self.tab.shown: True,
            self.tab.status: widgets.status_html(mask_words(mask), "done"),
        }

    def failed(self, error: Exception) -> dict[Any, Any]:
        return {self.tab.status: widgets.status_html(widgets.failure_words(error), "error")}

    def loading(self, *values):
        """Until its picture comes the editor is empty, and asks for strokes."""
        try:
            self.page.analysis_at_hand(values)
            return gr.skip()
        except InputError:
            return widgets.status_html(LOADING if self.page.given(values)["clip"] else "", "busy")

    def start(self, how, *values):
        """The first frame of a clip; a mask of these very frames is shown.

        The mask itself is left alone: what is followed here may be an older clip than the one that brought it.
        """
        try:
            analysis = self.page.analysis_at_hand(values)
        except InputError:
            empty = {self.tab.editor: None, self.tab.picture: None}
            return self.nothing | empty | {self.tab.editing: 0, self.tab.clicks: Clicks()}
        mask, frames = self.followed(values, analysis), 1 if analysis.info.still else len(analysis.clip.frames)
        update = {
            self.tab.frame: gr.Slider(minimum=1, maximum=max(2, frames), value=1, interactive=frames > 1),
            self.tab.painted: {},
        } | self.canvas(how, analysis, 0, None if mask is None else mask[0])
        if mask is not None:
            return update | self.show(mask, values, analysis)
        return self.nothing | update

    def show_frame(self, number, how, value, editing, paint, *values):
        """Another frame; what was painted on the last one is kept."""
        try:
            analysis = self.page.analysis_at_hand(values)
            mask = self.followed(values, analysis)
            paint = self.with_paint(how, value, editing, paint, mask, analysis)
            frame = min(max(int(number) - 1, 0), len(analysis.clip.frames) - 1)
            shown = paint.get(frame, None if mask is None else mask[frame])
            return self.canvas(how, analysis, frame, shown) | {self.tab.painted: paint}
        except Exception as error:
            return self.failed(error)

    def change_how(self, how, value, editing, paint, *values):
        """The same frame to click on or to paint on."""
        try:
            analysis = self.page.analysis_at_hand(values)
            mask = self.followed(values, analysis)
            paint = self.with_paint("paint" if how == "click" else "click", value, editing, paint, mask, analysis)
            shown = paint.get(editing, None if mask is None else mask[editing])
            return self.canvas(how, analysis, editing, shown) | {self.tab.painted: paint}
        except InputError:
            return {self.tab.status: gr.skip()}  # no clip yet
        except Exception as error:
            return self.failed(error)

    def click(self, event: gr.SelectData, adds, clicks: Clicks, paint, *values):
        """A click on the picture: the object that it is on, or that it is not."""
        try:
            analysis = self.page.analysis_at_hand(values)
            height, width = size_of(analysis.full.frames)
            shown_height, shown_width = _shown_size(analysis, ENLARGED)
            column, row = (float(at) + 0.5 for at in event.index)
            at = Click(
                min(max(int(row * height / shown_height), 0), height - 1),
                min(max(int(column * width / shown_width), 0), width - 1),
                adds,
            )
            return self.clicked(replace(clicks, made=(*clicks.made, at)), paint, analysis)
        except Exception as error:
            return self.failed(error)

    def undo_click(self, clicks: Clicks, paint, *values):
        """Without the last click."""
        try:
            if not clicks.made:
                raise InputError("There is no click to undo on this frame.")
            return self.clicked(replace(clicks, made=clicks.made[:-1]), paint, self.page.analysis_at_hand(values))
        except Exception as error:
            return self.failed(error)

    def clicked(self, clicks: Clicks, paint: dict, analysis: Analysis) -> dict[Any, Any]:
        """The mask of these clicks."""
        mask = clicks.base
        if clicks.made:
            base = None if mask is None else torch.from_numpy(mask)
            mask = select(analysis.full.frames[clicks.frame], clicks.made, base).numpy()
        left = {frame: marks for frame, marks in paint.items() if frame != clicks.frame}
        words = "Click again on what is missing, or take away what is too much; then follow it through the clip."
        return {
            self.tab.picture: self.drawn(clicked_picture(analysis, clicks, mask)),
            self.tab.clicks: clicks,
            self.tab.painted: left if mask is None else left | {clicks.frame: mask},
            self.tab.status: widgets.status_html(words if clicks.made else ""),
        }

    def follow_from(self, paint: dict[int, np.ndarray], values: tuple, analysis: Analysis):
        yield {self.tab.status: widgets.status_html("Following the object …", "busy", 0.0)}
        masks = {frame: torch.from_numpy(mask) for frame, mask in paint.items()}
        if analysis.info.still:
            masks = dict.fromkeys(range(len(analysis.full.frames)), masks[min(masks)])
        say = lambda done: {
            self.tab.status: widgets.status_html(
                f"Following the object: frame {done[0]} of {done[1]}", "busy", done[0] / done[1]
            )
        }
        found = (yield from relayed(follow(analysis.full.frames, masks), say)).numpy()
        path = write_mask(self.page.store.new_folder() / "mask.npz", found, analysis)
        mask = {"path": str(path), "of": self.page.frames_of(values)}
        change = {self.page.controls["change"]: "object"} if self.page.given(values)["change"] == "camera" else {}
        yield {self.page.controls["mask"]: mask} | change | self.show(found, values, analysis)

    def follow_object(self, how, value, editing, paint, *values):
        """The object through the whole clip, from the frames that it was marked on."""
        try:
            analysis = self.page.analysis_at_hand(values)
            paint = self.with_paint(how, value, editing, paint, self.followed(values, analysis), analysis)
            if not any(mask.any() for mask in paint.values()):
                raise InputError("Click on the object first, or paint over it, on any frame.")
            yield from self.follow_from(paint, values, analysis)
            yield {self.tab.painted: paint}
        except Exception as error:
            yield self.failed(error)

    def open_mask(self, file, how, *values):
        """A mask of the visitor's own, followed where it does not show all frames."""
        try:
            if not file:
                yield {self.tab.status: gr.skip()}
                return
            analysis = self.page.analysis_at_hand(values)
            _, start, stride, *_ = self.page.frames_of(values)
            paint = {f: mask.numpy() for f, mask in read_mask(file, analysis, start=start, stride=stride).items()}
            yield from self.follow_from(paint, values, analysis)
            first = min(paint)
            yield {
                self.tab.frame: first + 1,
                self.tab.painted: paint if len(paint) < len(analysis.clip.frames) else {},
            } | self.canvas(how, analysis, first, paint[first])
        except Exception as error:
            yield self.failed(error)

    def clear_mask(self, how, editing, *values):
        update = self.nothing | {self.page.controls["mask"]: None, self.page.controls["change"]: "camera"}
        try:
            return update | self.canvas(how, self.page.analysis_at_hand(values), editing, None)
        except InputError:
            return update

    def refresh(self, *values):
        """The same mask, widened or inverted otherwise."""
        try:
            analysis = self.page.analysis_at_hand(values)
            mask = self.followed(values, analysis)
            return {self.tab.status: gr.skip()} if mask is None else self.show(mask, values, analysis)
        except Exception as error:
            return self.failed(error)

    def mask_or_clip(self, shown, value):
        return value | {"url": value["mask" if shown else "clip"]} if value and "mask" in value else gr.skip()


def connect(page: Page, tab: ReplaceTab) -> Callable[[Any], Any]:
    """Let the tab work. Returns a function that chains to an event: a new clip to paint on."""
    handlers = Painting(page, tab)
    inputs, outputs = page.inputs, handlers.outputs
    painting = [tab.how, tab.editor, tab.editing, tab.painted, *inputs]
    clicking = [tab.clicks, tab.painted, *inputs]
    tab.picture.select(handlers.click, [tab.adds, *clicking], outputs, **QUIET)
    tab.undo.click(handlers.undo_click, clicking, outputs, **QUIET)
    tab.how.change(handlers.change_how, painting, outputs, **QUIET)
    tab.frame.release(handlers.show_frame, [tab.frame, *painting], outputs, **LATEST)
    tab.follow.click(handlers.follow_object, painting, outputs, **QUIET, concurrency_limit=1)
    tab.clear.click(handlers.clear_mask, [tab.how, tab.editing, *inputs], outputs, **QUIET)
    tab.file.upload(handlers.open_mask, [tab.file, tab.how, *inputs], outputs, **QUIET, concurrency_limit=1)
    tab.shown.input(handlers.mask_or_clip, [tab.shown, tab.view], tab.view, **QUIET)
    for changed in (page.controls["grow"].release, page.controls["invert"].input):
        changed(handlers.refresh, inputs, outputs, **LATEST)
    page.controls["clip"].change(handlers.loading, inputs, tab.status, **QUIET)
    return lambda event: event.then(handlers.start, [tab.how, *inputs], outputs, **QUIET)
