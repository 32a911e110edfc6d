"""The moving picture in the README: `python -m pipeline.evaluation.figures` renders an example as the app does."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from pipeline.render import DoneEvent, RenderRequest, render, to_uint8
from pipeline.video import read_video, resize

ROOT = Path(__file__).parents[2]
EXAMPLE = "crab-on-sand"
SIZE = (182, 320)


def main() -> None:
    """Source, warp with its holes, and result side by side, as an animated WebP."""
    request = RenderRequest.from_json((ROOT / "examples" / f"{EXAMPLE}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(ROOT / "examples" / file) for name in ("clip", "mask") if (file := getattr(request, name))}
        *_, done = render(replace(request, **files), folder)
        assert isinstance(done, DoneEvent), done
        clips = [read_video(path) for path in (done.result.source, done.result.warp, done.result.video)]
    shown = torch.cat([resize(clip.frames, SIZE) for clip in clips], -1)
    pictures = [Image.fromarray(frame) for frame in to_uint8(shown)]
    target = ROOT / "assets" / "figures" / "example.webp"
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=round(1000 / clips[0].fps), loop=0, quality=80
    )
    print(f"wrote {target} ({target.stat().st_size // 1024} kB)")


if __name__ == "__main__":
    main()
