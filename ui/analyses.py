"""The last few analyses, kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator

from pipeline import result_of
from pipeline.render.analysis import Analysis, hide
from pipeline.render.events import StageEvent
from pipeline.render.request import RenderRequest

Analyse = Callable[[RenderRequest], Generator[StageEvent, None, Analysis]]


class Analyses:
    """The last few analyses, so that another camera move costs no second one. One analysis runs at a time."""

    def __init__(self, analyse: Analyse, keep: int = 4):
        self._analyse = analyse
        self._kept: OrderedDict[tuple, Analysis] = OrderedDict()
        self._keep = keep
        self._running = threading.Lock()
        self._hidden: tuple[tuple, Analysis] | None = None

    def hidden(self, request: RenderRequest, analysis: Analysis) -> Analysis:
        """The analysis without what the request replaces."""
        names = ("mask", "invert", "grow", "remove", "first_frame")
        key = (self.key(request), *(getattr(request, name) for name in names))
        if self._hidden is None or self._hidden[0] != key:
            self._hidden = key, result_of(hide(analysis, request))
        return self._hidden[1]

    @staticmethod
    def key(request: RenderRequest) -> tuple:
        """What an analysis depends on."""
        return tuple(
            getattr(request, name)
            for name in (
                "clip",
                "fov",
                "frames",
                "start",
                "stride",
                "size",
                "depth",
                "depth_kind",
                "depth_model",
                "backbone",
            )
        )

    def get(self, request: RenderRequest) -> Analysis | None:
        return self._kept.get(self.key(request))

    def find(self, request: RenderRequest) -> Generator[StageEvent, None, Analysis]:
        """Stage events; returns the analysis, at once if it is at hand."""
        while not self._running.acquire(timeout=1.0):
            yield StageEvent("waiting", "Waiting for another clip's analysis to finish …", 0.0)
        try:
            known = self.get(request)
            if known is not None:
                self._kept.move_to_end(self.key(request))
                return known
            found = self._kept[self.key(request)] = yield from self._analyse(request)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
            return found
        finally:
            self._running.release()
