"""Cameras from elsewhere: COLMAP's text, ViPE's npz, Blender by our own script; and how they are laid onto a clip."""

from __future__ import annotations

import json
import runpy
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline import InputError
from pipeline.camera.files import read_move
from pipeline.camera.moves import Move, preset_move, sample_move, scaled

ROOT = Path(__file__).resolve().parents[1]
FOV, FRAMES = 55.0, 7
# Somewhere in another world, turned, and in other units: what a program that solves cameras may choose.
ELSEWHERE, UNIT = np.eye(4), 2.5
ELSEWHERE[:3, :3] = Rotation.from_euler("xyz", [40, -70, 15], degrees=True).as_matrix()
ELSEWHERE[:3, 3] = [3, -8, 5]


def poses_of(move: Move) -> np.ndarray:
    return sample_move(move, FRAMES, FOV)[0].numpy()


def solved(move: Move) -> np.ndarray:
    """The cameras of a move in that other world."""
    poses = poses_of(move).copy()
    poses[:, :3, 3] *= UNIT
    return ELSEWHERE @ poses


def write_colmap(
    folder: Path, world_from_cam: np.ndarray, *, missing: tuple[int, ...] = (), blank: bool = True
) -> Path:
    folder.mkdir()
    lines = ["# Image list with two lines of data per image:"]
    for i in reversed([i for i in range(len(world_from_cam)) if i not in missing]):  # in no good order
        pose = np.linalg.inv(world_from_cam[i])
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        numbers = " ".join(f"{value:.12g}" for value in (w, x, y, z, *pose[:3, 3]))
        lines += [f"{90 - i} {numbers} 1 walk/frame_{10 * i + 10}.jpg"] + ["12.5 30.25 7 99 1 -1"] * blank
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    focal = 400 / np.tan(np.radians(70) / 2)
    (folder / "cameras.txt").write_text(f"# Camera list\n1 SIMPLE_RADIAL 800 600 {focal} 400 300 0.01\n")
    return folder


def write_points(folder: Path, world_from_cam: np.ndarray) -> None:
    """Points one distance before the first camera, and many behind it and to its side, which it does not see."""
    rng = np.random.default_rng(0)
    before = np.stack([*rng.uniform(-0.3, 0.3, (2, 50)), rng.uniform(0.9, 1.1, 50)], 1)
    beside = np.stack([rng.uniform(5, 9, 90), 0 * np.arange(90), rng.uniform(-4, 3, 90)], 1)
    points = UNIT * np.concatenate([before, beside]) @ world_from_cam[0, :3, :3].T + world_from_cam[0, :3, 3]
    lines = [f"{i} {x} {y} {z} 9 9 9 0.5 1 2" for i, (x, y, z) in enumerate(points)]
    (folder / "points3D.txt").write_text("# 3D point list\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["orbit-left", "spiral", "pan"])
@pytest.mark.parametrize("blank", [True, False])
def test_colmap_is_laid_onto_the_clip(tmp_path, name, blank):
    move = preset_move(name)
    folder = write_colmap(tmp_path / "sparse", solved(move), blank=blank)
    for path in (folder, folder / "images.txt"):
        found = read_move(path, unit=UNIT)
        poses, fov = sample_move(found, FRAMES, FOV)
        first = np.linalg.inv(poses_of(move)[0])
        assert np.abs(poses.numpy() - first @ poses_of(move)).max() < 1e-5
        assert fov.numpy() == pytest.approx(70, abs=0.01)
        assert "first camera" in found.origin and "2.5 of its units" in found.origin


def test_colmap_says_by_its_points_how_far_off_the_subject_is(tmp_path):
    folder = write_colmap(tmp_path / "sparse", solved(preset_move("truck")))
    write_points(folder, solved(preset_move("truck")))
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"model/{file.name}")
    for path in (folder, tmp_path / "model.zip"):
        eye = read_move(path).keyframes[-1].eye
        assert eye == pytest.approx((0.25, 0, 0), abs=0.015)
    assert read_move(folder, unit=2 * UNIT).keyframes[-1].eye[0] == pytest.approx(0.125, abs=1e-6)


def test_frames_that_colmap_did_not_place_lie_between_their_neighbours(tmp_path):
    poses = solved(preset_move("truck"))
    found = read_move(write_colmap(tmp_path / "sparse", poses, missing=(2, 3)), unit=UNIT)
    assert len(found.keyframes) == FRAMES
    assert [k.eye[0] for k in found.keyframes] == pytest.approx(np.linspace(0, 0.25, FRAMES), abs=1e-6)
    few = read_move(write_colmap(tmp_path / "few", poses, missing=(1, 2, 3, 4, 5)), unit=UNIT)
    assert len(few.keyframes) == 2


def test_vipe(tmp_path):
    move = preset_move("orbit-right")
    for folder in ("pose", "intrinsics"):
        (tmp_path / folder).mkdir()
    inds = np.array([4, 5, 6, 7, 8, 9, 10])
    np.savez(tmp_path / "pose" / "walk.npz", data=solved(move).astype(np.float32), inds=inds)
    found = read_move(tmp_path / "pose" / "walk.npz", unit=UNIT)
    poses, fov = sample_move(found, FRAMES, FOV)
    assert np.abs(poses.numpy() - poses_of(move)).max() < 1e-5 and (fov == FOV).all()
    focal = 300 / np.tan(np.radians(40) / 2)
    np.savez(tmp_path / "intrinsics" / "walk.npz", data=np.tile([focal, focal, 200, 300], (7, 1)), inds=inds)
    _, fov = sample_move(read_move(tmp_path / "pose" / "walk.npz", unit=UNIT), FRAMES, FOV)
    assert fov.numpy() == pytest.approx(40, abs=1e-3)


def blender_scene(world_from_cam: np.ndarray) -> SimpleNamespace:
    """What the script reads of a scene, as Blender has it: z up in the world, the camera looks along its own -z."""
    up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    matrices = up @ world_from_cam @ np.diag([1, -1, -1, 1])
    ahead = matrices[0] @ [0, 0, -UNIT, 1]
    focus = SimpleNamespace(matrix_world=np.eye(4))
    focus.matrix_world[:, 3] = ahead
    dof = SimpleNamespace(focus_object=focus, use_dof=False, focus_distance=10.0)
    data = SimpleNamespace(lens=50.0, sensor_width=36.0, sensor_height=24.0, sensor_fit="AUTO", dof=dof)
    camera = SimpleNamespace(data=data, matrix_world=matrices[0])
    render = SimpleNamespace(resolution_x=1920, resolution_y=1080, resolution_percentage=50)
    scene = SimpleNamespace(camera=camera, render=render, frame_start=1, frame_end=len(matrices), frame_step=1)
    scene.frame_set = lambda number: setattr(camera, "matrix_world", matrices[number - 1])
    return scene


def test_blender_by_our_own_script(tmp_path, monkeypatch, capsys):
    move, bpy = preset_move("arc-dolly-zoom"), ModuleType("bpy")
    bpy.context = SimpleNamespace(scene=blender_scene(solved(move)))
    monkeypatch.setitem(sys.modules, "bpy", bpy)
    monkeypatch.setattr(sys, "argv", ["blender", "--background", "--", str(tmp_path / "camera.json")])
    runpy.run_path(str(ROOT / "docs" / "blender_camera.py"), run_name="__main__")
    written = json.loads((tmp_path / "camera.json").read_text())
    assert (written["w"], written["h"], len(written["frames"])) == (960, 540, FRAMES)
    assert written["subject_distance"] == pytest.approx(UNIT)
    poses, fov = sample_move(read_move(tmp_path / "camera.json"), FRAMES, FOV)  # the unit is the file's
    assert np.abs(poses.numpy() - poses_of(move)).max() < 1e-5
    assert fov.numpy() == pytest.approx(np.degrees(2 * np.arctan(18 / 50)), abs=1e-6)  # 50 mm on 36 mm


def test_a_scale_changes_how_far_not_where_to(tmp_path):
    move = preset_move("spiral")
    poses, twice = (sample_move(each, 13, FOV)[0] for each in (move, scaled(move, 2)))
    assert torch.allclose(twice[:, :3, 3], 2 * poses[:, :3, 3], atol=1e-9)
    assert torch.allclose(twice[:, :3, :3], poses[:, :3, :3], atol=1e-9)
    assert scaled(move, 1) == move and all(k.eye == (0, 0, 0) for k in scaled(move, 0).keyframes)
    assert "2 times as far" in scaled(move, 2).origin
    with pytest.raises(InputError, match="scale"):
        scaled(move, float("nan"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.txt", "# Image list\n", "no pictures"),
        ("images.txt", "1 0 0 0 0 1 2 3 1 a.jpg\n", "not a camera path"),
        ("images.txt", "1 nan 0 0 0 1 2 3 1 a.jpg\n", "not a camera path|not a rotation"),
        ("model.zip", "no zip", "not a camera path"),
        ("b.json", '{"frames": [], "subject_distance": -1}', "subject_distance"),
        ("b.json", '{"frames": [], "subject_distance": 1}', "no cameras"),
    ],
)
def test_what_is_no_camera_path(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_move(tmp_path / name)


def test_what_is_no_file_of_vipe(tmp_path):
    for arrays, message in (
        ({"data": np.eye(4)}, "no poses"),
        ({"data": np.tile(np.eye(4), (3, 1, 1)), "inds": np.array([0, 2, 1])}, "inds"),
        ({"data": np.full((2, 4, 4), np.nan)}, "not finite"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=message):
            read_move(tmp_path / "a.npz")
    far = np.array([0, 10**9])  # no memory is asked for in between
    np.savez(tmp_path / "a.npz", data=np.tile(np.eye(4), (2, 1, 1)), inds=far)
    assert len(read_move(tmp_path / "a.npz").keyframes) == 2
