"""What other frames saw: on a scene that is known everywhere, a textured wall with a card that passes before it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from synthetic import write_clip

from pipeline import result_of
from pipeline.camera.geometry import CameraPath, default_intrinsics, scale_intrinsics, static_path
from pipeline.camera.moves import preset_move
from pipeline.finish.steady import settle, steady
from pipeline.known.ego_motion import ego_motion
from pipeline.known.gather import at_size, completed, from_other_frames, gather, standing
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_to_path
from pipeline.media.video import Clip, read_video, write_video
from pipeline.render.analysis import analyse, hide
from pipeline.render.events import DoneEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import cameras_of, known_of, measure, wants_other_frames

T, H, W = 9, 96, 144
WALL, CARD, HALF = 8.0, 4.0, 0.7
K = default_intrinsics(H, W, T, 55.0)


def texture(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Blurred squares of random colours on the wall, smooth enough to be looked up between pixels."""
    colours = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(3))
    grid = torch.stack([x / 8, y / 8], -1)[None]
    return torch.nn.functional.grid_sample(colours[None], grid, "bicubic", "reflection", align_corners=False)[0].clamp(
        0, 1
    )


def film(path: CameraPath, card: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames T 3 H W, depth T H W, and where the wall is seen, T H W. The card is red and moves to the right."""
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    frames, depths, walls = [], [], []
    for t, (pose, lens) in enumerate(zip(path.world_from_cam, path.K, strict=True)):
        rays = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(lens).T @ pose[:3, :3].T
        far, near = ((plane - pose[2, 3]) / rays[..., 2] for plane in (WALL, CARD))
        x, y = (pose[i, 3] + near * rays[..., i] for i in (0, 1))
        hit = ((x + 1.2 - 0.35 * t).abs() < HALF) & (y.abs() < HALF) & card
        picture = texture(*(pose[i, 3] + far * rays[..., i] for i in (0, 1)))
        frames.append(torch.where(hit, torch.tensor([1.0, 0, 0])[:, None, None], picture))
        depths.append(torch.where(hit, near, far) * (rays @ pose[:3, 2]))  # along the axis
        walls.append(~hit)
    return torch.stack(frames), torch.stack(depths), torch.stack(walls)


def path_of(poses: list[tuple[list[float], list[float]]]) -> CameraPath:
    """Cameras by rotation vectors in degrees and centres."""
    matrices = torch.eye(4).repeat(len(poses), 1, 1)
    for matrix, (turn, centre) in zip(matrices, poses, strict=True):
        matrix[:3, :3] = torch.from_numpy(Rotation.from_rotvec(turn, degrees=True).as_matrix()).float()
        matrix[:3, 3] = torch.tensor(centre)
    return CameraPath(matrices, K)


ASIDE = path_of([([0, 0, 0], [0.9 * t / (T - 1), 0, 0]) for t in range(T)])
WALKING = path_of([([0.3 * t, 0.8 * math.sin(t), 0.2 * t], [0.06 * t, 0.03 * math.sin(t), 0.02 * t]) for t in range(T)])


@pytest.mark.parametrize("source", [static_path(K), WALKING], ids=["tripod", "walking"])
def test_what_the_card_hides_is_taken_from_frames_that_saw_it(source):
    target = CameraPath(source.world_from_cam @ ASIDE.world_from_cam, K)
    frames, z, _ = film(source)
    truth, _, wall = film(target)
    own = warp_to_path(frames, z, source, target)
    gathered = from_other_frames(frames, z, source, target, own)
    assert gathered is not None
    found = gathered.measurement
    assert torch.equal(found.video[own.mask.expand_as(found.video)], own.video[own.mask.expand_as(own.video)])
    new = found.mask & ~own.mask
    empty = warp_to_path(*film(source, card=False)[:2], source, target).mask
    behind = ~own.mask & empty & wall[:, None]  # what would be seen if there were no card
    assert behind.sum() > 500 and new[behind].float().mean() > 0.7
    # it is the wall that stands there, but for a rim of the card that is a pixel wide, and in its place
    assert (new[:, 0] & wall).sum() > 0.93 * new.sum()
    error = (found.video - truth).abs().mean(1)[new[:, 0] & wall]
    assert error.mean() < 0.03
    red = (found.video[:, 0] > 0.9) & (found.video[:, 1:].amax(1) < 0.1)
    assert (red & new[:, 0]).sum() < 0.01 * new.sum()
    assert torch.equal(gathered.origin >= 0, new[:, 0])
    assert not (gathered.origin == torch.arange(T)[:, None, None]).any()

    # and the same at the same size, frame by frame; from a small frame of the clip, a larger one
    again = at_size(gathered, Measurement(own.video[4:7], own.mask[4:7]), 4, lambda t: (frames[t], z[t]))
    assert (gathered.sees.diagonal() == 0).all() and gathered.sees.sum() >= new.sum()
    most = gathered.sees[4:7].amax(1).sum()  # four frames are asked for each
    assert 0.9 * most < (again.mask & new[4:7]).sum() <= new[4:7].sum() and not (again.mask & ~found.mask[4:7]).any()
    agreed = (again.mask & new[4:7]).expand_as(again.video)
    assert (again.video - found.video[4:7])[agreed].abs().mean() < 0.01, "of another frame, perhaps, but the same place"
    double = lambda part: torch.nn.functional.interpolate(part, scale_factor=2, mode="bilinear")
    large = lambda path: CameraPath(path.world_from_cam[4:7], scale_intrinsics(path.K[4:7], (H, W), (2 * H, 2 * W)))
    frames, z = double(frames), double(z[:, None])[:, 0]
    own_large = warp_to_path(frames[4:7], z[4:7], large(source), large(target))
    twice = at_size(gathered, own_large, 4, lambda t: (frames[t], z[t]))
    gained = (twice.mask & ~own_large.mask).sum() / 4
    assert 0.7 * most < gained < 1.3 * new[4:7].sum()


def test_what_several_frames_saw_is_their_mean():
    source = static_path(K)
    frames, z, _ = film(source)
    own = warp_to_path(frames, z, source, ASIDE)
    noisy = frames + 0.1 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    still = standing(z, source)
    noisy_own = Measurement(torch.where(own.mask, warp_to_path(noisy, z, source, ASIDE).video, 0), own.mask)
    found = gather(noisy, z, source, ASIDE, noisy_own, still)
    clean = gather(frames, z, source, ASIDE, own, still)
    new = (found.measurement.mask & clean.measurement.mask & ~own.mask).expand_as(frames)
    off = lambda video, where: (video - clean.measurement.video)[where].abs().mean()
    single = (noisy - frames).abs().mean()
    assert new.sum() > 500 and off(found.measurement.video, new) < 0.75 * single
    # what frames farther away show there does not count if it is something else: here they turn black behind the card
    t = T // 2
    behind = ~film(source)[2][t] & ((torch.arange(T) - t).abs() > 2)[:, None, None]
    dark = torch.where(behind[:, None], 0, frames)
    alone = gather(dark, z, source, ASIDE, own, still).measurement
    nearest = ((clean.origin[t] - t).abs() == 1)[None]
    taken = (nearest & alone.mask[t]).expand(3, -1, -1)
    assert taken.sum() > 100 and (alone.video[t] - clean.measurement.video[t])[taken].abs().mean() < 0.03


def test_large_frames_are_searched_small(monkeypatch):
    source = static_path(K)
    frames, z, _ = film(source)
    own = warp_to_path(frames, z, source, ASIDE)
    whole = from_other_frames(frames, z, source, ASIDE, own)
    monkeypatch.setattr("pipeline.known.gather.SEARCHED_PIXELS", H * W // 4 - 1)  # a size that does not divide
    found = from_other_frames(frames, z, source, ASIDE, own)
    assert whole is not None and found is not None and found.origin.shape == (T, H // 2 - 1, W // 2 - 1)
    new, wanted = found.measurement.mask & ~own.mask, whole.measurement.mask & ~own.mask
    assert new.sum() > 0.6 * wanted.sum() and (new & wanted).sum() > 0.8 * new.sum()
    both = (new & wanted).expand_as(frames)
    assert (found.measurement.video - whole.measurement.video)[both].abs().mean() < 0.04, "other frames, the same place"


def test_what_moves_does_not_stand_still():
    source = static_path(K)
    _, z, wall = film(source)
    still = standing(z, source)
    assert not still[~wall].any(), "another frame sees the wall where the card was"
    assert still[wall].float().mean() > 0.85
    assert standing(*film(WALKING, card=False)[1:2], WALKING).float().mean() > 0.99
    unknown = torch.where(wall, z, torch.nan)
    assert not standing(unknown, source)[~wall].any()
    assert standing(unknown, source)[wall].float().mean() > 0.85, "an unknown depth is no evidence"


def test_nothing_is_taken_where_frames_disagree():
    source, two = static_path(K[:2]), slice(2)
    frames, z, _ = (part[two] for part in film(static_path(K)))
    target = CameraPath(ASIDE.world_from_cam[-2:], K[:2])
    own = warp_to_path(frames, z, source, target)
    false = path_of([([0, 12.0 * t, 0], [1.5 * t, 0, 0]) for t in range(T)])  # cameras that never were
    false = CameraPath(false.world_from_cam[two], K[two])
    along = CameraPath(false.world_from_cam @ target.world_from_cam, K[two])
    everything = torch.ones_like(z, dtype=torch.bool)
    offered = warp_to_path(frames.flip(0), z.flip(0), CameraPath(false.world_from_cam.flip(0), K[two]), along)
    assert (offered.mask & ~own.mask).float().mean() > 0.05
    assert torch.equal(gather(frames, z, false, along, own, everything).measurement.mask, own.mask)
    assert gather(frames, z, source, target, own, everything).measurement.mask.sum() > own.mask.sum()


def test_the_camera_of_a_clip_is_found():
    frames, z, _ = film(WALKING)
    found = ego_motion(frames, z, K)
    assert found is not None
    off = torch.linalg.inv(WALKING.world_from_cam.double()) @ found.world_from_cam.double()
    assert np.degrees(Rotation.from_matrix(off[:, :3, :3].numpy()).magnitude()).max() < 0.5
    assert off[:, :3, 3].norm(dim=-1).max() < 0.01 * WALL


def test_a_camera_that_stands_still_does_so_exactly():
    frames, z, _ = film(static_path(K))
    found = ego_motion(frames, z, K)
    assert found is not None and torch.equal(
        found.world_from_cam, torch.eye(4).to(found.world_from_cam).repeat(T, 1, 1)
    )


def test_without_corners_no_camera_is_found():
    grey, z = torch.full((3, 3, H, W), 0.5), torch.full((3, H, W), 4.0)
    assert ego_motion(grey, z, K[:3]) is None
    own = Measurement(grey, torch.zeros(3, 1, H, W, dtype=torch.bool))
    assert from_other_frames(grey, z, *(static_path(K[:3]),) * 2, own) is None
    frames, z, _ = film(static_path(K))
    assert ego_motion(frames, torch.full_like(z, torch.nan), K) is None
    noise = torch.rand(3, 3, H, W, generator=torch.Generator().manual_seed(0))
    assert ego_motion(noise, torch.full((3, H, W), 4.0), K[:3]) is None


def test_nothing_to_gain():
    source = static_path(K)
    frames, z, _ = film(source)
    own = warp_to_path(frames, z, source, source)
    found = from_other_frames(frames, z, source, source, own)
    assert found is not None and torch.equal(found.measurement.video, frames)
    alone = from_other_frames(
        frames[:1],
        z[:1],
        *(CameraPath(p.world_from_cam[:1], K[:1]) for p in (source, ASIDE)),
        Measurement(frames[:1], own.mask[:1]),
    )
    assert alone is not None and torch.equal(alone.measurement.video, frames[:1])


def test_frames_come_to_agree_on_what_is_painted():
    """The right third of the picture is painted: right on the whole, but with blotches that change in every frame."""
    source = static_path(K)
    z, seen, truth = film(source, card=False)[1], film(ASIDE)[0], film(ASIDE, card=False)[0]
    z = torch.where(torch.arange(W) < W // 2, z, torch.nan)  # of what is painted no depth is known
    painted = warp_to_path(seen, z, source, ASIDE).mask.logical_not()
    painted[..., : W // 2] = False
    nowhere, nothing = torch.full_like(z, torch.nan), torch.zeros_like(painted)
    noise = 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    off = lambda video, wanted, where=painted: (video - wanted).abs()[where.expand_as(video)].mean().item()

    def agreed(video, painted=painted, gathered=nothing, known=truth, z=z, reach=4):
        return steady(video, Measurement(known, ~painted), gathered, z, source, ASIDE, reach)

    steadied = agreed(truth + noise)
    assert torch.equal(torch.where(painted, 0, steadied), torch.where(painted, 0, truth + noise))
    assert off(steadied, truth) < 0.5 * off(truth + noise, truth)
    assert off(agreed(truth), truth) < 0.02, "what agrees stays sharp"
    card = ((seen - truth).abs().amax(1, keepdim=True) > 0.2) & painted
    assert card.sum() > 200 and off(agreed(seen), seen, card) < 0.1, "no ghosts"
    assert agreed(seen, reach=0) is seen
    assert agreed(seen, painted & False) is seen
    assert agreed(truth, painted | True, z=nowhere).isfinite().all()

    # a frame in two has it from other frames, and the others paint what agrees with it
    gathered = painted & (torch.arange(T) % 2 == 0)[:, None, None, None]
    left = painted & ~gathered
    beside = agreed(truth + noise, left, gathered)
    assert torch.equal(torch.where(left, 0, beside), torch.where(left, 0, truth + noise))
    assert off(beside, truth, left) < 0.8 * off(steadied, truth, left)


def test_a_render_uses_and_reports_them(tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    frames, z, _ = film(static_path(K))
    double = frames.repeat_interleave(2, -1).repeat_interleave(2, -2)  # larger than what the model works at
    write_video(tmp_path / "card.mp4", Clip(double, 8.0))
    np.savez(tmp_path / "depth.npz", z=z.numpy())
    depth = str(tmp_path / "depth.npz")
    given = {"size": (64, 96), "steps": 1, "depth": depth, "backbone": str(tiny_backbone_folder)}
    request = RenderRequest.of(str(tmp_path / "card.mp4"), camera="orbit-left", **given)
    reports = {}
    for wanted in (True, False):
        *_, done = render(request.changed(other_frames=wanted), tmp_path / str(wanted))
        assert isinstance(done, DoneEvent), done
        reports[wanted] = done.result.report.to_dict()
    gained = reports[True]["from_other_frames"]
    assert gained > 0.005 and reports[False]["from_other_frames"] == 0
    assert reports[True]["unknown"] == pytest.approx(reports[False]["unknown"] - gained, abs=1e-6)
    assert any("seen by other frames only" in note for note in reports[True]["notes"])
    assert "gather" in reports[True]["seconds"] and "gather" not in reports[False]["seconds"]
    results = [read_video(str(tmp_path / name / "result.mp4")).frames for name in ("True", "False")]
    assert (results[0] - results[1]).abs().max() > 0.1

    steadier = shutil.copytree(tiny_backbone_folder, tmp_path / "steadier")
    settings = json.loads((steadier / "recapture.json").read_text())
    (steadier / "recapture.json").write_text(json.dumps(settings | {"steady": 2}))
    raws = {}
    for backbone in (steadier, tiny_backbone_folder):
        request = request.changed(backbone=str(backbone), composite=False)
        *_, done = render(request, tmp_path / f"raw-{backbone.name}")
        assert isinstance(done, DoneEvent), done
        assert ("steady" in done.result.report.to_dict()["seconds"]) == (backbone == steadier)
        raws[backbone] = read_video(str(done.result.video)).frames
    change = (raws[steadier] - raws[tiny_backbone_folder]).abs().amax(1)
    assert change.max() > 0.05 and (change < 0.03).float().mean() > 0.7, "what is painted, and that alone"

    write_clip(tmp_path / "smooth.mp4")  # without corners: the camera cannot be followed, which is said
    *_, done = render(
        request.changed(clip=str(tmp_path / "smooth.mp4"), depth=None, size=(32, 48)), tmp_path / "smooth"
    )
    assert isinstance(done, DoneEvent) and done.result.report.to_dict()["from_other_frames"] is None
    assert any("how its own camera moves was not found" in note for note in done.result.report.to_dict()["notes"])


def test_what_is_removed_is_in_no_other_frame_either(tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    frames, z, wall = film(static_path(K))
    write_video(tmp_path / "card.mp4", Clip(frames, 8.0))
    np.savez(tmp_path / "depth.npz", z=z.numpy())
    np.savez(tmp_path / "mask.npz", mask=~wall.numpy())
    given = {"size": (96, 144), "depth": str(tmp_path / "depth.npz"), "backbone": str(tiny_backbone_folder)}
    request = RenderRequest.of(
        str(tmp_path / "card.mp4"), mask=str(tmp_path / "mask.npz"), remove=True, frames=T, **given
    )
    analysis = result_of(analyse(request))
    analysis = result_of(hide(analysis, request))
    # as if nothing of what stood behind had been found by itself
    analysis = replace(analysis, hidden=~wall, clip=Clip(frames, 8.0), depth=replace(analysis.depth, z=z))
    own = measure(analysis, request)
    assert wants_other_frames(analysis, request, own)
    found = completed(known_of(analysis, request, own))[1]
    assert found is not None
    new = found.measurement.mask & ~own.mask
    red = (found.measurement.video[:, 0] > 0.9) & (found.measurement.video[:, 1:].amax(1) < 0.1)
    assert new.sum() > 1000 and (red & new[:, 0]).sum() < 0.01 * new.sum()

    # where something else is to stand it stays unknown, and what is uncovered beside it is taken all the same
    replacing = request.changed(remove=False)
    assert wants_other_frames(analysis, replacing, own)
    beside = completed(known_of(analysis, replacing, own))[1]
    assert beside is not None
    gained = beside.measurement.mask & ~own.mask
    place = warp_to_path(frames, z, analysis.source, cameras_of(analysis, replacing), wall).mask
    assert not (gained & place).any() and (new & place).sum() > 500
    assert gained.sum() > 100 and not (gained & ~new).any()
    monkeypatch.setattr("pipeline.known.gather.SEARCHED_PIXELS", H * W // 4)
    small = completed(known_of(analysis, replacing, own))[1]
    assert small is not None and not (small.measurement.mask & ~own.mask & place).any()
    assert (small.measurement.mask & ~own.mask).sum() > 0.5 * gained.sum()
    still = replacing.changed(camera="still")
    assert not wants_other_frames(analysis, still, measure(analysis, still)), "there is nothing else to take"

    frozen = request.changed(move=replace(preset_move("orbit-left", 10.0, 55.0), timing=((0.0, 0.5),)))
    assert not wants_other_frames(analysis, frozen, own)

    # what is new moves by itself, and is not made to agree along the camera's motion
    known, gathered = completed(known_of(analysis, replacing, own))
    noise = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0))
    changed = settle(noise, known, gathered, 2) != noise
    painted = ~known.measurement.mask
    assert changed[:, :1][painted & ~place].float().mean() > 0.5 and not changed[place.expand_as(changed)].any()
    assert not wants_other_frames(analysis, request.changed(other_frames=False), own)
