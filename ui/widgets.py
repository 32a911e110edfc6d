"""The parts of the page that Gradio does not have: status lines, looping pictures, the point cloud, the comparison.

Each is a plain `gr.HTML` with a static template and a script; Python talks to it through `value` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"


def file_url(path: str | Path) -> str:
    """Where the page finds a file of ours; the scripts put the server's root in front."""
    return f"/gradio_api/file={Path(path).as_posix()}"


def plotly_script() -> Path:
    """plotly.js as the Python package ships it: no other server is asked."""
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def _scripted(script: str, template: str, value: Any = None, **options: Any) -> gr.HTML:
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=(STATIC / script).read_text(encoding="utf-8"),
        apply_default_css=False,
        **options,
    )


def heading(number: int | None, title: str, hint: str = "") -> gr.HTML:
    """The title of a step."""
    circle = f'<span class="n" aria-hidden="true">{number}</span>' if number else ""
    note = f"<p>{escape(hint)}</p>" if hint else ""
    return gr.HTML(f'<div class="rc-step">{circle}<h2>{escape(title)}</h2>{note}</div>')


def status_html(words: str, kind: str = "", fraction: float | None = None) -> str:
    """A line in words, kind: "", busy, done or error; with a bar where the fraction is known."""
    bar = ""
    if fraction is not None:
        percent = round(100 * min(1.0, max(0.0, fraction)))
        bar = f'<div class="rc-track"><i style="width:{percent}%"></i></div>'
    role = "alert" if kind == "error" else "status"
    return f'<div class="rc-status {kind}" role="{role}" aria-live="polite"><span>{escape(words)}</span>{bar}</div>'


def loop_view(label: str, empty: str, **options: Any) -> gr.HTML:
    """A looping picture. value: {"url": file or data URL, "alt": words}, or {"empty": words}."""
    template = (
        f'<div class="rc-label">{escape(label)}</div>'
        f'<div class="rc-well"><img hidden alt=""><p class="rc-empty">{escape(empty)}</p></div>'
    )
    return _scripted("loop.js", template, {"empty": empty}, label=label, **options)


def cloud_view(label: str, empty: str, **options: Any) -> gr.HTML:
    """The point cloud. value: {"url": file of media.cloud_bytes, "plotly": URL}, or {"empty": words}."""
    template = (
        f'<div class="rc-label">{escape(label)}</div>'
        f'<div class="rc-well" role="img" aria-label="{escape(label)}"><div class="rc-cloud-view"></div>'
        f'<p class="rc-empty">{escape(empty)}</p></div>'
    )
    return _scripted("cloud.js", template, {"empty": empty}, label=label, **options)


def cloud_value(path: str | Path) -> dict[str, str]:
    return {"url": file_url(path), "plotly": file_url(plotly_script())}


def compare_view(**options: Any) -> gr.HTML:
    """Two videos in step. value: {"source": URL, "result": URL, "width": px, "height": px, "scroll": bool}."""
    template = """
<div class="rc-stage" data-layout="side">
  <figure><figcaption>Your clip</figcaption><video class="source" muted playsinline preload="auto"></video></figure>
  <figure><figcaption>Re-captured</figcaption><video class="result" muted playsinline preload="auto"></video></figure>
  <div class="rc-divider" role="slider" tabindex="0" aria-label="Divider between your clip and the result"
    aria-valuemin="0" aria-valuemax="100" aria-valuenow="50"></div>
</div>
<div class="rc-bar">
  <button type="button" class="rc-play" aria-label="Play both videos">Play</button>
  <input type="range" class="rc-scrub" min="0" max="1000" value="0" aria-label="Position in both videos">
  <span class="rc-time">0:00.0 / 0:00.0</span>
  <button type="button" class="rc-sound" aria-pressed="false">Sound off</button>
  <span class="rc-modes" role="group" aria-label="How to compare">
    <button type="button" data-mode="side">Side by side</button>
    <button type="button" data-mode="over">Divider</button>
  </span>
</div>"""
    return _scripted("compare.js", template, {}, label="Your clip beside the result", **options)


def example_strip(examples: Sequence[tuple[str, str]], **options: Any) -> gr.HTML:
    """Buttons with a picture each, (title, picture URL); a press triggers `pick` with {"index": i}."""
    buttons = "".join(
        f'<button type="button" data-index="{i}" aria-label="Use the example clip {escape(title)}">'
        f'<img src="{url}" alt=""><span>{escape(title)}</span></button>'
        for i, (title, url) in enumerate(examples)
    )
    template = f'<div class="rc-label">Or start from an example</div><div class="rc-strip">{buttons}</div>'
    return _scripted("examples.js", template, label="Example clips", **options)
