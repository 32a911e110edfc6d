"""What becomes of photographs that a visitor gives as a clip."""

import gradio as gr
import numpy as np
import pytest
from gradio import processing_utils
from PIL import Image

from pipeline import InputError
from pipeline.media.video import probe, read_video
from ui import widgets
from ui.photographs import joined


def photograph(path, grey, size=(64, 48)):
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(path)
    return str(path)


def test_one_file_is_the_clip_itself(tmp_path):
    assert joined(["any.avi"], tmp_path) == "any.avi"


def test_a_photograph_stays_one_where_ffmpeg_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(processing_utils, "ffmpeg_installed", lambda: True)
    monkeypatch.setattr(processing_utils, "video_is_playable", lambda path: False)
    monkeypatch.setattr(processing_utils, "convert_video_to_playable_mp4", lambda path, **_: pytest.fail("converted"))
    picture = photograph(tmp_path / "a.png", 40)
    part = widgets.shows_as_it_is(gr.Video(label="Clip"))
    for again in (part, made_anew(part)):
        shown = again.postprocess(picture)
        assert shown is not None and shown.path == picture and shown.orig_name == "a.png"


def made_anew(part):
    """As Gradio makes a part for a visitor with each update, `gr.skip()` among them."""
    made = part.__class__(**part.constructor_args)
    assert made.get_block_name() == part.get_block_name() and made.label == part.label
    return made


def test_what_comes_from_the_page_is_read_by_us_after_an_update_too():
    part = gr.Image(type="filepath")
    widgets.takes(part, lambda payload: ("read", payload))
    assert part.preprocess(None) == made_anew(part).preprocess(None) == ("read", None)
    assert part.get_block_name() == "image" and part.get_component_class_id() == gr.Image.get_component_class_id()


def test_several_photographs_are_shown_in_turn(tmp_path):
    files = [photograph(tmp_path / "b.png", 40), photograph(tmp_path / "a.png", 200, (81, 91))]
    clip = joined(files, tmp_path)
    info, frames = probe(clip), read_video(clip).frames
    assert (info.width, info.height, info.frames, info.playable) == (64, 48, 24, True)
    greys = 255 * frames.mean(dim=(1, 2, 3))
    assert greys[:12].numpy() == pytest.approx(40, abs=3) and greys[12:].numpy() == pytest.approx(200, abs=3)


def test_a_film_among_photographs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"b\.gif is no photograph"):
        joined([photograph(tmp_path / "a.png", 40), photograph(tmp_path / "b.gif", 40)], tmp_path)
