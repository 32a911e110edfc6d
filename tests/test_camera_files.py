import json
import math

import numpy as np
import pytest
import torch

from pipeline import InputError
from pipeline.camera.files import FORMATS, read_move, read_moves, write_move
from pipeline.camera.geometry import PRESETS, invert_rigid
from pipeline.camera.moves import MOVES, Keyframe, Move, preset_move, sample_move

FOV, SIZE, FRAMES = 55.0, (480, 832), 17
WINDING = Move(
    (
        Keyframe(0.0, (0.1, 0.0, -0.2), fov=50.0),
        Keyframe(0.3, (0.4, -0.1, 0.1), (0.1, 0.0, 1.0), roll=5.0),
        Keyframe(1.0, (-0.3, 0.2, -0.2), (0.0, 0.1, 1.0), roll=-8.0, fov=70.0),
    ),
    "eased",
)
# test/trajs/loop1.txt of TrajectoryCrafter
LOOP = "0 2 10 15 12 6 0 -2 -5 -12 -8 -3 0\n0 -3 -10 -20 -30 -25 -17 -10 0\n0 -0.02 -0.09 -0.16 -0.25 -0.2 -0.09 0\n"


def written(tmp_path, format, move, **options):
    path = tmp_path / f"camera{FORMATS[format][1]}"
    path.write_bytes(write_move(format, move, **({"frames": FRAMES, "own_fov": FOV, "size": SIZE} | options)))
    return path


@pytest.mark.parametrize("move", [WINDING, preset_move("orbit-up"), preset_move("hand-held")])
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "trajectorycrafter"])
@pytest.mark.parametrize("size", [SIZE, (832, 480)])
def test_round_trips_return_the_same_cameras(tmp_path, format, move, size):
    if format == "recammaster":  # knows no field of view
        move = Move(tuple(Keyframe(k.time, k.eye, k.target, k.roll) for k in move.keyframes), move.speed)
    poses, fov = sample_move(move, FRAMES, FOV)
    again, fov_again = sample_move(read_move(written(tmp_path, format, move, size=size)), FRAMES, FOV)
    assert torch.allclose(again, poses, atol=1e-6)
    assert torch.allclose(fov_again, fov, atol=1e-5)


@pytest.mark.parametrize("name", (*PRESETS, "still"))
def test_trajectorycrafter_says_the_orbits_and_dollies(tmp_path, name):
    poses, _ = sample_move(preset_move(name), FRAMES, FOV)
    again, _ = sample_move(read_move(written(tmp_path, "trajectorycrafter", preset_move(name))), FRAMES, FOV)
    assert torch.allclose(again, poses, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in MOVES if name not in (*PRESETS, "still")])
def test_trajectorycrafter_says_no_more_than_it_can(tmp_path, name):
    with pytest.raises(InputError, match="knows only orbits"):
        written(tmp_path, "trajectorycrafter", preset_move(name))


def test_a_text_of_trajectorycrafter(tmp_path):
    (tmp_path / "loop1.txt").write_text(LOOP)
    move = read_move(tmp_path / "loop1.txt")
    poses, fov = sample_move(move, 49, FOV)
    eyes = poses[:, :3, 3]
    assert torch.allclose(poses[[0, -1]], torch.eye(4).double().expand(2, 4, 4), atol=1e-9), "a loop"
    assert (fov == FOV).all()
    # up first (y points down), to the left, and back; every camera keeps its distance from what it turns about
    assert eyes[12, 1] < -0.1 and eyes[24, 0] < -0.3 and eyes[24, 2] < 0
    middle = eyes + poses[:, :3, 2]
    assert middle[:, :2].abs().max() < 2e-2 and 0.74 < middle[:, 2].min() < 0.78


def test_the_signs_of_trajectorycrafter(tmp_path):
    def end(text):
        (tmp_path / "t.txt").write_text(text)
        return sample_move(read_move(tmp_path / "t.txt"), 9, FOV)[0][-1, :3, 3].tolist()

    s, c = math.sin(math.radians(30)), math.cos(math.radians(30))
    assert end("0 30\n0\n0\n") == pytest.approx([0, -s, 1 - c])  # up
    assert end("0\n0 30\n0\n") == pytest.approx([s, 0, 1 - c])  # to the right
    assert end("0\n0\n0 0.3\n") == pytest.approx([0, 0, 0.3])  # forward


def test_a_camera_file_of_recammaster(tmp_path):
    # as in its example_test_data: one frame in text, columns of a left-handed world_from_cam, centimetres
    frames = {}
    for i in range(5):
        angle = math.radians(5 * i)  # the second camera turns to the right (from x towards y) and rises 50 cm a frame
        turned = f"[{math.cos(angle)} {math.sin(angle)} 0 0] [{-math.sin(angle)} {math.cos(angle)} 0 0] [0 -0 1 0]"
        frames[f"frame{i}"] = {
            "cam01": f"[1 0 0 0] [-0 1 0 0] [0 -0 1 0] [{3390 + 100 * i} 1380 240 1] ",
            "cam02": f"{turned} [3390 1380 {240 + 50 * i} 1] ",
        }
    path = tmp_path / "camera_extrinsics.json"
    path.write_text(json.dumps(frames))
    moves = read_moves(path)
    assert list(moves) == ["cam01", "cam02"]
    forward, _ = sample_move(moves["cam01"], 5, FOV)
    assert forward[:, :3, 3].numpy() == pytest.approx(np.outer(np.arange(5) / 5, [0, 0, 1]))
    turning, _ = sample_move(moves["cam02"], 5, FOV)
    assert turning[-1, :3, 3].tolist() == pytest.approx([0, -2 / 5, 0])
    assert turning[-1, :3, 2].tolist() == pytest.approx([math.sin(math.radians(20)), 0, math.cos(math.radians(20))])
    assert read_move(path, name="cam02") == moves["cam02"]
    assert sample_move(read_move(path, unit=10), 5, FOV)[0][-1, 2, 3].item() == pytest.approx(0.4)
    with pytest.raises(InputError, match="has no camera 'cam03'; it has cam01, cam02"):
        read_move(path, name="cam03")


def test_a_transforms_json_of_nerfstudio(tmp_path):
    # world z is up, the first camera looks along +y; the second stands a unit to its right and half a unit higher
    first = np.array([[1, 0, 0, 4.0], [0, 0, -1, 2.0], [0, 1, 0, 1.0], [0, 0, 0, 1]])
    second = first.copy()
    second[:3, 3] += [1.0, 0.0, 0.5]
    shared = {"fl_x": 400.0, "fl_y": 400.0, "w": 800, "h": 600, "camera_model": "OPENCV"}
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(shared | {"frames": [{"transform_matrix": m.tolist()} for m in (first, second)]}))
    poses, fov = sample_move(read_move(path, unit=2.0), 2, FOV)
    assert torch.allclose(poses[0], torch.eye(4).double())
    assert poses[1, :3, 3].tolist() == pytest.approx([0.5, -0.25, 0.0])
    assert fov.tolist() == pytest.approx([90.0, 90.0])
    path.write_text(json.dumps({"camera_angle_x": 1.0, "frames": [{"transform_matrix": first.tolist()}]}))
    assert sample_move(read_move(path), 1, FOV)[1].item() == pytest.approx(math.degrees(1.0))


def test_an_npz_is_in_opencv_axes(tmp_path):
    poses, _ = sample_move(preset_move("truck"), 9, FOV)
    scaled = poses.numpy().copy()
    scaled[:, :3, 3] *= 3
    np.savez(tmp_path / "p.npz", world_from_cam=scaled, K=np.array([[416.0, 0, 416], [0, 416, 240], [0, 0, 1]]))
    again, fov = sample_move(read_move(tmp_path / "p.npz", unit=3.0), 9, FOV)
    assert torch.allclose(again, poses, atol=1e-6) and fov.tolist() == pytest.approx([90.0] * 9)
    assert torch.allclose(invert_rigid(again) @ again, torch.eye(4).double().expand(9, 4, 4))


def test_a_very_long_path_is_thinned(tmp_path):
    poses, _ = sample_move(preset_move("orbit-left"), 2000, FOV)
    np.savez(tmp_path / "long.npz", world_from_cam=poses.numpy())
    again, _ = sample_move(read_move(tmp_path / "long.npz"), 17, FOV)
    assert torch.allclose(again, sample_move(preset_move("orbit-left"), 17, FOV)[0], atol=1e-3)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", b"{", "not a camera path"),
        ("a.json", b"[1]", "no JSON object"),
        ("a.json", b"{}", "neither keyframes nor frames"),
        ("a.json", b'{"frames": [{}]}', "not a camera path"),
        ("a.json", b'{"frames": []}', "N 4 4"),
        ("a.json", b'{"frame0": {"cam01": "[1 2]"}}', "not a camera path"),
        ("a.json", b'{"frames": [{"transform_matrix": [[0,0,0,0],[0,0,0,0],[0,0,0,0],[0,0,0,0]]}]}', "Pose 1"),
        ("a.txt", b"1 2\n3 4\n", "three lines"),
        ("a.txt", b"1 2\n3 four\n5\n", "not a camera path"),
        ("a.txt", b"1\n2\nnan\n", "not finite"),
        ("a.txt", bytes([0xFF, 0xFE, 0x00]), "not a camera path"),
        ("a.npz", b"PK not really", "not a camera path"),
    ],
)
def test_files_that_are_no_camera_path(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_move(tmp_path / name)
    assert name in str(error.value) and str(tmp_path) not in str(error.value)


def test_other_arrays_and_missing_files(tmp_path):
    np.savez(tmp_path / "depth.npz", z=np.zeros(3))
    with pytest.raises(InputError, match="no world_from_cam in it, only z"):
        read_move(tmp_path / "depth.npz")
    np.savez(tmp_path / "object.npz", world_from_cam=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not a camera path"):
        read_move(tmp_path / "object.npz")
    with pytest.raises(InputError, match="Cannot read the camera path nowhere"):
        read_move(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="positive number"):
        read_move(tmp_path / "nowhere.json", unit=0)
    with pytest.raises(InputError, match="unknown"):
        write_move("fbx", WINDING, frames=2, own_fov=FOV, size=SIZE)
