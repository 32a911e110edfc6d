"""The paths that clips were filmed along: of another clip, and a clip's own, smoothed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_gather import WALKING, H, T, W, film, path_of

from pipeline import InputError, result_of
from pipeline.camera.files import read_move
from pipeline.camera.moves import preset_move, sample_move
from pipeline.cli.parser import parser
from pipeline.media.quality import psnr
from pipeline.media.video import to_uint8
from pipeline.render.analysis import analyse
from pipeline.render.filmed import looking_at, move_of_clip, smoothed, stabilised
from pipeline.render.request import RenderRequest
from pipeline.render.view import measure


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))


def filmed(folder, path, backbone) -> RenderRequest:
    """A request of a clip filmed along a path past a wall, with its depth, at its own size."""
    frames, z, _ = film(path, card=False)
    folder.mkdir()
    for number, picture in enumerate(to_uint8(frames)):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    np.savez(folder / "z.npz", z=z.numpy())
    files = {"depth": str(folder / "z.npz"), "depth_kind": "metric"}
    return RenderRequest.of(str(folder), **files, backbone=str(backbone), frames=T, size=(H, W))


def move_from(request):
    return result_of(move_of_clip(request, analyse(request)))


def test_a_clips_own_motion_applied_to_its_first_frame_returns_its_frames(tmp_path, tiny_backbone_folder):
    request = filmed(tmp_path / "clip", WALKING, tiny_backbone_folder)
    clip, move = result_of(analyse(request)).clip.frames, move_from(request)
    assert f"{T} of its frames" in move.origin and "one distance to the subject" in move.origin
    still = request.changed(clip=str(tmp_path / "clip" / "000.png"), frames=T, move=move)
    seen = measure(result_of(analyse(still)), still)
    assert seen.mask.float().mean() > 0.9
    where_known = psnr(seen.video, clip, seen.mask)
    as_filmed = psnr(clip[:1].expand_as(clip), clip, seen.mask)
    assert where_known > 40 and as_filmed < 20


def test_the_move_has_the_distance_of_its_own_subject_as_the_unit(tmp_path, tiny_backbone_folder):
    request = filmed(tmp_path / "clip", WALKING, tiny_backbone_folder)
    far = np.load(tmp_path / "clip" / "z.npz")["z"] * 10
    np.savez(tmp_path / "far.npz", z=far)
    near, far = (move_from(each) for each in (request, request.changed(depth=str(tmp_path / "far.npz"))))
    (a, _), (b, _) = (sample_move(move, T, 55.0) for move in (near, far))
    assert (a - b).abs().max() < 1e-3
    assert a[-1, 0, 3] == pytest.approx(float(WALKING.world_from_cam[-1, 0, 3]) / 8, abs=0.01)


def test_a_clip_whose_camera_stands_still_moves_nothing(tmp_path, tiny_backbone_folder):
    move = move_from(filmed(tmp_path / "clip", path_of([([0, 0, 0], [0, 0, 0])] * T), tiny_backbone_folder))
    assert all(keyframe.eye == (0, 0, 0) and keyframe.target[:2] == (0, 0) for keyframe in move.keyframes)


def test_what_has_no_motion_to_take(tmp_path, tiny_backbone_folder):
    for name, picture in (("grey", np.full((H, W, 3), 128, np.uint8)), ("black", np.zeros((H, W, 3), np.uint8))):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    request = RenderRequest.of(str(tmp_path / "grey.png"), backbone=str(tiny_backbone_folder))
    with pytest.raises(InputError, match="single picture"):
        move_from(request)
    with pytest.raises(InputError, match="was not found"):
        move_from(request.changed(clip=str(tmp_path)))


def test_on_the_command_line(tmp_path, tiny_backbone_folder, capsys):
    request = filmed(tmp_path / "clip", WALKING, tiny_backbone_folder)
    words = ["camera", "--camera-from-clip", request.clip, "--time", "reverse", "--output", str(tmp_path / "path.json")]
    options = parser().parse_args(words)
    options.run(options)
    move = read_move(tmp_path / "path.json")
    assert len(move.keyframes) == T and move.timing == ((0, 1), (1, 0)) and "as in clip" in move.origin
    options = parser().parse_args([*words, "--amount", "3"])
    with pytest.raises(InputError, match="says how far"):
        options.run(options)


def jerk(poses: torch.Tensor) -> float:
    """How much the places of cameras differ from the middle of their neighbours."""
    place = poses[:, :3, 3]
    return (place[2:] - 2 * place[1:-1] + place[:-2]).norm(dim=-1).mean().item()


def test_smoothing_keeps_what_is_smooth():
    poses = WALKING.world_from_cam.double()
    assert torch.equal(smoothed(poses, 0), poses)
    still = torch.eye(4).repeat(T, 1, 1).double()
    assert torch.allclose(smoothed(still, 5), still)
    assert jerk(smoothed(poses, 4)) < 0.6 * jerk(poses)
    assert torch.allclose(smoothed(poses, 4)[:, :3, :3].det(), torch.ones(T).double())


def test_a_stabilised_clip_is_filmed_along_its_own_path_smoothed(tmp_path, tiny_backbone_folder):
    analysis = result_of(analyse(filmed(tmp_path / "clip", WALKING, tiny_backbone_folder)))
    own, distance = WALKING.world_from_cam.double(), analysis.distance
    for seconds in (0.0, 0.2):
        motion, _ = sample_move(stabilised(analysis, seconds), T, 55.0)
        motion[:, :3, 3] *= distance
        wanted = smoothed(own, 24 * seconds)
        assert (own @ motion - wanted).abs().max() < 0.02 * distance
    assert jerk(own @ motion) < 0.5 * jerk(own)
    with pytest.raises(InputError, match="60 seconds"):
        stabilised(analysis, 61)


def test_stabilise_on_the_command_line(tmp_path, tiny_backbone_folder):
    request = filmed(tmp_path / "clip", WALKING, tiny_backbone_folder)
    given = ["--depth", request.depth, "--depth-kind", "metric", "--backbone", request.backbone, "--size", f"{H}x{W}"]
    words = ["warp", request.clip, *given, "--stabilise", "0.3", "--output", str(tmp_path / "out.mp4")]
    options = parser().parse_args(words)
    options.run(options)
    assert (tmp_path / "out.mp4").is_file()
    for more, message in ((["--camera", "truck"], "of its own"), (["--time", "reverse"], "as it was filmed")):
        options = parser().parse_args([*words, *more])
        with pytest.raises(InputError, match=message):
            options.run(options)


def test_a_camera_looks_at_what_moves(tmp_path, tiny_backbone_folder):
    """A card passes before the wall: along any path its middle stays in the picture's."""
    frames, z, wall = film(path_of([([0, 0, 0], [0, 0, 0])] * T))
    request = filmed(tmp_path / "clip", path_of([([0, 0, 0], [0, 0, 0])] * T), tiny_backbone_folder)
    for number, picture in enumerate(to_uint8(frames)):
        Image.fromarray(picture).save(tmp_path / "clip" / f"{number:03d}.png")
    np.savez(tmp_path / "clip" / "z.npz", z=z.numpy())
    analysis = result_of(analyse(request))
    for move in (preset_move("still"), preset_move("truck", 30)):
        found = looking_at(move, analysis, ~wall)
        eyes, _ = sample_move(move, T, 55.0)
        poses, _ = sample_move(found, T, 55.0)
        assert torch.allclose(poses[:, :3, 3], eyes[:, :3, 3], atol=1e-6)
        turned = replace(request, move=found)
        seen = measure(analysis, turned).video
        red = (seen[:, 0] > 0.7) & (seen[:, 1:].amax(1) < 0.3)
        for t in (0, T // 2, T - 1):
            middle = red[t].nonzero().double().mean(0) + 0.5
            assert (middle - torch.tensor([H / 2, W / 2])).abs().max() < 0.08 * W, t
    with pytest.raises(InputError, match="nowhere"):
        looking_at(move, analysis, torch.zeros_like(wall))


def test_look_at_on_the_command_line(tmp_path, tiny_backbone_folder):
    request = filmed(tmp_path / "clip", path_of([([0, 0, 0], [0, 0, 0])] * T), tiny_backbone_folder)
    mask = np.zeros((H, W), np.uint8)
    mask[30:60, 80:120] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ["--depth", request.depth, "--depth-kind", "metric", "--backbone", request.backbone, "--size", f"{H}x{W}"]
    words = ["warp", request.clip, *given, "--camera", "still", "--look-at", str(tmp_path / "mask.png")]
    options = parser().parse_args([*words, "--output", str(tmp_path / "out.mp4")])
    options.run(options)
    assert (tmp_path / "out.mp4").is_file()
