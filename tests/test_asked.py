"""What cannot be done is said before any work; pictures that come from a page harm nothing and nobody."""

import io
import struct
import zlib

import gradio as gr
import numpy as np
import pytest
import torch
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData, ImageData
from PIL import Image
from synthetic import write_clip

from pipeline import InputError
from pipeline.media.video import read_paint
from pipeline.render.events import FailedEvent
from pipeline.render.request import RenderRequest, check_asked
from pipeline.render.run import render
from ui.mask_editor import mask_editor, replace_tab


def declared(width: int, height: int) -> bytes:
    """A PNG that says how large it is and then ends."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(file, kind)
    return file.getvalue()


SIDES = struct.pack("<HH", 30000, 30000)
BAD = {
    "cut.png": saved("PNG")[:900],
    "cut.jpg": saved("JPEG")[:900],
    "declared.png": declared(30000, 30000),
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>',
    "text.png": b"these are words",
    "bomb.gif": b"GIF89a" + SIDES + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0" + SIDES + b"\0\x02\x02\x44\x01\0;",
}


@pytest.mark.parametrize("memory", ["fp8", "fp8-groups", "groups", "offload", "tiles"])
def test_a_way_to_use_a_gpu_is_refused_at_the_start_where_there_is_none(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = RenderRequest.of(str(write_clip(tmp_path / "clip.mp4")), memory=memory)
    (event,) = render(request, tmp_path / "job")
    assert isinstance(event, FailedEvent) and "this machine has none; leave it at auto" in event.message


@pytest.mark.parametrize("name", ["depth", "mask", "first_frame"])
def test_a_file_that_is_not_there_is_missed_at_the_start(tmp_path, name):
    request = RenderRequest.of(str(write_clip(tmp_path / "clip.mp4")), **{name: str(tmp_path / "none.png")})
    (event,) = render(request, tmp_path / "job")
    assert isinstance(event, FailedEvent) and "none.png" in event.message


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_first_frame_is_refused_in_words_and_by_the_pipeline(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with gr.Blocks():
        part = replace_tab(2.0).controls["first_frame"]
    path = part.preprocess(ImageData(path=str(tmp_path / name), orig_name=name))
    assert path == str(tmp_path / name), "Gradio must not open it"
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        check_asked(RenderRequest.of("clip.mp4", first_frame=path))


@pytest.mark.parametrize("name", BAD)
def test_damaged_paint_is_refused_in_words_and_decoded_elsewhere(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    file = FileData(path=str(tmp_path / name), orig_name=name)
    value = mask_editor().preprocess(EditorData(background=file, layers=[file], composite=file))
    assert value == {"layers": [str(tmp_path / name)]}, "Gradio must not open it"
    for layer in (value["layers"][0], BAD[name]):
        with pytest.raises(InputError):
            read_paint(layer)


def test_paint_is_read_as_it_was_painted(tmp_path):
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[10:20, 5:30] = (255, 45, 85, 153)
    Image.fromarray(layer).save(tmp_path / "painted.png")
    for picture in (tmp_path / "painted.png", (tmp_path / "painted.png").read_bytes()):
        assert np.array_equal(read_paint(picture), layer[..., 3] > 0)
