"""An object taken out of a clip and replaced: the request, what is measured, what is left alone, and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import write_depth

from pipeline import InputError, result_of
from pipeline.__main__ import main
from pipeline.media.video import Clip, read_video, write_video
from pipeline.method.inversecrafter import tell
from pipeline.method.methods import solve
from pipeline.method.problem import prepare
from pipeline.render.analysis import Analysis, analyse, hide
from pipeline.render.events import DoneEvent, FailedEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import look, measure
from pipeline.render.worker import fill

FRAMES, SIZE = 9, (64, 96)


def square(t: int) -> tuple[slice, slice]:
    return slice(16, 32), slice(8 + 7 * t, 24 + 7 * t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A clip of a red square that crosses a coarse pattern, and masks of it."""
    folder = tmp_path_factory.mktemp("replace")
    rng = np.random.default_rng(0)
    pattern = np.kron(rng.uniform(0.2, 0.8, (3, 8, 12)), np.ones((1, 8, 8))).astype(np.float32)
    frames, mask = torch.from_numpy(pattern).repeat(FRAMES, 1, 1, 1), np.zeros((FRAMES, *SIZE), bool)
    for t in range(FRAMES):
        mask[t][square(t)] = True
        frames[(t, slice(None), *square(t))] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    write_video(folder / "clip.mp4", Clip(frames, 12.0))
    np.savez(folder / "mask.npz", mask=mask)
    Image.fromarray((255 * mask[2]).astype(np.uint8)).save(folder / "frame2.png")
    write_depth(folder / "depth.npz", FRAMES, *SIZE)
    Image.fromarray(np.full((*SIZE, 3), [0, 0, 255], np.uint8)).save(folder / "blue.png")
    return folder


@pytest.fixture
def request_(folder, tiny_backbone_folder, tmp_path, monkeypatch) -> RenderRequest:
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    return RenderRequest.of(
        str(folder / "clip.mp4"),
        camera="still",
        backbone=str(tiny_backbone_folder),
        depth=str(folder / "depth.npz"),
        mask=str(folder / "mask.npz"),
        size=SIZE,
        frames=FRAMES,
        steps=2,
    )


def hidden(request: RenderRequest) -> Analysis:
    analysis = result_of(analyse(request))
    assert isinstance(analysis, Analysis)
    found = result_of(hide(analysis, request))
    assert isinstance(found, Analysis)
    return found


def report(request: RenderRequest, folder: Path) -> dict:
    *_, last = render(request, folder)
    assert isinstance(last, DoneEvent), last
    return last.result.report.to_dict()


def failure(request: RenderRequest, folder: Path) -> str:
    *_, last = render(request, folder)
    assert isinstance(last, FailedEvent), last
    return last.message


def test_the_clip_outside_of_the_object_is_what_is_measured(request_):
    analysis = hidden(request_.changed(grow=0))
    measurement = measure(analysis, request_)
    for t in range(FRAMES):
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[square(t)] = True
        assert torch.equal(measurement.mask[t, 0], ~inside)
    assert torch.equal(measurement.video, analysis.clip.frames * measurement.mask)
    grown = measure(hidden(request_.changed(grow=5)), request_).mask
    assert (grown <= measurement.mask).all() and grown.sum() < measurement.mask.sum()
    inverted = measure(hidden(request_.changed(grow=0, invert=True)), request_).mask
    assert torch.equal(inverted, ~measurement.mask)


def test_nothing_outside_of_the_object_changes(request_, tmp_path, monkeypatch):
    """Before video compression: bit for bit, but for the soft seam around what is replaced."""
    written = {}
    write = write_video
    keep = lambda path, clip, **options: written.update({path.name: clip.frames}) or write(path, clip, **options)
    monkeypatch.setattr("pipeline.render.run.write_video", keep)
    figures = report(request_.changed(latent_mask="reference"), tmp_path)
    source, result = written["source.mp4"], written["result.mp4"]
    mask = torch.from_numpy(np.load(request_.mask)["mask"])
    near = torch.nn.functional.max_pool2d(mask[:, None].float(), 13, 1, 6)[:, 0] > 0  # grown by 1, and a seam of 2
    assert torch.equal(result.permute(0, 2, 3, 1)[~near], source.permute(0, 2, 3, 1)[~near])
    assert not torch.equal(result, source)
    assert figures["hidden"] > 0 and figures["first_frame"]["from"] == "the model"


def test_the_reference_mask_is_the_training_free_one_where_the_camera_stands(request_):
    known, backbone = result_of(look(hidden(request_), request_)).known, get_backbone(request_.backbone)
    prepared = [
        prepare(backbone, known, request_.changed(latent_mask=name).guidance) for name in ("training-free", "reference")
    ]
    assert torch.equal(prepared[0].h, prepared[1].h)


def test_a_new_path_and_a_new_object_in_one_render(request_, tmp_path):
    both = report(request_.changed(camera="orbit-left", amount=10), tmp_path / "both")
    camera = report(request_.changed(camera="orbit-left", amount=10, mask=None), tmp_path / "camera")
    assert both["unknown"] > camera["unknown"] + 0.5 * both["hidden"] and camera["hidden"] is None
    wrong = request_.changed(camera="orbit-left", latent_mask="reference")
    assert "camera still" in failure(wrong, tmp_path / "wrong")


def test_the_prompt_is_followed_where_the_object_is_to_stand_and_nowhere_else(request_, tmp_path):
    """Along a new path other places are unknown too: a red ball is not to spread over them."""
    request = request_.changed(camera="orbit-left", amount=10, steps=1, solver="none")
    known, backbone = result_of(look(hidden(request), request)).known, get_backbone(request.backbone)
    object_ = torch.from_numpy(np.load(request.mask)["mask"])

    def solved(prompt, place, **given):
        guidance = request.changed(prompt=prompt, **{"guidance_scale": 7.0, **given}).guidance
        problem = prepare(backbone, replace(known, place=place), guidance)
        (step,) = solve(backbone, tell(backbone, problem, guidance))
        return problem.conditions.scale, step.z

    place, ball = solved("a red ball", object_)
    _, cone = solved("a green cone", object_)
    frames, height, width = 1 + (FRAMES - 1) // backbone.temporal, *(side // backbone.spatial for side in SIZE)
    assert place.shape == (1, frames, height, width)
    first = object_[0].unflatten(1, (width, -1)).unflatten(0, (height, -1)).any((1, 3))
    later = object_[1 : 1 + backbone.temporal].any(0).unflatten(1, (width, -1)).unflatten(0, (height, -1)).any((1, 3))
    assert torch.equal(place[0, 0] > 0, first) and torch.equal(place[0, 1] > 0, later)
    inside = (place > 0).expand_as(ball)
    assert not torch.equal(ball[inside], cone[inside]) and torch.equal(ball[~inside], cone[~inside])
    everywhere = [solved(prompt, None)[1] for prompt in ("a red ball", "a green cone")]
    assert not torch.equal(everywhere[0][~inside], everywhere[1][~inside])
    assert torch.equal(everywhere[0][inside], ball[inside])
    # what a negative prompt names is not painted elsewhere either
    negative = solved("a red ball", object_, negative_prompt="blurred")[1]
    unguided = solved("a red ball", None, guidance_scale=1.0)[1]
    assert torch.equal(negative[~inside], unguided[~inside])

    # and so in a render, which knows the place: where the new cameras would see the object
    asked = []
    work = fill
    keep = lambda ref, known, guidance: asked.append(known.place) or work(ref, known, guidance)
    given = request.changed(solver="dds", prompt="a red ball")
    *_, done = render(given, tmp_path / "new", fill=keep)
    assert isinstance(done, DoneEvent), done
    *_, done = render(given.changed(camera="still", amount=None), tmp_path / "still", fill=keep)
    *_, done = render(given.changed(mask=None), tmp_path / "none", fill=keep)
    moved, still, none = asked
    assert none is None and still[object_].all() and still.float().mean() < 2 * object_.float().mean()
    assert (moved != still).any() and 0.5 < moved.sum() / still.sum() < 2


def test_what_stood_behind_a_removed_object_is_found_in_other_frames(request_, folder, tmp_path):
    removed = request_.changed(remove=True)
    analysis = hidden(removed)
    assert analysis.hidden is not None and analysis.hidden.float().mean() < 0.01
    pattern = read_video(request_.clip).frames
    behind = pattern[(-1, slice(None), *square(0))]  # where the square was first, seen in the last frame
    error = (analysis.full.frames[(0, slice(None), *square(0))] - behind).abs().mean()
    assert error < 0.03
    notes = report(removed, tmp_path)["notes"]
    assert any("seen in other frames" in note for note in notes)


def test_the_fringe_of_what_is_hidden_is_not_carried_on(request_, tmp_path):
    frames = torch.full((5, 3, 150, 210), 0.5)
    frames[..., 51:98, 61:110] = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)
    (tmp_path / "square").mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray((255 * frame).byte().permute(1, 2, 0).numpy()).save(tmp_path / "square" / f"{t:03}.png")
    mask = np.zeros((150, 210), bool)
    mask[51:98, 61:110] = True
    np.savez(tmp_path / "square.npz", mask=np.stack([mask] * 5))
    write_depth(tmp_path / "depth.npz", 5, 150, 210)
    files = {"mask": str(tmp_path / "square.npz"), "depth": str(tmp_path / "depth.npz")}
    asked = request_.changed(clip=str(tmp_path / "square"), size=(64, 96), frames=5, grow=0, **files)
    before, analysis = result_of(analyse(asked)), hidden(asked)
    assert analysis.hidden is not None
    known = measure(analysis, asked).mask
    off = lambda clip: (clip.frames - 0.5).abs().amax(1, keepdim=True)[known].max()
    assert off(before.clip) > 0.05 and off(analysis.clip) < 0.01


def test_one_painted_frame_is_followed(request_, folder):
    analysis = hidden(request_.changed(mask=str(folder / "frame2.png"), mask_frame=2, grow=0))
    truth = torch.from_numpy(np.load(folder / "mask.npz")["mask"])
    assert analysis.hidden is not None
    overlap = (analysis.hidden & truth).sum() / (analysis.hidden | truth).sum()
    assert overlap > 0.8
    assert any("frame 3" in note for note in analysis.notes)


def test_the_first_frame_is_the_visitors_picture_where_it_is_unknown(request_, folder, tmp_path):
    request = request_.changed(first_frame=str(folder / "blue.png"), grow=0)
    analysis = hidden(request)
    measurement = measure(analysis, request)
    assert measurement.mask[0].all() and not measurement.mask[1].all()
    inside = measurement.video[(0, slice(None), *square(0))]
    assert torch.allclose(inside.mean((1, 2)), torch.tensor([0.0, 0.0, 1.0]), atol=0.02)
    assert torch.equal(measurement.video[0, :, 40:], analysis.clip.frames[0, :, 40:])
    assert report(request, tmp_path)["first_frame"]["from"] == "your picture"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "nowhere.png"}, "nowhere.png"),
        ({"mask": "{folder}/empty.npz"}, "empty.npz"),
        ({"mask": "{folder}/full.npz"}, "full.npz"),
        ({"mask": "{folder}/clip.txt"}, "clip.txt"),
        ({"mask": "{folder}/short.npz"}, "short.npz"),
        ({"mask": "{folder}/square.npz"}, "square.npz"),
        ({"mask": "{folder}/frame2.png", "mask_frame": 40}, "frame 40"),
        ({"grow": -10.0, "mask": "{folder}/thin.npz"}, "Nothing is left"),
        ({"first_frame": "{folder}/clip.txt"}, "clip.txt"),
        ({"first_frame": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_masks_that_cannot_be_used_end_in_a_message(request_, folder, tmp_path, changes, message):
    masks = {"empty": np.zeros((FRAMES, *SIZE), bool), "full": np.ones((FRAMES, *SIZE), bool)}
    masks |= {"short": np.ones((4, *SIZE), bool), "square": np.eye(64, dtype=bool), "thin": np.zeros(SIZE, bool)}
    masks["thin"][10:12] = True
    for name, mask in masks.items():
        np.savez(folder / f"{name}.npz", mask=mask)
    (folder / "clip.txt").write_text("not a picture")
    changes = {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in changes.items()}
    words = failure(request_.changed(**changes), tmp_path)
    assert message in words and len(words) < 400
    assert not (tmp_path / "result.mp4").exists()


@pytest.mark.parametrize(
    "changes",
    [{"mask": ""}, {"mask_frame": -1}, {"grow": 90.0}, {"grow": None}, {"remove": True, "mask": None}, {"invert": 1}],
)
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(InputError):
        RenderRequest.of(**({"clip": "a.mp4", "mask": "m.png"} | changes))


def test_the_command_line(request_, folder, tmp_path, capsys):
    common = ["--backbone", request_.backbone, "--size", "64x96", "--frames", str(FRAMES), "--depth", request_.depth]
    out, kept = tmp_path / "out.mp4", tmp_path / "kept"
    command = ["replace", request_.clip, "--mask", str(folder / "frame2.png"), "--frame", "2", "--steps", "1"]
    assert main([*command, *common, "--prompt", "a blue ball", "--output", str(out), "--keep", str(kept)]) == 0
    assert len(read_video(out).frames) == FRAMES
    assert 0.7 < np.load(kept / "measurement.npz")["mask"].mean() < 1
    command = ["replace", request_.clip, "--mask", request_.mask, "--remove", "--steps", "1"]
    assert main([*command, *common, "--output", str(out)]) == 0
    assert "seen in other frames" in capsys.readouterr().out
    assert (
        main(["warp", request_.clip, "--camera", "still", "--mask", request_.mask, *common, "--output", str(out)]) == 0
    )
    assert main(["replace", request_.clip, "--mask", "nowhere.png", *common, "--output", str(out)]) == 2
    assert "nowhere.png" in capsys.readouterr().err
