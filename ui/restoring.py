"""A page that is opened again gets the clip and the settings of its visitor's last job back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ui.page import QUIET, Page

# In the browser, since between the server's question and its answer a visitor may choose a clip, which stays: see
# static/chosen.js. What is not taken is forgotten.
UNLESS_CHOSEN = """(found, clip) =>
  clip || !found || window.rcChosen ? [{__type__: "update"}, null] : [found, found]"""


def connect(page: Page, blocks: gr.Blocks) -> Any:
    """Let it work. Returns the last event, after which the page has its clip and its settings."""
    clip, found = page.controls["clip"], gr.JSON(visible=False)

    def find(wanted):
        """The clip of the visitor's own last job, as the page holds files."""
        job = page.store.get(wanted)
        path = Path(job.request.clip) if job is not None else None
        if path is None or not path.exists():
            return None
        return FileData(path=str(path), orig_name=path.name).model_dump()

    def restore(wanted, taken):
        """The settings of that job, where its clip was taken."""
        job = page.store.get(wanted)
        if job is None or not taken:
            return [gr.skip()] * len(page.controls)
        return [*(dict(zip(page.controls, page.updates(job.request), strict=True)) | {"clip": gr.skip()}).values()]

    told = blocks.load(find, page.job_id, found, **QUIET)
    taken = told.then(None, [found, clip], [clip, found], js=UNLESS_CHOSEN, **QUIET)
    return taken.then(restore, [page.job_id, found], page.inputs, **QUIET)
