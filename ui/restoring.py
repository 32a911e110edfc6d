"""A page that is opened again gets the clip and the settings of its visitor's last job back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.media.cache import content_key
from ui import widgets
from ui.page import QUIET, Page

# In the browser, since between the server's question and its answer a visitor may choose a clip, which stays.
UNLESS_CHOSEN = """(found, clip) => clip || !found ? {__type__: "update"} : found"""


def connect(page: Page, blocks: gr.Blocks) -> Any:
    """Let it work. Returns the last event, after which the page has its clip and its settings."""
    clip, found = page.controls["clip"], widgets.shows_as_it_is(gr.Video(visible=False))

    def find(wanted):
        """The clip of the visitor's own last job."""
        job = page.store.get(wanted)
        return job.request.clip if job is not None and Path(job.request.clip).exists() else None

    def restore(wanted, chosen):
        """The settings of that job, where the page has its clip."""
        job = page.store.get(wanted)
        if job is None or not chosen or content_key(Path(chosen)) != content_key(Path(job.request.clip)):
            return [gr.skip()] * len(page.controls)
        return [*(dict(zip(page.controls, page.updates(job.request), strict=True)) | {"clip": gr.skip()}).values()]

    told = blocks.load(find, page.job_id, found, **QUIET)
    taken = told.then(None, [found, clip], clip, js=UNLESS_CHOSEN, **QUIET)
    return taken.then(restore, [page.job_id, clip], page.inputs, **QUIET)
