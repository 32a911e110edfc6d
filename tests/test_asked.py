"""What cannot be done is said before any work; pictures that come from a page harm nothing and nobody."""

import io
import json
import shutil
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
from pipeline.__main__ import main
from pipeline.camera.files import read_move
from pipeline.camera.moves import Keyframe, Move
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


@pytest.fixture
def backbone(tiny_backbone_folder, tmp_path):
    """A function that makes the tiny backbone with other words in its configurations."""

    def make(name: str, **given) -> str:
        folder = shutil.copytree(tiny_backbone_folder, tmp_path / "backbone")
        kept = json.loads((folder / name).read_text()) | given
        (folder / name).write_text(json.dumps(kept))
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("asked", "name", "given", "words"),
    [
        ({"fast": "lora", "accepted": ("causvid-lora",)}, "recapture.json", {}, "fits Wan 2.1 1.3B"),
        ({"fast": "cache"}, "transformer/config.json", {"num_layers": 1}, "one block only"),
        ({"latent_mask": "learned"}, "recapture.json", {"mask_encoder": None}, "has no mask encoder"),
        ({"latent_mask": "reference"}, "recapture.json", {}, "needs the clean target video"),
    ],
    ids=["lora", "cache", "learned mask", "reference mask"],
)
def test_what_the_model_or_the_path_cannot_serve_is_refused_at_the_start(tmp_path, backbone, asked, name, given, words):
    clip = str(write_clip(tmp_path / "clip.mp4"))
    request = RenderRequest.of(clip, backbone=backbone(name, **given), **asked)
    (event,) = render(request, tmp_path / "job")
    assert isinstance(event, FailedEvent) and words in event.message


def zoom(path, *focal: float, size=(64, 96)):
    """A camera file of nerfstudio's in which nothing but the focal length may change."""
    frames = [{"file_path": f"{n}.png", "fl_x": f, "transform_matrix": np.eye(4).tolist()} for n, f in enumerate(focal)]
    path.write_text(json.dumps({"w": size[1], "h": size[0], "frames": frames}))
    return path


def test_a_zoom_is_refused_before_the_clip_is_read(tmp_path, capsys):
    clip, path = str(write_clip(tmp_path / "clip.mp4")), zoom(tmp_path / "zoom.json", 80.0, 90.0)
    arguments = ["recapture", clip, "--camera", str(path), "--latent-mask", "reference"]
    assert main([*arguments, "--backbone", "nano", "--output", str(tmp_path / "out.mp4")]) == 2
    said = capsys.readouterr()
    assert "needs the clean target video" in said.err and "Reading" not in said.out
    with pytest.raises(InputError, match="clean target video"):  # what the app asks before a render waits for its turn
        check_asked(RenderRequest.of(clip, move=read_move(path), latent_mask="reference"))


@pytest.mark.parametrize("still", [True, False], ids=["the clip's lens", "another lens"])
@pytest.mark.parametrize("kind", ["clip", "picture"])
def test_another_lens_is_refused_before_depth_is_estimated(tmp_path, tiny_backbone_folder, still, kind):
    """Which lens the clip was filmed with is known only when it is read."""
    clip = write_clip(tmp_path / "clip.mp4", height=64, width=96)
    if kind == "picture":
        clip = tmp_path / "picture.png"
        Image.new("RGB", (96, 64), (90, 120, 60)).save(clip)
    move = Move((Keyframe(0.0, fov=40.0 if still else 40.5),))
    request = RenderRequest.of(
        str(clip), move=move, fov=40.0, size=(64, 96), latent_mask="reference", backbone=str(tiny_backbone_folder)
    )

    def find_depth(*_):
        yield from ()
        raise InputError("depth was looked for")

    *_, last = render(request, tmp_path / "job", find_depth=find_depth)
    assert isinstance(last, FailedEvent)
    assert ("depth was looked for" if still else "clean target video") in last.message


def test_the_second_eye_is_refused_before_the_first_is_rendered(tmp_path):
    request = RenderRequest.of(
        str(write_clip(tmp_path / "clip.mp4")), camera="still", stereo=2.0, latent_mask="reference"
    )
    (event,) = render(request, tmp_path / "job")
    assert isinstance(event, FailedEvent) and "clean target video" in event.message


@pytest.mark.parametrize("wrong", ["output", "steps", "first frame", "mask"])
def test_what_is_wrong_is_said_before_a_clip_is_analysed_for_its_path(tmp_path, tiny_backbone_folder, capsys, wrong):
    clip, damaged = str(write_clip(tmp_path / "clip.mp4")), tmp_path / "cut.png"
    damaged.write_bytes(BAD["cut.png"])
    arguments = ["recapture", clip, "--backbone", str(tiny_backbone_folder)]
    arguments += ["--look-at", str(damaged)] if wrong == "mask" else ["--stabilise", "1"]
    arguments += ["--steps", "0"] if wrong == "steps" else []
    arguments += ["--first-frame", str(damaged)] if wrong == "first frame" else []
    output = tmp_path / ("out.avi" if wrong == "output" else "out.mp4")
    assert main([*arguments, "--output", str(output)]) == 2
    said = capsys.readouterr()
    assert "Reading" not in said.out and said.err.startswith("error: ")
    assert {"output": "must end in .mp4", "steps": "steps must be"}.get(wrong, "cut.png") in said.err


def test_what_is_served_is_not_refused(tmp_path, tiny_backbone_folder):
    asked = {"latent_mask": "reference", "camera": "orbit-left", "amount": 0.0}, {"latent_mask": "learned"}
    for given in (*asked, {"fast": "cache"}, {"latent_mask": "reference", "solver": "none"}):
        check_asked(RenderRequest.of("clip.mp4", backbone=str(tiny_backbone_folder), **given))


def test_the_few_step_lora_is_missed_at_the_start(tmp_path, monkeypatch, tiny_backbone_folder):
    from pipeline.models import hub
    from pipeline.prior.fast import FEW_STEPS

    folder = shutil.copytree(tiny_backbone_folder, tmp_path / "backbone")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    sizes = {"num_attention_heads": 12, "attention_head_dim": FEW_STEPS.width // 12, "num_layers": FEW_STEPS.layers}
    (folder / "transformer" / "config.json").write_text(json.dumps(config | sizes))
    monkeypatch.setattr(hub, "at_hand", lambda ref: None)
    monkeypatch.setattr(hub, "hub_answers", lambda *_: False)
    monkeypatch.setattr("pipeline.prior.fast.find_spec", lambda name: True)
    request = RenderRequest.of("clip.mp4", backbone=str(folder), fast="lora", accepted=(FEW_STEPS.model,))
    with pytest.raises(InputError, match="models --download causvid-lora"):
        check_asked(request)


@pytest.mark.parametrize("kind", ["cut.png", "cut.npz", "zeros.npz", "words.mp4", "folder"])
def test_a_damaged_mask_is_refused_at_the_start(tmp_path, kind):
    path = tmp_path / kind
    if kind == "cut.npz":
        np.savez(path, mask=np.ones((5, 64, 96), bool))
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "zeros.npz":
        path.write_bytes(bytes(3000))
    elif kind == "folder":
        path.mkdir()
        (path / "0.png").write_bytes(BAD["cut.png"])
    else:
        path.write_bytes(BAD.get(kind, b"these are words"))
    request = RenderRequest.of(str(write_clip(tmp_path / "clip.mp4")), mask=str(path))
    (event,) = render(request, tmp_path / "job")
    assert isinstance(event, FailedEvent) and (kind in event.message or "0.png" in event.message)


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
