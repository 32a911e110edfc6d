import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import InputError
from pipeline.camera.geometry import PRESETS, default_intrinsics, invert_rigid, project, static_path, transform
from pipeline.camera.moves import (
    EASES,
    MOVES,
    SPEEDS,
    TIMINGS,
    Keyframe,
    Move,
    fov_of,
    frames_at,
    move_from_poses,
    pace_of,
    preset_move,
    sample_move,
    standing_at,
    target_path,
    timing_of,
)
from pipeline.cli.parser import parser
from pipeline.world.cameras import preset_motion

FOV = 55.0
WINDING = Move(
    (
        Keyframe(0.0),
        Keyframe(0.3, (0.4, -0.1, 0.1), (0.1, 0.0, 1.0), roll=5.0),
        Keyframe(0.45, (0.5, -0.2, 0.3), (0.2, 0.1, 1.2), roll=-10.0, fov=40.0),
        Keyframe(1.0, (-0.3, 0.2, -0.2), (0.0, 0.0, 1.0), fov=70.0),
    )
)


@pytest.mark.parametrize("name", MOVES)
def test_every_move_is_rigid_and_starts_where_the_clip_was_filmed(name):
    poses, fov = sample_move(preset_move(name), 21, FOV)
    assert poses.shape == (21, 4, 4) and fov.shape == (21,)
    assert torch.allclose(poses[0], torch.eye(4).double(), atol=1e-9)
    assert fov[0] == FOV
    assert torch.allclose(invert_rigid(poses) @ poses, torch.eye(4).double().expand(21, 4, 4), atol=1e-12)
    moves = (poses[1:] - poses[:-1]).abs().amax(dim=(1, 2)).max() > 0 or (fov[1:] != fov[:-1]).any()
    assert moves == (name != "still")
    assert (sample_move(preset_move(name, 0.0), 21, FOV)[0] - torch.eye(4).double()).abs().max() < 0.6 * (
        name == "arc-dolly-zoom"  # it still goes back half a distance
    ) + 1e-9


@pytest.mark.parametrize("name", PRESETS)
def test_the_six_moves_as_keyframes_are_those_of_the_paper(name):
    for amount in (None, PRESETS[name].range[1] / 2):
        poses, _ = sample_move(preset_move(name, amount), 17, FOV)
        assert torch.allclose(poses.float(), preset_motion(name, amount, 17, 1.0), atol=3e-3)


def test_the_path_passes_through_its_keyframes():
    poses, fov = sample_move(WINDING, 101, FOV)
    for keyframe in WINDING.keyframes:
        at = round(100 * keyframe.time)
        assert poses[at, :3, 3].tolist() == pytest.approx(keyframe.eye, abs=1e-9)
        assert fov[at].item() == pytest.approx(keyframe.fov or FOV)
        aim = torch.tensor(keyframe.target).double() - poses[at, :3, 3]
        assert torch.allclose(poses[at, :3, 2], aim / aim.norm(), atol=1e-9)
        level = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).double(), aim)
        turned = math.degrees(math.acos(float((level / level.norm() @ poses[at, :3, 0]).clamp(-1, 1))))
        assert turned == pytest.approx(abs(keyframe.roll), abs=1e-5)


def test_it_is_smooth_and_the_up_vector_never_flips():
    poses, _ = sample_move(WINDING, 2001, FOV)
    eyes, ups = poses[:, :3, 3], -poses[:, :3, 1]
    speed = (eyes[1:] - eyes[:-1]).norm(dim=1) * 2000
    assert (speed[1:] - speed[:-1]).abs().max() < 0.05 * speed.max()  # no jump in velocity
    assert ((ups[1:] * ups[:-1]).sum(1) > 0.999).all()
    assert (ups[:, 1] < -0.8).all()  # up stays up: -y


@pytest.mark.parametrize("speed", SPEEDS)
def test_equal_keyframes_stand_still(speed):
    where = dict(eye=(0.2, 0.1, -0.3), target=(0.0, 0.1, 1.1), roll=12.0, fov=33.0)
    poses, fov = sample_move(Move(tuple(Keyframe(t, **where) for t in (0.1, 0.4, 0.9)), speed), 33, FOV)
    assert torch.equal(poses, poses[:1].expand(33, 4, 4)) and (fov == fov[0]).all()


@pytest.mark.parametrize("frames", [1, 2, 5, 49])
def test_the_frame_count_is_exact_and_one_frame_shows_the_end(frames):
    poses, fov = sample_move(WINDING, frames, FOV)
    assert len(poses) == len(fov) == frames
    assert poses[-1, :3, 3].tolist() == pytest.approx(WINDING.keyframes[-1].eye)


def test_keyframes_that_share_a_target_keep_it_in_the_middle():
    subject = torch.tensor([0.0, 0.0, 1.0]).double().expand(65, 1, 1, 3)
    poses, _ = sample_move(preset_move("arc-dolly-zoom"), 65, FOV)
    K = default_intrinsics(128, 208, 65).double()
    uv, _ = project(transform(invert_rigid(poses), subject), K)
    assert torch.allclose(uv, torch.tensor([104.0, 64.0]).double().expand_as(uv), atol=1e-6)


def test_dolly_zoom_keeps_the_size_of_the_subject():
    poses, fov = sample_move(preset_move("dolly-zoom", 80.0), 33, FOV)
    size = 1 / ((1 - poses[:, 2, 3]) * torch.tan(torch.deg2rad(fov) / 2))
    assert torch.allclose(size, size[:1].expand(33), rtol=5e-3)


@pytest.mark.parametrize("speed, ends", [("constant", 1.0), ("eased", 0.0)])
def test_speeds(speed, ends):
    straight = Move(
        (Keyframe(0.0), Keyframe(0.2, (0.1, 0, 0), (0.1, 0, 1)), Keyframe(1.0, (1, 0, 0), (1, 0, 1))), speed
    )
    x = sample_move(straight, 401, FOV)[0][:, 0, 3]
    step = (x[1:] - x[:-1]) * 400
    assert step[200].item() == pytest.approx(1.0 if speed == "constant" else 1.5, abs=0.02)
    assert step[0].item() == pytest.approx(ends, abs=0.03) and step[-1].item() == pytest.approx(ends, abs=0.03)
    assert x[-1].item() == pytest.approx(1.0)


def test_constant_speed_leaves_no_rest_at_a_repeated_keyframe():
    rest = Move((Keyframe(0.0), Keyframe(0.3, (0.5, 0, 0)), Keyframe(0.7, (0.5, 0, 0)), Keyframe(1.0, (1, 0, 0))))
    x = sample_move(rest, 101, FOV)[0][:, 0, 3]
    assert torch.equal(x[30:71], x[30:31].expand(41))
    even = sample_move(Move(rest.keyframes, "constant"), 101, FOV)[0][:, 0, 3]
    assert (even[1:] - even[:-1]).min() > 0.005


def test_a_target_path_is_in_the_unit_of_the_depth():
    source = static_path(default_intrinsics(128, 208, 9, 60.0))
    assert fov_of(source, (128, 208)) == pytest.approx(60.0, abs=1e-4)
    path = target_path(preset_move("dolly-out", 50.0), source, 7.0, (128, 208))
    assert path.world_from_cam[-1, 2, 3].item() == pytest.approx(-3.5)
    assert path.K is source.K  # no zoom: the very same camera
    zoomed = target_path(Move((Keyframe(0.0, fov=30.0),)), source, 7.0, (128, 208))
    assert fov_of(zoomed, (128, 208)) == pytest.approx(30.0, abs=1e-3)
    assert torch.equal(zoomed.K[:, :2, 2], source.K[:, :2, 2])


def test_poses_become_keyframes_and_poses_again():
    poses, fov = sample_move(WINDING, 49, FOV)
    again, fov_again = sample_move(move_from_poses(poses, fov.tolist()), 49, FOV)
    assert torch.allclose(again, poses, atol=1e-8) and torch.allclose(fov_again, fov)


def test_a_full_turn_of_roll_goes_the_short_way():
    from scipy.spatial.transform import Rotation

    poses = torch.eye(4).double().repeat(9, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(
        Rotation.from_rotvec(np.outer(np.radians(np.linspace(0, 400, 9)), [0, 0, 1])).as_matrix()
    )
    rolls = [k.roll for k in move_from_poses(poses).keyframes]
    assert np.diff(rolls) == pytest.approx(50.0)


def test_moves_go_through_json():
    move = Move(WINDING.keyframes, "eased", ((0.0, 1.0), (0.5, 0.25)))
    assert Move.from_json(json.dumps(move.to_dict())) == move
    least = Move.from_json('{"version": 1, "keyframes": [{"time": 0.5, "eye": [0, 0, -1]}]}')
    assert least == Move((Keyframe(0.5, (0, 0, -1)),))
    older = Move.from_json('{"version": 1, "keyframes": [{"time": 0}], "frozen": 0.25}')
    assert older.timing == standing_at(0.25)


@pytest.mark.parametrize(
    "text, words",
    [
        ("[", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"keyframes": []}', "version None"),
        ('{"version": 1, "keyframes": []}', "from 1 to"),
        ('{"version": 1, "keyframes": [{}]}', "Keyframe 1"),
        ('{"version": 1, "keyframes": [{"time": 0, "zoom": 2}]}', "unknown fields: zoom"),
        ('{"version": 1, "keyframes": [{"time": 0}], "speed": "fast"}', "speed must be one of"),
        ('{"version": 1, "keyframes": [{"time": 0}], "frozen": 2}', "frozen must be"),
        ('{"version": 1, "keyframes": [{"time": 0}], "frozen": 0, "timing": [[0, 1]]}', "both frozen and timing"),
        ('{"version": 1, "keyframes": [{"time": 0}], "timing": 3}', "timing must be a list of pairs"),
        ('{"version": 1, "keyframes": [{"time": 0}], "timing": [[0, 2]]}', "Pair 1 of timing"),
        ('{"version": 1, "keyframes": [{"time": 0}], "timing": [[0, 1], [0, 1]]}', "Pair 2 of timing must come after"),
        ('{"version": 1, "keyframes": [{"time": 0}, {"time": 0}]}', "Keyframe 2: time must be after"),
        ('{"version": 1, "keyframes": [{"time": 0, "eye": [0, 0]}]}', "eye must be three numbers"),
        ('{"version": 1, "keyframes": [{"time": 0, "eye": [0, 0, NaN]}]}', "eye must be three numbers"),
        ('{"version": 1, "keyframes": [{"time": 0, "eye": [0, 0, 1]}]}', "very point"),
        ('{"version": 1, "keyframes": [{"time": 0, "target": [0, 1, 0]}]}', "straight up or down"),
        ('{"version": 1, "keyframes": [{"time": 0, "fov": 1}]}', "fov must be"),
        ('{"version": 1, "keyframes": [{"time": 0, "roll": 1e9}]}', "roll must be"),
    ],
)
def test_moves_that_cannot_be(text, words):
    with pytest.raises(InputError, match=words):
        Move.from_json(text)


def test_a_path_through_its_target_is_refused():
    through = Move((Keyframe(0.0), Keyframe(1.0, (0, 0, 2), (0, 0, 1))))
    with pytest.raises(InputError, match="Between the keyframes"):
        sample_move(through, 3, FOV)


@pytest.mark.parametrize("name, amount", [("barrel-roll", 1), ("pan", 61), ("pan", math.nan), ("spiral", -1)])
def test_presets_that_cannot_be(name, amount):
    with pytest.raises(InputError):
        preset_move(name, amount)


def test_poses_that_are_none_are_refused():
    with pytest.raises(InputError, match="Pose 2"):
        move_from_poses(torch.stack([torch.eye(4), 2 * torch.eye(4)]))
    with pytest.raises(InputError, match="0 poses"):
        move_from_poses(torch.zeros(0, 4, 4))


def test_the_time_of_a_result():
    every = list(range(9))
    assert frames_at((), 9) == frames_at(((0.0, 0.0), (1.0, 1.0)), 9) == every
    back = frames_at(TIMINGS["reverse"][1], 9)
    assert back == every[::-1] and [back[back[t]] for t in every] == every
    assert frames_at(standing_at(0.5), 9) == [4] * 9
    assert frames_at(TIMINGS["there-and-back"][1], 9) == [0, 2, 4, 6, 8, 6, 4, 2, 0]
    assert frames_at(((0.25, 0.0), (0.5, 1.0)), 9) == [0, 0, 0, 4, 8, 8, 8, 8, 8]
    assert frames_at(TIMINGS["reverse"][1], 1) == [0]
    paces = {name: pace_of(timing, 9) for name, (_, timing) in TIMINGS.items()}
    assert paces["as-filmed"] == 1 and paces["slow"] == pytest.approx(0.5) and paces["reverse"] == pytest.approx(-1)
    assert paces["ramp"] is None and pace_of(standing_at(0.3), 9) == 0


def test_a_timing_is_written_by_name_or_in_pairs():
    assert timing_of("reverse") == timing_of("0:1,1:0")
    for text in ("fast", "0:0:1", "0:0,0.5", "1:0,0:1", "0:nan", ""):
        with pytest.raises(InputError):
            timing_of(text)


@pytest.mark.parametrize("ease", EASES)
def test_easing_changes_when_not_where(ease):
    """An eased camera is on the same path, at the keyframes in time, and goes on as its name says."""
    plain = preset_move("truck", 50)
    eased = replace(plain, keyframes=(replace(plain.keyframes[0], ease=ease), plain.keyframes[1]))
    way = sample_move(eased, 101, 55.0)[0][:, 0, 3].numpy()
    assert (way[0], way[-1]) == (0, 0.5) and (np.diff(way) >= 0).all()
    assert sample_move(eased, 101, 55.0)[0][:, 1:3, 3].abs().max() < 1e-12
    begins, ends = way[1] < 0.25 * 0.005, way[-1] - way[-2] < 0.25 * 0.005
    assert (begins, ends) == (ease in ("in", "in-out"), ease in ("out", "in-out"))


def test_easing_is_kept_in_json_and_checked():
    move = Move((Keyframe(0.0, ease="in"), Keyframe(1.0, (0.1, 0, 0))))
    assert Move.from_dict(move.to_dict()) == move
    with pytest.raises(InputError, match="ease must be one of in, out, in-out"):
        Move((Keyframe(0.0, ease="bounce"),))


def test_a_lens_in_millimetres():
    given = parser().parse_args(["warp", "a.mp4", "--fov", "50mm", "--output", "b.mp4"]).fov
    assert given == pytest.approx(39.6, abs=0.05)
    assert parser().parse_args(["warp", "a.mp4", "--fov", "50", "--output", "b.mp4"]).fov == 50
