"""What becomes of photographs that a visitor gives as a clip."""

import numpy as np
import pytest
from PIL import Image

from pipeline import InputError
from pipeline.media.video import probe, read_video
from ui.photographs import joined


def photograph(path, grey, size=(64, 48)):
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(path)
    return str(path)


def test_one_file_is_the_clip_itself(tmp_path):
    assert joined(["any.avi"], tmp_path) == "any.avi"


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
