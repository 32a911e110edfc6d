"""The example clips and their requests."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline import InputError
from pipeline.render.request import RenderRequest

log = logging.getLogger(__name__)


def find_examples(folder: Path) -> list[tuple[str, RenderRequest, bool]]:
    """(title, request, described) of every clip in the folder; a JSON request of the same name describes it."""
    examples = []
    for clip in sorted(folder.glob("*.mp4")):
        request = RenderRequest(clip=str(clip))
        file, described = clip.with_suffix(".json"), False
        if file.exists():
            try:
                request = RenderRequest.from_json(file.read_text(encoding="utf-8-sig"))
                mask = str(folder / request.mask) if request.mask else None
                request, described = request.changed(clip=str(clip), mask=mask), True
            except InputError as error:
                log.warning("%s: %s", file.name, error)
        examples.append((clip.stem.replace("-", " ").replace("_", " ").capitalize(), request, described))
    return examples
