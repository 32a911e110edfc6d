"""The parts of the page that Gradio does not have: status lines, looping pictures, the camera editor, the comparison.

Each is a plain `gr.HTML` with a static template and a script; Python talks to it through `value` alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from abc import ABCMeta
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from pipeline import InputError
from pipeline.camera.files import FORMATS
from pipeline.camera.moves import EASES, SPEEDS, TIMINGS
from pipeline.media.files import is_full

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"


def same_file(source: Path, target: Path) -> None:
    """Another name of a file, or a copy where the disk knows no second name."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def file_url(path: str | Path) -> str:
    """Where the page finds a file of ours; the scripts put the server's root in front."""
    return f"/gradio_api/file={Path(path).as_posix()}"


def plotly_script() -> Path:
    """plotly.js as the Python package ships it: no other server is asked."""
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def _scripted(script: str, template: str, value: Any = None, *, prelude: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=prelude + (STATIC / script).read_text(encoding="utf-8"),
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


def failure_words(error: Exception) -> str:
    """What to tell the visitor; what we did not foresee goes to the log."""
    if isinstance(error, InputError):
        return without_paths(str(error))
    if is_full(error):
        return "The disk of the server is full. Nothing you set is lost; please try again later."
    log.exception("unexpected", exc_info=error)
    return f"Something went wrong in the program ({type(error).__name__}). Nothing you set is lost; please try again."


def takes(part: Any, read: Callable[[Any], Any]) -> None:
    """Let a part of Gradio's hand on what comes from the page by a function of ours.

    What pictures it would decode itself, in this process and before our handlers are asked.
    """
    _with(part, "preprocess", read)


def shows_as_it_is(part: gr.Video) -> gr.Video:
    """Let Gradio's video show a file as it is.

    Where FFmpeg is installed Gradio would make a film of what no browser plays, and put that in its place: of a
    photograph one of a single frame.
    """
    as_it_is = lambda value: None if value is None else FileData(path=str(value), orig_name=Path(value).name)
    _with(part, "postprocess", as_it_is)
    return part


def _with(part: Any, name: str, function: Callable[[Any], Any]) -> None:
    """Give a part a method of ours in a class of its own.

    With each update Gradio makes the part anew from its class, for that visitor: what only the part has would be lost.
    The class is made without Gradio's metaclass, which writes a file beside the source of each.
    """
    kind = type(part)
    methods = {name: lambda self, value: function(value), "__module__": kind.__module__}
    part.__class__ = ABCMeta.__new__(type(kind), kind.__name__, (kind,), methods)


def without_paths(words: str) -> str:
    """Words for a visitor, with the files named but not where the server keeps them."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[\\/][\w.+@~-]+)+[\\/]([\w.+@~-]+)", r"\1", words)


def loop_view(label: str, empty: str, **options: Any) -> gr.HTML:
    """A looping picture. value: {"url": file or data URL, "alt": words}, or {"empty": words}."""
    template = (
        f'<div class="rc-label">{escape(label)}</div>'
        f'<div class="rc-well"><img hidden alt=""><p class="rc-empty">{escape(empty)}</p></div>'
    )
    return _scripted("loop.js", template, {"empty": empty}, label=label, **options)


def camera_editor(empty: str, **options: Any) -> gr.HTML:
    """The camera path in the clip's point cloud.

    value: {"clouds": URLs of media.cloud_files, "plotly": URL, "width", "height", "fov", "frames", "fps", "move": as
    Move.to_dict, "own": whether the visitor made it, "serial": changes with a move that Python brings}, or
    {"empty": words}; "download": URL of a file for the visitor. Triggers `edit` with {"at": time of the chosen
    keyframe}, `reset`, and `save` with {"format": a name of camera_files.FORMATS}.
    """
    button = lambda do, words, hint="": (
        f'<button type="button" data-do="{do}" title="{escape(hint or words)}">{escape(words)}</button>'
    )
    number = lambda name, words, step="0.01": (
        f'<label>{escape(words)}<input type="number" data-field="{name}" step="{step}" aria-label="{escape(words)}">'
        "</label>"
    )

    def place(name: str, title: str) -> str:
        fields = "".join(
            f'<input type="number" step="0.05" data-field="{name}-{axis}" aria-label="{escape(title)}, {words}"'
            f' title="{words}">'
            for axis, words in enumerate(("right", "up", "forward"))
        )
        return f'<div class="rc-place"><span>{escape(title)}</span>{fields}</div>'

    speeds = "".join(f'<option value="{name}">{escape(words)}</option>' for name, words in SPEEDS.items())
    eases = "".join(f'<option value="{name}">{escape(words)}</option>' for name, words in EASES.items())
    kinds = {name: words for name, (words, _) in TIMINGS.items()}
    kinds |= {"frozen": "Stands still at this moment", "own": "Your own curve"}
    timings = "".join(f'<option value="{name}">{escape(words)}</option>' for name, words in kinds.items())
    formats = "".join(f'<option value="{name}">{escape(label)}</option>' for name, (label, _) in FORMATS.items())
    template = f"""
<div class="rc-tools" role="toolbar" aria-label="Camera path">
  {button("undo", "Undo", "Undo (Ctrl+Z)")}{button("redo", "Redo", "Redo (Ctrl+Shift+Z)")}
  {button("add", "Add this view", "Add a keyframe where you look from (K)")}
  {button("split", "Add on path", "Add a keyframe on the path, at the moment of the slider")}
  {button("set", "Set to this view", "Put the chosen keyframe where you look from")}
  {button("target", "Look at …", "Click the point that the chosen keyframe looks at (T)")}
  {button("sketch", "Draw from above", "Draw the path over the clip, seen from above")}
  {button("keep", "Keep", "Keep this path, to compare others with it")}
  {button("remove", "Delete", "Delete the chosen keyframe (Del)")}{button("clear", "Clear", "Start anew")}
  {button("reset", "Reset", "Back to the named move")}
</div>
<div class="rc-well" tabindex="0" role="application" aria-label="Point cloud of your clip with the camera path">
  <div class="rc-cloud-view"></div><svg class="rc-overlay" aria-hidden="true"></svg>
  <div class="rc-views" role="group" aria-label="Where to look from">
    {button("home", "Overview", "Look at the path from behind (H)")}
    {button("source", "As filmed", "Look from where the clip was filmed")}
    {button("stand", "At keyframe", "Look from the chosen keyframe")}
  </div>
  <p class="rc-empty">{escape(empty)}</p>
</div>
<div class="rc-bar rc-playbar">
  {button("play", "Play", "Play or pause (P)")}
  <input type="range" data-field="moment" min="0" max="1000" value="0" aria-label="Moment of the clip">
  <span class="rc-moment rc-time">Frame 1</span>
  {button("through", "Through the camera", "Look through the camera that travels the path")}
</div>
<p class="rc-editor-words" role="status" aria-live="polite"></p>
<div class="rc-keys-row"><span class="rc-which">Keyframe 1</span><span class="rc-keys" role="group"
  aria-label="Keyframes"></span>{button("earlier", "Earlier", "Swap with the keyframe before")}{
        button("later", "Later", "Swap with the keyframe after")
    }</div>
<div class="rc-keys-row rc-kept-row" hidden><span class="rc-which">Kept paths</span><span class="rc-keys rc-kept"
  role="group" aria-label="Kept paths"></span>{button("forget", "Forget", "Forget the kept path that is shown")}</div>
<div class="rc-inspector">
  {place("eye", "Stands")}{place("target", "Looks at")}
  <div class="rc-numbers">{number("time", "Time %", "1")}{number("roll", "Roll °", "1")}{
        number("fov", "Field of view °", "1")
    }{number("lens", "Lens mm", "1")}
  <label>To the next<select data-field="ease" aria-label="How the camera goes on to the next keyframe">{eases}</select>
  </label></div>
</div>
<div class="rc-travel">
  <label>Travel<select data-field="speed" aria-label="How the camera travels">{speeds}</select></label>
  <label>Time<select data-field="timing" aria-label="How the clip's time runs">{timings}</select></label>
  <label>Save path as<select data-field="format" aria-label="Format of the file">{formats}</select></label>
  {button("save", "Save", "Download the camera path")}
</div>
<div class="rc-curve" hidden><svg role="group" aria-label="Time curve: the clip's moment over the result's time"></svg>
  <p>To the right the new clip's time, upwards yours. Drag a point; double-click to add or remove one.</p></div>"""
    named = json.dumps({name: timing for name, (_, timing) in TIMINGS.items()})
    parts = [(STATIC / name).read_text(encoding="utf-8") for name in ("camera_path.js", "time_curve.js")]
    script = "\n".join([*parts, f"const TIMINGS = {named};\n"])
    return _scripted("camera_editor.js", template, {"empty": empty}, prelude=script, label="Camera path", **options)


def unknown_strip(shares: Sequence[float]) -> str:
    """How much of each frame is unknown, over time: an SVG of bars; the text says it for those who do not see it."""
    bars = "".join(
        f'<rect x="{i}" y="{1 - share:.4f}" width="0.9" height="{max(share, 0.004):.4f}"/>'
        for i, share in enumerate(shares)
    )
    worst = max(range(len(shares)), key=lambda i: shares[i])
    words = f"Unknown share of each frame; most in frame {worst + 1}: {100 * shares[worst]:.0f} %."
    return (
        f'<div class="rc-unknown"><svg viewBox="0 0 {len(shares)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}">{bars}</svg><span>{words}</span></div>'
    )


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
    return example_cards(template, **options)


def example_cards(template: str, **options: Any) -> gr.HTML:
    """Buttons with a data-index; a press triggers `pick` with {"index": i}."""
    return _scripted("examples.js", template, label="Example clips", **options)
