"""What the page says, in words."""

from __future__ import annotations

from html import escape

from pipeline.camera.moves import MOVES
from pipeline.render.analysis import Analysis
from pipeline.render.request import RenderRequest, amount_of
from ui.jobs import JobView


def duration_words(seconds: float) -> str:
    if seconds < 1.5:
        return "about a second"
    if seconds < 90:
        return f"about {round(seconds)} seconds"
    return f"about {round(seconds / 60)} minutes"


def preview_words(by: str) -> str:
    return f'<p class="rc-caption">Preview by {escape(by)}.</p>' if by else ""


def share_words(share: float, other_frames: bool) -> str:
    """other_frames: whether what those saw is put in first."""
    percent = 100 * share
    if percent < 0.5:
        return "Almost everything is seen by your clip from here."
    by = "what other frames saw is put in, the model fills in the rest" if other_frames else "the model will fill it in"
    return f"{percent:.0f} % of the picture is unknown from here (checkered): {by}."


def progress_words(view: JobView) -> str:
    left = f" · {duration_words(view.seconds_left)} left" if view.seconds_left is not None else ""
    return view.message + left


def change_words(request: RenderRequest) -> str:
    """What a render changes of its clip: "Orbit left, 20 degrees, an object removed"."""
    words = []
    if request.move is not None:
        words.append("Your own camera path")
    else:
        preset, amount = MOVES[request.camera], amount_of(request)
        words.append(f"{preset.label}, {amount:g} {preset.unit}" if amount else preset.label)
    if request.mask:
        what = "the surroundings" if request.invert else "an object"
        if request.remove:
            words.append(f"{what} removed")
        else:
            prompt = request.guidance.prompt
            words.append(f"{what} replaced" + (f": “{prompt}”" if prompt else ""))
    return ", ".join(words)


def analysis_words(analysis: Analysis, seconds: float | None = None) -> str:
    """What was found, in a sentence or two. seconds: that a render is expected to take; None if that is not known."""
    frames, _, height, width = analysis.clip.frames.shape
    length = frames / max(analysis.fps, 0.1)
    takes = "" if seconds is None else f" A render takes {duration_words(seconds)} here."
    return (
        f"Ready: {frames} frames, {length:.1f} seconds, worked on at {width} × {height}.{takes} In the depth, near is "
        "bright."
    )
