"""The page: its cards, one below the other, and what follows what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.models import table
from pipeline.models.caption import caption
from pipeline.render.analysis import analyse
from pipeline.render.request import DEFAULTS
from ui import camera_tab, clip_card, mask_editor, render_card, restoring, widgets
from ui.analyses import Analyse, Analyses
from ui.controls import limits
from ui.examples import find_examples
from ui.jobs import JobStore
from ui.page import QUIET, Page
from ui.render_card import Describe
from ui.theme import CSS, theme

NAME = "Recapture"
SCRIPTS = ("away.js", "unplayable.js", "scissors.js")  # of the whole page, of `static`


def build(
    backbone: str,
    store: JobStore,
    *,
    examples: Path,
    analyse: Analyse = analyse,
    describe: Describe = caption,
    depth_model: str | None = None,
) -> gr.Blocks:
    """The page, for one backbone. `launch_options` holds what else `launch` needs.

    depth_model: what is chosen at first, a name of the table, a folder or a hub id; one that is not in the
    table joins the choices. Visitors choose among these only: what a server fetches and reads is its host's to say.
    """
    if depth_model and (spec := table.find(depth_model)):
        depth_model = spec.name
    found = find_examples(examples)
    gr.set_static_paths([widgets.plotly_script()])

    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 12 * 3600)) as blocks:
        job_id = gr.BrowserState("", storage_key="recapture-job", secret="recapture-browser-state")
        page = Page(backbone, store, Analyses(analyse), gr.State(None), job_id)
        gr.HTML(
            f'<header class="rc-header"><h1>{NAME}</h1>'
            "<p>Film a clip you already have once more, along a new camera path, or with an object replaced.</p>"
            "</header>"
        )
        clip = clip_card.clip_card(page, found, depth_model)
        with gr.Column(elem_classes="rc-card"):
            widgets.heading(3, "What to change", "A new camera path, another object, or both")
            with gr.Tabs(elem_classes="rc-tabs") as tabs:
                with gr.Tab("Camera path", id="camera", render_children=True), gr.Row(elem_classes="rc-camera"):
                    camera = camera_tab.camera_tab(page)
                with gr.Tab("Replace an object", id="object", render_children=True, elem_id="replace-tab"):
                    replaced = mask_editor.replace_tab(DEFAULTS["grow"])
                    page.controls.update(replaced.controls)
        card = render_card.render_card(page)

        then_warp = camera_tab.connect(page, camera)
        then_paint = mask_editor.connect(page, replaced)
        rendering = render_card.connect(page, card, describe, clip.picked)
        # what follows an analysis: the warp, and the picture to paint on
        then_all = lambda event: then_paint(then_warp(event))
        analysed = clip_card.connect(page, clip, camera, tabs, found, card.terms, then_all)

        blocks.load(rendering.follow, job_id, rendering.outputs, **QUIET)
        analysed(restoring.connect(page, blocks))

    blocks.queue(default_concurrency_limit=None)
    return blocks


def launch_options(store: JobStore, examples: Path) -> dict[str, Any]:
    """What `launch` must be told so that the page looks and works as meant."""
    scripts = [(widgets.STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return {
        "theme": theme(),
        "css": CSS,
        "head": "".join(f"<script>{script}</script>" for script in scripts),
        "allowed_paths": [str(store.root), str(examples)],
        "max_file_size": f"{limits().megabytes}mb",
        "max_threads": 100,
        "footer_links": [],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
    }
