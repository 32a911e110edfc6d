"""What the first screen shows: clips and what was made of them, a press away from being loaded.

`python -m ui.gallery` finds the depths of examples/ anew, for assets/example-depths, and renders them for
assets/gallery; with --depths it stops before it renders.
"""

from __future__ import annotations

import sys
import tempfile
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from pipeline import result_of
from pipeline.depth import shipped
from pipeline.media.video import read_video, to_uint8
from pipeline.render.analysis import analyse, depth_key
from pipeline.render.events import DoneEvent
from pipeline.render.loaded import depth_model_of, get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from ui import media, widgets
from ui.examples import find_examples
from ui.words import change_words

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "assets" / "gallery"
SHOWN = ("astronaut", "street", "crab-on-sand")
WIDTH = 400  # pixels of both pictures together
GAP = 6


def gallery(examples: list[tuple[str, RenderRequest, bool]]) -> gr.HTML | None:
    """Buttons with a moving pair of pictures each; a press triggers `pick` with {"index": i} of the examples.

    None where none of the pairs is of an example.
    """
    cards = ""
    for index, (title, request, _) in enumerate(examples):
        file = FOLDER / f"{Path(request.clip).stem}.webp"
        if Path(request.clip).stem in SHOWN and file.is_file():
            words = change_words(request)
            cards += (
                f'<button type="button" data-index="{index}" aria-label="{escape(title)}: {escape(words)}. Load it">'
                f'<img src="{media.data_url(file.read_bytes(), "image/webp")}" alt="" width="{WIDTH}">'
                f"<span><b>{escape(title)}</b>{escape(words)}</span></button>"
            )
    if not cards:
        return None
    template = (
        '<div class="rc-label">Left the clip, right the same moment filmed anew. Press one to try it.</div>'
        f'<div class="rc-gallery">{cards}</div>'
    )
    return widgets.example_cards(template, elem_id="gallery")


def pair(source: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Both videos uint8 T H W 3 side by side, with a gap between them."""
    count = min(len(source), len(result))
    gap = np.full((count, source.shape[1], GAP * source.shape[2] // (WIDTH // 2), 3), 255, np.uint8)
    return np.concatenate([source[:count], gap, result[:count]], 2)


def ship_depths() -> None:
    """Find the depth of each example with the nano network, and write those in place of what is there."""
    for file in shipped.FOLDER.glob("*.npz"):
        file.unlink()
    for title, request, _ in find_examples(ROOT / "examples"):
        found = result_of(analyse(request))
        z = found.depth.z if found.detail is None else found.detail
        model = request.depth_model or depth_model_of(get_backbone(request.backbone))
        key = depth_key(request, tuple(found.clip.frames.shape), model)
        file = shipped.ship(key, z.numpy(), found.depth.metric)
        print(f"{title}: depth, {file.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    """Render each and write it."""
    ship_depths()
    if "--depths" in sys.argv:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for _, request, _ in find_examples(ROOT / "examples"):
        name = Path(request.clip).stem
        if name not in SHOWN:
            continue
        with tempfile.TemporaryDirectory() as folder:
            *_, last = render(request, folder)
            if not isinstance(last, DoneEvent):
                raise SystemExit(f"{name}: {last}")
            clips = [read_video(file, max_side=480) for file in (last.result.source, last.result.video)]
        frames = pair(*(to_uint8(clip.frames) for clip in clips))
        (FOLDER / f"{name}.webp").write_bytes(media.loop_webp(frames, clips[0].fps, width=WIDTH, quality=62))
        print(f"{name}: {(FOLDER / f'{name}.webp').stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
