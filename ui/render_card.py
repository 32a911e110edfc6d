"""The card that starts a render and shows it forming, and the card of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from pipeline.media.files import write_report
from pipeline.models.caption import Caption
from pipeline.prior.settings import vocabulary_of
from pipeline.render.events import RenderResult
from pipeline.render.request import check_asked
from ui import media, widgets
from ui.controls import CHANGES, advanced_settings
from ui.jobs import JobView
from ui.page import QUIET, Page
from ui.result import figures_html, public_report
from ui.terms import Terms
from ui.words import preview_words, progress_words

EMPTY_PREVIEW = "While a render runs, you see it form here."
Describe = Callable[[Tensor], Caption]


@dataclass(frozen=True, eq=False)
class RenderCard:
    """The parts of both cards. terms: of models among the advanced settings."""

    suggest: gr.Button
    prompt_status: gr.HTML
    terms: list[Terms]
    start: gr.Button
    stop: gr.Button
    progress: gr.HTML
    preview: gr.HTML
    preview_note: gr.HTML
    result: gr.Column
    compare: Any
    video: gr.DownloadButton
    report: gr.DownloadButton
    figures: gr.HTML


def render_card(page: Page) -> RenderCard:
    """Both cards; that of the result is put away until there is one."""
    controls = page.controls
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
                        info=vocabulary_of(page.backbone) or None,
                    )  # fmt: skip
                    suggest = gr.Button("Suggest", scale=0, min_width=96, elem_id="suggest")
                prompt_status = gr.HTML("", elem_id="prompt-status", elem_classes="rc-optional")
                with gr.Accordion("Advanced settings", open=False, elem_classes="rc-advanced", elem_id="advanced"):
                    advanced, terms = advanced_settings(page.backbone)
                    controls |= advanced
                with gr.Row(elem_classes=["rc-buttons", "rc-actions"]):
                    start = gr.Button("Render", variant="primary", elem_id="render", scale=3)
                    stop = gr.Button("Stop", elem_id="stop", interactive=False, scale=1)
                progress = gr.HTML(widgets.status_html(""), elem_id="progress")
            with gr.Column(min_width=300, scale=2):
                preview = widgets.loop_view(
                    "The render, forming", EMPTY_PREVIEW, elem_id="preview", elem_classes=["rc-preview"]
                )
                note = gr.HTML("", elem_id="preview-note", elem_classes="rc-optional")
    # Put away by its class, not by visible=False: a part that is not mounted loses its template with an update.
    with gr.Column(elem_classes=["rc-card", "rc-away"], elem_id="result") as result:
        widgets.heading(None, "Result", "Your clip and the new one, playing in step")
        compare = widgets.compare_view(elem_id="compare")
        with gr.Row(elem_classes="rc-buttons"):
            video = gr.DownloadButton("Download the video", variant="primary", elem_id="download-video")
            report = gr.DownloadButton("Download the report (JSON)", elem_id="download-report")
        figures = gr.HTML("", elem_id="figures")
    return RenderCard(
        suggest, prompt_status, terms, start, stop, progress, preview, note, result, compare, video, report, figures
    )


@dataclass(frozen=True, eq=False)
class Rendering:
    """The handlers."""

    page: Page
    card: RenderCard
    describe: Describe

    @property
    def outputs(self) -> list[Any]:
        card = self.card
        return [
            card.start, card.stop, card.progress, card.preview, card.preview_note, card.result, card.compare,
            card.video, card.report, card.figures,
        ]  # fmt: skip

    def suggest(self, *values):
        """The clip's middle frame in words, as the prompt."""
        prompt, status = self.page.controls["prompt"], self.card.prompt_status
        yield {status: widgets.status_html("Describing the clip …", "busy")}
        try:
            frames = self.page.analysis_at_hand(values).full.frames
            found = self.describe(frames[len(frames) // 2])
            words = f"Suggested by {found.by}, from the clip's middle frame. Change it as you like."
            yield {prompt: found.words, status: widgets.status_html(words)}
        except Exception as error:
            yield {status: widgets.status_html(widgets.failure_words(error), "error")}

    def start(self, visit: gr.Request, *values):
        """The job, twice: the second is "" where there is none to follow, so that the words of a refusal stay."""
        try:
            request = self.page.request_of(values)
            check_asked(request)  # or it would be refused only when its turn comes
            job = self.page.store.submit(request, str(visit.session_hash or ""))
            return job, job, widgets.status_html("Starting …", "busy", 0.0)
        except Exception as error:
            return gr.skip(), "", widgets.status_html(widgets.failure_words(error), "error")

    def follow(self, wanted):
        """Bring the page to where the job is, until it ends. A closed page ends this, never the job."""
        last = None
        # A generator that yields nothing would empty all of its outputs.
        if not wanted:
            yield {self.card.start: gr.Button(interactive=True)}
            return
        yield {self.card.start: gr.Button(interactive=True), self.card.stop: gr.Button(interactive=False)}
        for view in self.page.store.follow(wanted):
            yield self.shown(view, last)
            last = view

    def shown(self, view: JobView, last: JobView | None) -> dict[Any, Any]:
        """What the page shows of a job. last: what it shows already."""
        card = self.card
        update: dict[Any, Any] = {
            card.start: gr.Button(interactive=not view.active),
            card.stop: gr.Button(interactive=view.active),
        }
        if view.active:
            update[card.progress] = widgets.status_html(progress_words(view), "busy", view.fraction)
            if last is None:
                update[card.preview] = {"empty": "The first preview comes with the warp."}
                update[card.result] = gr.Column(elem_classes=["rc-card", "rc-away"])
        else:
            kind = {"done": "done", "failed": "error", "interrupted": "warning"}.get(view.state, "")
            update[card.progress] = widgets.status_html(widgets.without_paths(view.message), kind)
        if view.preview is not None and (last is None or view.preview is not last.preview):
            update[card.preview_note] = preview_words(view.preview_by)
            alt = f"Preview of step {view.step}" if view.step else "Preview of the warp"
            update[card.preview] = {"url": media.preview_url(view.preview), "alt": alt}
        if view.result is not None:
            try:
                update |= self.finished(view.result, watched=last is not None)
            except Exception as error:  # a full disk, perhaps: the result stays, and is shown when the page comes back
                update[card.progress] = widgets.status_html(widgets.failure_words(error), "error")
        return update

    def put_away(self, job_id):
        """The result of the clip before goes; a render that is still running stays."""
        job = self.page.store.get(job_id)
        if job is not None and job.view.active:
            return [gr.skip()] * 4
        away = gr.Column(elem_classes=["rc-card", "rc-away"])
        return away, widgets.status_html(""), {"empty": EMPTY_PREVIEW}, ""

    def finished(self, result: RenderResult, *, watched: bool) -> dict[Any, Any]:
        card, public = self.card, public_report(result)
        height, width = public.sizes.result
        # downloads are told apart by the clip's name
        given = Path(public.request.clip).stem
        video, report = (result.folder / f"{given}-recaptured{end}" for end in (".mp4", ".json"))
        if not video.exists():
            widgets.same_file(result.video, video)
        if not report.exists():
            write_report(report, public.to_dict())
        return {
            card.result: gr.Column(elem_classes=["rc-card"]),
            card.compare: {
                "source": widgets.file_url(result.source),
                "result": widgets.file_url(result.video),
                "width": width,
                "height": height,
                "scroll": watched,
            },
            card.video: gr.DownloadButton(value=str(video)),
            card.report: gr.DownloadButton(value=str(report)),
            card.figures: figures_html(public),
        }


def connect(page: Page, card: RenderCard, describe: Describe, more: tuple[Any, ...] = ()) -> Rendering:
    """Let the cards work. more: further events that bring another clip."""
    handlers = Rendering(page, card, describe)
    prompt = [page.controls["prompt"], card.prompt_status]
    card.suggest.click(handlers.suggest, page.inputs, prompt, **QUIET, concurrency_limit=1)
    made = gr.State("")
    started = card.start.click(handlers.start, page.inputs, [page.job_id, made, card.progress], **QUIET)
    started.then(handlers.follow, made, handlers.outputs, **QUIET)
    clip = page.controls["clip"]
    for trigger in (clip.upload, clip.clear, *more):
        trigger(handlers.put_away, page.job_id, [card.result, card.progress, card.preview, card.preview_note], **QUIET)
    card.stop.click(page.store.cancel, page.job_id, None, **QUIET)
    return handlers
