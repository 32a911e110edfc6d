"""The tab with the camera editor."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pipeline.camera.moves import Move, fov_of
from pipeline.render.analysis import Analysis
from ui import media, widgets


def editor_scene(analysis: Analysis, folder: Path) -> dict[str, Any]:
    """What the camera editor shows whatever the path is; writes the point clouds into folder."""
    frames, _, height, width = analysis.clip.frames.shape
    clouds = []
    for number, content in enumerate(media.cloud_files(analysis)):
        (folder / f"cloud-{number}.bin").write_bytes(content)
        clouds.append(widgets.file_url(folder / f"cloud-{number}.bin"))
    return {
        "clouds": clouds,
        "plotly": widgets.file_url(widgets.plotly_script()),
        "width": width,
        "height": height,
        "fov": fov_of(analysis.source, (height, width)),
        "frames": frames,
        "fps": analysis.fps,
    }


def editor_value(shown: dict[str, Any], move: Move | None, *, own: bool) -> dict[str, Any]:
    """The camera editor's value: what it shows, and a path that takes the place of the one it has, if there is one."""
    rest = {name: value for name, value in shown.items() if name not in ("move", "own", "serial", "download")}
    return rest | ({"move": move.to_dict(), "own": own, "serial": uuid.uuid4().hex} if move else {"own": False})
