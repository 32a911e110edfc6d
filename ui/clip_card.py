"""The cards of the clip and of its analysis: upload, examples, depth, and the terms of depth models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import InputError, relayed
from pipeline.media.video import to_uint8
from pipeline.models.hub import obtainable
from pipeline.models.table import MODELS, size, title_of
from pipeline.render.analysis import Analysis
from pipeline.render.expected import expected_seconds
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.view import move_of
from ui import media, photographs, widgets, zerogpu
from ui.camera_tab import EMPTY_WARP, CameraTab, editor_scene
from ui.controls import EMPTY_CLOUD, depth_choices, editor_value, limits
from ui.gallery import gallery
from ui.page import LATEST, QUIET, Page
from ui.terms import Terms, accept, ask_terms, show_terms
from ui.words import analysis_words

OTHER_KINDS = [*photographs.SUFFIXES, ".gif", ".apng", ".ts", ".mts", ".m2ts", ".avi", ".mkv", ".mxf", ".mpg", ".flv"]
UNPLAYABLE = "This is what is read of your file, since no browser plays it as a film:"
AWAY = ["rc-away"]
WAITS_FOR_CLIP = "Starts by itself once there is a clip."
EMPTY_DEPTH = "Depth of the clip"
LARGER = "depth-anything-v2-small"  # of the depth models the one of an open licence
Example = tuple[str, RenderRequest, bool]  # title, request, whether a file described it
Then = Callable[[Any], Any]  # chains to an event


@dataclass(frozen=True, eq=False)
class ClipCard:
    """The parts; picked: what is pressed to load an example."""

    clip: gr.Video
    other: gr.UploadButton
    seen: gr.Column
    loop: gr.HTML
    picked: tuple[Any, ...]
    depth: gr.HTML
    status: gr.HTML
    button: gr.Button
    notes: gr.HTML
    terms: Terms
    larger: gr.Button


def clip_card(page: Page, examples: list[Example], depth_model: str | None) -> ClipCard:
    """Both cards, side by side, below what was made of some examples. depth_model: what is chosen at first."""
    shown = gallery(examples)
    with gr.Row(elem_classes="rc-row"):
        with gr.Column(elem_classes="rc-card", min_width=320):
            widgets.heading(1, "Clip", f"A video, or photographs, up to {limits().megabytes} MB")
            clip = gr.Video(
                label="Your clip", show_label=False, sources=["upload"], height=300, buttons=[], elem_id="clip",
                elem_classes="rc-clip",
            )  # fmt: skip
            page.controls["clip"] = widgets.shows_as_it_is(clip)
            other = gr.UploadButton(
                "Photographs, or another kind of film: JPEG, HEIC, GIF, AVI …", file_count="multiple",
                file_types=OTHER_KINDS, size="sm", elem_id="clip-other",
            )  # fmt: skip
            # Put away by its class, as the card of the result.
            with gr.Column(elem_classes=AWAY, elem_id="clip-seen") as seen:
                gr.HTML(f'<p class="rc-caption">{UNPLAYABLE}</p>')
                loop = widgets.loop_view("Your clip, as it is read", "", elem_id="clip-loop", elem_classes=["rc-depth"])
            strip = None
            if examples:
                poster = lambda request: media.data_url(media.poster(request.clip), "image/jpeg")
                pictures = [(title, poster(request)) for title, request, _ in examples]
                strip = widgets.example_strip(pictures, elem_id="examples")
        with gr.Column(elem_classes="rc-card", min_width=320):
            widgets.heading(2, "Analyse", "How far everything is, estimated from the clip")
            depth = widgets.loop_view("Depth", EMPTY_DEPTH, elem_id="depth", elem_classes=["rc-depth", "rc-grow"])
            with gr.Row(elem_classes="rc-depth-row"):
                status = gr.HTML(widgets.status_html(WAITS_FOR_CLIP), elem_id="analysis-status")
                button = gr.Button(
                    "Analyse again", size="sm", elem_id="analyse", interactive=False, min_width=120, scale=0
                )
            notes = gr.HTML("", elem_id="analysis-notes")
            choice = page.controls["depth_model"] = gr.Dropdown(
                depth_choices(depth_model), value=depth_model or "", label="Depth from", elem_id="depth-model"
            )
            larger = gr.Button(larger_words(), size="sm", visible=False, elem_id="larger-depth")
            page.controls["accepted"] = gr.State(())
            terms = ask_terms(choice, "depth")
    picked = tuple(part.pick for part in (shown, strip) if part is not None)
    return ClipCard(clip, other, seen, loop, picked, depth, status, button, notes, terms, larger)


def larger_words() -> str:
    """What the button for a larger depth model says: its title, what is fetched for it, its licence."""
    spec = MODELS[LARGER]
    needed = size(sum(part.download_bytes for part in spec.parts))
    return f"Try {title_of(LARGER)}, larger and finer ({needed}, {spec.licence})"


@dataclass(frozen=True, eq=False)
class Analysing:
    """The handlers."""

    page: Page
    card: ClipCard
    tab: CameraTab

    @property
    def outputs(self) -> list[Any]:
        card, tab = self.card, self.tab
        return [
            self.page.shown, card.status, card.notes, card.button, tab.editor, card.depth, tab.warp, tab.status,
            card.seen, card.loop, card.larger,
        ]  # fmt: skip

    def nothing(self, values: tuple) -> dict[Any, Any]:
        """The page without an analysis; the visitor's own path stays."""
        kept = self.page.given(values)["move"] or {}
        return {
            self.page.shown: None,
            self.card.notes: "",
            self.card.larger: gr.Button(visible=False),
            self.card.seen: gr.Column(elem_classes=AWAY),
            self.tab.editor: {"empty": EMPTY_CLOUD}
            | {k: kept[k] for k in ("move", "own", "serial") if kept.get("own")},
            self.card.depth: {"empty": EMPTY_DEPTH},
            self.tab.warp: {"empty": EMPTY_WARP},
            self.tab.status: widgets.status_html(""),
        }

    def take(self, files):
        """The clip of what is no video for Gradio: a photograph, several, or another film."""
        try:
            yield {self.card.clip: photographs.joined(files, self.page.store.new_folder())}
        except Exception as error:
            yield {self.card.status: widgets.status_html(widgets.failure_words(error), "error")}
            raise gr.Error(visible=False, print_exception=False) from error  # so that nothing is analysed

    @staticmethod
    def ready_words(found: Analysis, request: RenderRequest) -> str:
        """What was found, and how long a render takes; not where the GPU that does it is another process's."""
        seconds = None if zerogpu.ACTIVE else expected_seconds(found, request, get_backbone(request.backbone))
        return analysis_words(found, seconds)

    def show(self, *values):
        """Depth and point cloud of the chosen clip."""
        card, on, off = self.card, gr.Button(interactive=True), gr.Button(interactive=False)
        if not self.page.given(values)["clip"]:
            yield self.nothing(values) | {card.status: widgets.status_html(WAITS_FOR_CLIP), card.button: off}
            return
        yield {card.status: widgets.status_html("Reading the clip …", "busy"), card.button: off}
        try:
            request = self.page.camera_request(values)
            say = lambda event: {card.status: widgets.status_html(f"{event.message} …", "busy")}
            found = yield from relayed(self.page.analyses.find(request), say)
            yield {card.status: widgets.status_html("Drawing depth and point cloud …", "busy")}
            folder = self.page.store.new_folder()
            standing = editor_scene(found, folder)
            z = found.depth.z.float().cpu().numpy()
            (folder / "depth.webp").write_bytes(media.loop_webp(media.depth_frames(z), found.fps))
            yield {
                self.page.shown: self.page.analyses.key(request),
                card.status: widgets.status_html(self.ready_words(found, request), "done"),
                card.notes: f'<p class="rc-caption">{escape(" ".join(found.notes))}</p>',
                card.button: on,
                card.larger: gr.Button(visible=not (request.depth or request.depth_model) and obtainable(LARGER)),
                self.tab.editor: editor_value(standing, move_of(request, found), own=request.move is not None),
                card.depth: {"url": widgets.file_url(folder / "depth.webp"), "alt": "Depth: near is bright"},
            } | self.unplayable(found, folder)
        except Exception as error:
            words = widgets.status_html(widgets.failure_words(error), "error")
            yield self.nothing(values) | {card.status: words, card.button: on}

    def unplayable(self, found: Analysis, folder: Path) -> dict[Any, Any]:
        """The frames that were read, where the browser cannot play the file itself."""
        if found.info.playable:
            return {self.card.seen: gr.Column(elem_classes=AWAY)}
        (folder / "clip.webp").write_bytes(media.loop_webp(to_uint8(found.full.frames), found.fps))
        return {
            self.card.seen: gr.Column(elem_classes=["rc-seen"]),
            self.card.loop: {"url": widgets.file_url(folder / "clip.webp"), "alt": "Your clip, as it is read"},
        }

    def show_if_new(self, known, *values):
        """As `show`, unless a field was left as it was."""
        page, status = self.page, self.card.status
        try:
            wanted = page.analyses.key(page.camera_request(values)) if page.given(values)["clip"] else None
        except InputError as error:  # half typed, perhaps: what stands on the page stays
            yield {status: widgets.status_html(widgets.failure_words(error), "error")}
            return
        if wanted is None or wanted == known:
            request = page.camera_request(values) if wanted else None
            standing = page.analyses.get(request) if request else None
            words = self.ready_words(standing, request) if standing and request else None
            yield {status: widgets.status_html(words, "done") if words else gr.skip()}
        else:
            yield from self.show(*values)


def connect(
    page: Page, card: ClipCard, tab: CameraTab, tabs: gr.Tabs, examples: list[Example], more: list[Terms], then: Then
) -> Then:
    """Let the cards work. Returns what chains an analysis, and what follows it, to an event.

    more: the terms of other choices on the page. then: what follows an analysis.
    """
    handlers, controls = Analysing(page, card, tab), page.controls
    outputs, known = handlers.outputs, [page.shown, *page.inputs]
    for trigger in (card.clip.upload, card.clip.clear, card.button.click):
        then(trigger(handlers.show, page.inputs, outputs, **QUIET))
    # what was said of one clip says nothing of the next
    said = {request.guidance.prompt for _, request, _ in examples}
    of_clip = [controls[name] for name in ("prompt", "mask", "change")]
    for trigger in (card.clip.upload, card.clip.clear):
        trigger(lambda words: ("" if words in said else gr.skip(), None, "camera"), of_clip[:1], of_clip, **QUIET)
    settings = [controls[name] for name in ("fov", "frames", "start", "stride", "height", "width")]
    changes = [event for setting in settings for event in (setting.submit, setting.blur)]
    changes += [controls["depth"].upload, controls["depth"].clear]
    changes += [controls["depth_kind"].input, card.terms.choice.input]
    then(gr.on(changes, handlers.show_if_new, known, outputs, **LATEST))
    chosen = card.larger.click(lambda: LARGER, None, card.terms.choice, **QUIET)
    then(chosen.then(handlers.show_if_new, known, outputs, **QUIET))
    accepted = controls["accepted"]
    for terms in (card.terms, *more):
        told = [terms.words, terms.box, terms.column]
        show = lambda choice, names, of=terms.model_of: show_terms(of(choice), names)
        tick = lambda ticked, choice, names, of=terms.model_of: accept(ticked, of(choice), names)
        terms.choice.change(show, [terms.choice, accepted], told, **QUIET)
        ticked = terms.box.input(tick, [terms.box, terms.choice, accepted], accepted, **QUIET)
        if terms is card.terms:
            then(ticked.then(handlers.show_if_new, known, outputs, **QUIET))

    analysed: Then = lambda event: then(event.then(handlers.show, page.inputs, outputs, **QUIET))
    taken = card.other.upload(handlers.take, card.other, [card.clip, card.status], **QUIET)
    then(taken.success(handlers.show, page.inputs, outputs, **QUIET))
    if card.picked:

        def pick(event: gr.EventData):
            request, described = examples[int(event.index)][1:]
            own = dict.fromkeys(controls, gr.skip()) | {"clip": request.clip, "mask": None, "change": "camera"}
            tab = gr.Tabs(selected="object" if request.mask else "camera")
            return [*(page.updates(request) if described else own.values()), tab]

        for picked in card.picked:
            analysed(picked(pick, None, [*page.inputs, tabs], **QUIET))
    return analysed
