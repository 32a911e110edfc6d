"""Painting over an object: what the picture editor shows and says, and the mask over the clip.

Masks here: True is the object. They are as large as the part of the clip that is used, at its full resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import torch

from pipeline import InputError, relayed
from pipeline.masks.follow import follow
from pipeline.masks.shape import complete, grow
from pipeline.media.video import resize, size_of, to_uint8
from pipeline.render.analysis import Analysis, read_mask
from ui import media, widgets

EMPTY = "The object, followed through your clip, appears here."
COLOUR = (255, 45, 85)
OPACITY = 0.6
MAX_SIDE = 832  # pixels of the picture that is painted on
SUFFIXES = [".npz", ".npy", ".png", ".jpg", ".jpeg", ".webp", ".mp4", ".mov", ".webm"]


def mask_editor(**options: Any) -> gr.ImageEditor:
    """A picture to paint over in one translucent colour, with an eraser, undo, and a brush of any size."""
    colour = f"rgb({COLOUR[0]}, {COLOUR[1]}, {COLOUR[2]})"
    return gr.ImageEditor(
        type="numpy", sources=(), transforms=(), layers=False, format="png", show_label=False, buttons=[],
        brush=gr.Brush(default_size=24, colors=[(colour, OPACITY)], color_mode="fixed"),
        eraser=gr.Eraser(default_size=24), interactive=True, **options,
    )  # fmt: skip


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


def painted(value: dict[str, Any] | None, analysis: Analysis) -> np.ndarray:
    """Where there is paint in the editor's value: H W, all False if there is none."""
    height, width = size_of(analysis.full.frames)
    layers = (value or {}).get("layers") or []
    marks = [np.asarray(layer)[..., 3] > 0 for layer in layers if layer is not None]
    if not marks:
        return np.zeros((height, width), bool)
    marked = np.logical_or.reduce(marks).astype(np.uint8)
    return cv2.resize(marked, (width, height), interpolation=cv2.INTER_NEAREST) > 0


def overlay(analysis: Analysis, mask: np.ndarray) -> np.ndarray:
    """The clip with the mask T H W on it in colour and outlined, uint8 T h w 3 at working size."""
    size = size_of(analysis.clip.frames)
    frames = to_uint8(analysis.clip.frames)
    tinted = []
    for frame, hidden in zip(frames, mask, strict=True):
        small = cv2.resize(hidden.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_AREA)
        colour = np.array(COLOUR, np.float32)
        shown = np.where(small[..., None] > 0, 0.5 * frame + 0.5 * colour, frame).astype(np.uint8)
        outline, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        tinted.append(cv2.drawContours(np.ascontiguousarray(shown), outline, -1, (255, 255, 255), 1))
    return np.stack(tinted)


def write_mask(path: Path, mask: np.ndarray, analysis: Analysis) -> Path:
    """A mask T H W as a file that `segment.load_mask` reads: as large as the whole picture of the clip."""
    height, width = mask.shape[1:]
    whole = np.zeros((len(mask), analysis.info.height, analysis.info.width), bool)
    top, left = (analysis.info.height - height) // 2, (analysis.info.width - width) // 2
    whole[:, top : top + height, left : left + width] = mask
    np.savez_compressed(path, mask=whole)
    return path


def _shown_size(analysis: Analysis) -> tuple[int, int]:
    height, width = size_of(analysis.full.frames)
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, eq=False)
class ReplaceTab:
    """The parts of the tab; `controls` by their names in a RenderRequest. The mask among them is None, or
    {"path": of an npz with the whole clip's mask, "of": which frames it belongs to}."""

    controls: dict[str, Any]
    editor: gr.ImageEditor
    frame: gr.Slider
    complete: gr.Button
    follow: gr.Button
    clear: gr.Button
    view: gr.HTML
    status: gr.HTML
    shown: gr.Checkbox
    file: gr.File
    painted: gr.State  # {frame: H W bool} of what the visitor painted
    editing: gr.State  # the frame in the editor, from 0


def replace_tab(grow: float) -> ReplaceTab:
    """The tab where the visitor says what is to be replaced. grow: percent, to begin with."""
    controls: dict[str, Any] = {"mask": gr.State(None)}
    with gr.Row(elem_classes="rc-camera"):
        with gr.Column(min_width=320, scale=3):
            gr.HTML(
                '<p class="rc-caption">Paint over the object on one frame, or mark it with a dot and press Complete. '
                "What is red will be replaced. Then follow it through the clip, and correct any frame where that went "
                "wrong.</p>"
            )
            editor = mask_editor(elem_id="paint", elem_classes="rc-paint", height=430)
            frame = gr.Slider(1, 2, value=1, step=1, label="Frame", buttons=[], elem_id="paint-frame")
            with gr.Row(elem_classes=["rc-buttons", "rc-paint-buttons"]):
                follow = gr.Button("Follow through the clip", variant="primary", elem_id="paint-follow", scale=3)
                complete = gr.Button("Complete", elem_id="paint-complete", scale=1)
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
    return ReplaceTab(
        controls, editor, frame, complete, follow, clear, view, status, shown, file, gr.State({}), gr.State(0)
    )


def mask_words(mask: np.ndarray) -> str:
    """How much a mask T H W hides, in a sentence."""
    without = int((~mask.any(axis=(1, 2))).sum())
    absent = f"; in {without} of {len(mask)} frames nothing" if without else ""
    return f"{100 * mask.mean():.1f} % of the clip will be replaced{absent}. Correct any frame, and follow again."


def connect(
    tab: ReplaceTab,
    controls: dict[str, Any],
    analysis_of: Callable[[tuple], Analysis],
    frames_of: Callable[[tuple], tuple],
    new_folder: Callable[[], Path],
) -> Callable[[Any], Any]:
    """Let the tab work. Returns a function that chains to an event: a new clip to paint on.

    controls: of the whole page; `values` below are theirs, in that order. analysis_of, frames_of: the analysis of the
    clip and what a mask of it belongs to, raising `InputError` where there is none.
    """
    inputs = list(controls.values())
    outputs = [
        tab.editor, tab.frame, tab.editing, tab.painted, tab.view, tab.status, tab.shown, controls["mask"],
        controls["change"],
    ]  # fmt: skip
    nothing = {tab.painted: {}, tab.view: {"empty": EMPTY}, tab.status: widgets.status_html("")}

    def given(values: tuple) -> dict[str, Any]:
        return dict(zip(controls, values, strict=True))

    def followed(values: tuple, analysis: Analysis) -> np.ndarray | None:
        """The mask T H W as it was followed, if there is one of these frames."""
        mask = given(values)["mask"]
        if mask is None or tuple(mask["of"]) != frames_of(values):
            return None
        _, start, stride, *_ = mask["of"]
        frames = read_mask(mask["path"], analysis, start=start, stride=stride)
        return (
            np.stack([frames[t].numpy() for t in sorted(frames)]) if len(frames) == len(analysis.clip.frames) else None
        )

    def with_paint(value, frame: int, paint: dict, mask: np.ndarray | None, analysis: Analysis) -> dict:
        """What the visitor has painted, with what is new in the editor."""
        before = paint.get(frame, None if mask is None else mask[frame])
        stood = painted(editor_value(analysis, frame, before), analysis)
        marks = painted(value, analysis)
        return paint if np.mean(stood != marks) < 2e-4 else paint | {frame: marks}

    def show(mask: np.ndarray, values: tuple, analysis: Analysis) -> dict[Any, Any]:
        """The view of a mask that was followed, and what it means."""
        wanted = given(values)
        mask = ~mask if wanted["invert"] else mask
        mask = grow(torch.from_numpy(mask), round(float(wanted["grow"]) / 100 * min(mask.shape[1:]))).numpy()
        folder, value = new_folder(), {"alt": "Your clip with the mask in red"}
        for name, frames in (("mask", overlay(analysis, mask)), ("clip", to_uint8(analysis.clip.frames))):
            (folder / f"{name}.webp").write_bytes(media.loop_webp(frames, analysis.fps))
            value[name] = widgets.file_url(folder / f"{name}.webp")
        return {
            tab.view: value | {"url": value["mask"]},
            tab.shown: True,
            tab.status: widgets.status_html(mask_words(mask), "done"),
        }

    def failed(error: Exception) -> dict[Any, Any]:
        return {tab.status: widgets.status_html(widgets.failure_words(error), "error")}

    def start(*values):
        """The editor for a clip; a mask of these very frames is shown.

        The mask itself is left alone: what is followed here may be an older clip than the one that brought it.
        """
        try:
            analysis = analysis_of(values)
        except InputError:
            return nothing | {tab.editor: None, tab.editing: 0}
        mask, frames = followed(values, analysis), len(analysis.clip.frames)
        update = {
            tab.frame: gr.Slider(minimum=1, maximum=max(2, frames), value=1, interactive=frames > 1),
            tab.editing: 0,
            tab.painted: {},
            tab.editor: editor_value(analysis, 0, None if mask is None else mask[0]),
        }
        if mask is not None:
            return update | show(mask, values, analysis)
        return nothing | update

    def show_frame(value, number, editing, paint, *values):
        """Another frame in the editor; what was painted on the last one is kept."""
        try:
            analysis = analysis_of(values)
            mask = followed(values, analysis)
            paint = with_paint(value, editing, paint, mask, analysis)
            frame = min(max(int(number) - 1, 0), len(analysis.clip.frames) - 1)
            shown = paint.get(frame, None if mask is None else mask[frame])
            return {
                tab.editor: editor_value(analysis, frame, shown),
                tab.editing: frame,
                tab.painted: paint,
            }
        except Exception as error:
            return failed(error)

    def complete_object(value, editing, paint, *values):
        """The whole object from marks on it."""
        try:
            analysis = analysis_of(values)
            marks = painted(value, analysis)
            if not marks.any():
                raise InputError("Mark the object first: a dot or a stroke on each of its parts.")
            mask = complete(analysis.full.frames[editing], torch.from_numpy(marks)).numpy()
            words = "Add or erase what is wrong, then follow it through the clip."
            return {
                tab.editor: editor_value(analysis, editing, mask),
                tab.painted: paint | {editing: mask},
                tab.status: widgets.status_html(words),
            }
        except Exception as error:
            return failed(error)

    def follow_from(paint: dict[int, np.ndarray], values: tuple, analysis: Analysis):
        yield {tab.status: widgets.status_html("Following the object …", "busy", 0.0)}
        masks = {frame: torch.from_numpy(mask) for frame, mask in paint.items()}
        say = lambda done: {
            tab.status: widgets.status_html(
                f"Following the object: frame {done[0]} of {done[1]}", "busy", done[0] / done[1]
            )
        }
        found = (yield from relayed(follow(analysis.full.frames, masks), say)).numpy()
        path = write_mask(new_folder() / "mask.npz", found, analysis)
        mask = {"path": str(path), "of": frames_of(values)}
        change = {controls["change"]: "object"} if given(values)["change"] == "camera" else {}
        yield {controls["mask"]: mask} | change | show(found, values, analysis)

    def follow_object(value, editing, paint, *values):
        """The object through the whole clip, from the frames that were painted."""
        try:
            analysis = analysis_of(values)
            paint = with_paint(value, editing, paint, followed(values, analysis), analysis)
            if not any(mask.any() for mask in paint.values()):
                raise InputError("Paint over the object first, on any frame.")
            yield from follow_from(paint, values, analysis)
            yield {tab.painted: paint}
        except Exception as error:
            yield failed(error)

    def open_mask(file, *values):
        """A mask of the visitor's own, followed where it does not show all frames."""
        try:
            if not file:
                yield {tab.status: gr.skip()}
                return
            analysis = analysis_of(values)
            _, start, stride, *_ = frames_of(values)
            paint = {f: mask.numpy() for f, mask in read_mask(file, analysis, start=start, stride=stride).items()}
            yield from follow_from(paint, values, analysis)
            first = min(paint)
            yield {
                tab.frame: first + 1,
                tab.editing: first,
                tab.painted: paint if len(paint) < len(analysis.clip.frames) else {},
                tab.editor: editor_value(analysis, first, paint[first]),
            }
        except Exception as error:
            yield failed(error)

    def clear_mask(editing, *values):
        update = nothing | {controls["mask"]: None, controls["change"]: "camera"}
        try:
            return update | {tab.editor: editor_value(analysis_of(values), editing, None)}
        except InputError:
            return update

    def refresh(*values):
        """The same mask, widened or inverted otherwise."""
        try:
            analysis = analysis_of(values)
            mask = followed(values, analysis)
            return {tab.status: gr.skip()} if mask is None else show(mask, values, analysis)
        except Exception as error:
            return failed(error)

    def mask_or_clip(shown, value):
        return value | {"url": value["mask" if shown else "clip"]} if value and "mask" in value else gr.skip()

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    painting = [tab.editor, tab.editing, tab.painted, *inputs]
    tab.frame.release(
        show_frame, [tab.editor, tab.frame, tab.editing, tab.painted, *inputs], outputs, **quiet,
        trigger_mode="always_last",
    )  # fmt: skip
    tab.complete.click(complete_object, painting, outputs, **quiet)
    tab.follow.click(follow_object, painting, outputs, **quiet, concurrency_limit=1)
    tab.clear.click(clear_mask, [tab.editing, *inputs], outputs, **quiet)
    tab.file.upload(open_mask, [tab.file, *inputs], outputs, **quiet, concurrency_limit=1)
    tab.shown.input(mask_or_clip, [tab.shown, tab.view], tab.view, **quiet)
    for changed in (controls["grow"].release, controls["invert"].input):
        changed(refresh, inputs, outputs, **quiet, trigger_mode="always_last")
    return lambda event: event.then(start, inputs, outputs, **quiet)
