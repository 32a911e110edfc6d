"""A page that is opened again gets the clip and the settings of its visitor's last job back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ui.page import QUIET, Page

# In the page itself: between the server's question and its answer a visitor may choose another clip, which stays.
UNLESS_CHOSEN = "(found, chosen) => chosen || !found ? {__type__: 'update'} : found"


def connect(page: Page, blocks: gr.Blocks) -> Any:
    """Let it work. Returns the last event, after which the page has its clip."""
    clip, mask, change = (page.controls[name] for name in ("clip", "mask", "change"))
    found = gr.JSON(visible=False)

    def restore(wanted, chosen):
        """The settings of the visitor's own last job, and its clip, unless a clip was chosen meanwhile."""
        job = page.store.get(wanted)
        if job is None or chosen:
            return [gr.skip()] * (len(page.controls) + 1)
        updates = dict(zip(page.controls, page.updates(job.request), strict=True)) | {"clip": gr.skip()}
        return [*updates.values(), _video_of(job.request.clip)]

    def of_clip(wanted, clip):
        """What was said of one clip says nothing of another."""
        job = page.store.get(wanted)
        other = job is not None and clip is not None and Path(clip).name != Path(job.request.clip).name
        return (None, "camera") if other else (gr.skip(), gr.skip())

    # In two steps: what was chosen is asked for when it would be overwritten, not when the page began to load.
    loaded = blocks.load(lambda: None, None, None, **QUIET)
    restored = loaded.then(restore, [page.job_id, clip], [*page.inputs, found], **QUIET)
    shown = restored.then(None, [found, clip], clip, js=UNLESS_CHOSEN, **QUIET)
    return shown.then(of_clip, [page.job_id, clip], [mask, change], **QUIET)


def _video_of(path: str) -> dict[str, Any]:
    """A file as the page holds that of a clip."""
    return FileData(path=path, orig_name=Path(path).name).model_dump()
