import contextlib
import json
import math
import zipfile

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
        ("a.json", b'{"frames": []}', "no cameras"),
        ("a.json", b'{"frames": [{"transform_matrix": [1, 2]}]}', "not a camera path|N 4 4"),
        ("a.json", b'{"frame1": {"cam01": "[1 2]"}}', "do not begin with frame0"),
        ("a.fbx", b"Kaydara FBX Binary", "give one of: .*nerfstudio"),
        ("images.bin", bytes(64), "export the model as text"),
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
    with pytest.raises(InputError, match="export the model as text"):
        read_move(tmp_path)
    with pytest.raises(InputError, match="it cannot be read"):
        read_move(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="positive number"):
        read_move(tmp_path / "nowhere.json", unit=0)
    with pytest.raises(InputError, match="unknown"):
        write_move("fbx", WINDING, frames=2, own_fov=FOV, size=SIZE)


def opengl(x=0.0, scale=1.0):
    """transform_matrix of nerfstudio: world_from_cam in OpenGL axes."""
    return [[scale, 0, 0, x], [0, scale, 0, 0], [0, 0, scale, 0], [0, 0, 0, 1]]


def transforms(order=range(5), **more):
    frames = [{"file_path": f"images\\frame_{i + 7}.png", "transform_matrix": opengl(0.1 * i)} for i in order]
    return {"w": 160, "h": 96, "fl_x": 150.0, "fl_y": 150.0, "frames": frames} | more


def sideways(path, content):
    """x of the cameras in a file, at five moments."""
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return sample_move(read_move(path), 5, 55.0)[0][:, 0, 3].tolist()


STEPS = pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-6)


def test_pictures_are_ordered_by_their_names(tmp_path):
    for order in ((0, 3, 1, 4, 2), (2, 0, 4, 1, 3)):
        assert sideways(tmp_path / "a.json", transforms(order)) == STEPS
    some = transforms()
    del some["frames"][2]["file_path"]
    assert sideways(tmp_path / "a.json", some) == STEPS, "where not all have a name the file's order counts"


def test_scale_is_no_part_of_a_rotation(tmp_path):
    given = transforms()
    given["frames"] = [frame | {"transform_matrix": opengl(0.1 * i, 2)} for i, frame in enumerate(given["frames"])]
    assert sideways(tmp_path / "a.json", given) == STEPS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_windows_programs(tmp_path, encoding):
    text = json.dumps(transforms(), indent=1).replace("\n", "\r\n")
    assert sideways(tmp_path / "a.json", text.encode(encoding)) == STEPS
    (tmp_path / "a.txt").write_bytes("0, 0\r\n0, 30\r\n0, 0\r\n".encode(encoding))
    assert len(read_move(tmp_path / "a.txt").keyframes) == 2


def test_the_viewers_camera_path(tmp_path):
    """fov is of the height; along the longer side it is wider."""
    path = [{"camera_to_world": np.ravel(opengl(0.1 * i)).tolist(), "fov": 50.0, "aspect": 1.5} for i in range(5)]
    given = {"keyframes": [], "render_height": 1080, "render_width": 1620, "camera_path": path}
    assert sideways(tmp_path / "camera_path.json", given) == STEPS
    wide = math.degrees(2 * math.atan(1.5 * math.tan(math.radians(25))))
    assert read_move(tmp_path / "camera_path.json").keyframes[0].fov == pytest.approx(wide)


def test_the_width_is_twice_the_centre_where_it_is_missing(tmp_path):
    given = transforms(cx=80.0, cy=48.0)
    del given["w"], given["h"]
    assert sideways(tmp_path / "a.json", given) == STEPS
    assert read_move(tmp_path / "a.json").keyframes[0].fov == pytest.approx(math.degrees(2 * math.atan(80 / 150)))


def unreal(numbers):
    text = "[1 0 0 0] [0 1 0 0] [0 0 1 0] [3390 {} 240 1] "
    return {f"frame{i}": {"cam01": text.format(1380 + 50 * i)} for i in numbers}


def test_a_gap_in_the_frames_keeps_the_others_in_their_place(tmp_path):
    """Nothing after the gap is cut off: the missing camera lies between its neighbours."""
    assert sideways(tmp_path / "a.json", unreal((0, 1, 3, 4))) == STEPS
    with pytest.raises(InputError, match="more than half of its frames 0 to 9 are missing"):
        sideways(tmp_path / "a.json", unreal((0, 1, 2, 9)))
    rows = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    lists = {f"frame{i}": {"cam01": [*rows, [3390, 1380 + 50 * i, 240, 1]]} for i in range(5)}
    assert sideways(tmp_path / "a.json", lists) == STEPS


def test_a_file_that_unpacks_to_much_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("world_from_cam.npy", "w") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (100_000_000, 4, 4)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match=r"bomb\.npz: the array world_from_cam has shape"):
        read_move(tmp_path / "bomb.npz")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"frame0": {}}',
        b'{"w":10,"h":10,"fl_x":0,"frames":[{"transform_matrix":[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}]}',
        b'{"frames":[{"transform_matrix":"x"}]}',
        b'{"camera_path":[{}]}',
        b'{"frames": [], }',
        b"\x80" * 50,
    ],
)
def test_whatever_is_wrong_is_one_refusal(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.json") as refused:
        read_move(tmp_path / "c.json")
    for word in ("Error", "codec", "object", "NoneType", "division", "dtype"):
        assert word not in str(refused.value)


def test_every_damaged_byte_of_an_npz_is_refused_or_read(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", K=np.eye(3) * 5, world_from_cam=np.tile(np.eye(4), (3, 1, 1)))
    good = (tmp_path / "good.npz").read_bytes()
    for at in range(len(good)):
        (tmp_path / "x.npz").write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with contextlib.suppress(InputError):
            read_move(tmp_path / "x.npz")
