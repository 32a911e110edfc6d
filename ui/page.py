"""What the handlers of every card share: the controls, what their values mean, and the analyses that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from pipeline import InputError
from pipeline.render.analysis import Analysis
from pipeline.render.request import RenderRequest
from ui.analyses import Analyses
from ui.controls import BEFORE_RENDER, amount_slider, frames_of, request_from, values_from
from ui.jobs import JobStore

QUIET: Any = {"show_progress": "hidden", "api_visibility": "private"}
LATEST: Any = QUIET | {"trigger_mode": "always_last"}  # of changes that come meanwhile only the latest is kept


@dataclass(frozen=True, eq=False)
class Page:
    """One page, for one backbone.

    shown: the key of the analysis that stands on the page, None for none. job_id: of the visitor's last render.
    controls: by their names in a RenderRequest; the handlers get their values in this order.
    """

    backbone: str
    store: JobStore
    analyses: Analyses
    shown: gr.State
    job_id: gr.BrowserState
    controls: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Any]:
        return list(self.controls.values())

    def given(self, values: tuple) -> dict[str, Any]:
        """The controls' values by name."""
        return dict(zip(self.controls, values, strict=True))

    def request_of(self, values: tuple) -> RenderRequest:
        return request_from(self.given(values), self.backbone)

    def camera_request(self, values: tuple) -> RenderRequest:
        """The request without what it replaces: all that an analysis needs."""
        return request_from(self.given(values) | {"change": "camera"} | BEFORE_RENDER, self.backbone)

    def warp_request(self, values: tuple) -> RenderRequest:
        """What the warp shows: the camera path, and what is replaced where the render will have both."""
        given, request = self.given(values), self.camera_request(values)
        mask = given["mask"]
        both = given["change"] == "both" and mask is not None and mask["of"] == frames_of(request)
        return request_from(given | BEFORE_RENDER, self.backbone) if both else request

    def frames_of(self, values: tuple) -> tuple:
        """What a mask of the chosen clip belongs to."""
        return frames_of(self.camera_request(values))

    def analysis_at_hand(self, values: tuple) -> Analysis:
        analysis = self.analyses.get(self.camera_request(values))
        if analysis is None:
            raise InputError("The clip is not analysed yet; wait until it is.")
        return analysis

    def updates(self, request: RenderRequest) -> list[Any]:
        """What the controls show for a request, in their order."""
        values = values_from(request)
        values["amount"] = gr.Slider(**amount_slider(request.camera, values["amount"]))
        values["accepted"] = request.accepted or gr.skip()  # an example takes back nothing
        return [values[name] for name in self.controls]
