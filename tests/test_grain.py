import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from pipeline.camera.geometry import CameraPath, default_intrinsics, static_path
from pipeline.evaluation.grain import louder, softened
from pipeline.evaluation.metrics import texture_distance
from pipeline.finish.grain import match_grain
from pipeline.media.video import Clip, read_video, write_video
from pipeline.render.events import DoneEvent
from pipeline.render.report import GRAINED
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

T, H, W = 3, 120, 180
SOFT = 3.0
K = default_intrinsics(H, W, T)


def textured(generator: torch.Generator, strength: float = 0.02) -> torch.Tensor:
    """A still of T frames, grey with fine correlated noise of that standard deviation."""
    noise = torch.from_numpy(cv2.GaussianBlur(torch.randn(H, W, generator=generator).numpy(), (0, 0), 1.0))
    return (0.5 + strength * noise / noise.std()).expand(T, 3, H, W).clone()


def painted_right() -> torch.Tensor:
    painted = torch.zeros(T, 1, H, W, dtype=torch.bool)
    painted[..., 110:] = True
    return painted


@pytest.fixture
def film():
    return textured(torch.Generator().manual_seed(1))


def grained(video, painted, z=None, path=None, softness=SOFT, **given):
    return match_grain(
        video.clone(), painted, torch.ones(T, H, W) if z is None else z, path or static_path(K), softness, **given
    )


def test_what_is_painted_gets_the_texture_of_film_and_film_stays_as_it_is(film):
    painted = painted_right()
    smooth = torch.where(painted, 0.5, film)
    out = grained(smooth, painted)
    assert torch.equal(out[~painted.expand_as(out)], film[~painted.expand_as(out)])
    # what is smoother than the softness is the model's to paint
    fine = film[0, 0] - torch.from_numpy(cv2.GaussianBlur(film[0, 0].numpy(), (0, 0), SOFT))
    inner, filmed = out[0, 0, 8:-8, 120:-8] - 0.5, fine[8:-8, 8:100]
    assert inner.std() == pytest.approx(filmed.std().item(), rel=0.25)
    alike = lambda part, shift: (part[:, shift:] * part[:, :-shift]).mean() / part.square().mean()
    for shift in (1, 2):
        assert alike(inner, shift) == pytest.approx(alike(filmed, shift).item(), abs=0.12), "and its spectrum"
    distances = [texture_distance(video, film, painted)[0] for video in (smooth, out)]
    assert distances[1] < 0.4 * distances[0]


def test_each_seed_has_its_own_noise_and_always_the_same(film):
    painted = painted_right()
    smooth = torch.where(painted, 0.5, film)
    assert torch.equal(grained(smooth, painted, seed=1), grained(smooth, painted, seed=1))
    assert not torch.equal(grained(smooth, painted, seed=1), grained(smooth, painted, seed=2))


def test_smooth_film_and_film_of_another_colour_lend_nothing(film):
    painted, flat = painted_right(), torch.full_like(film, 0.5)
    assert (grained(flat, painted) - flat).abs().max() < 1e-4
    smooth = torch.where(painted, torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1), film)
    assert (grained(smooth, painted) - smooth)[..., 125:].abs().max() < 1e-3


def test_a_few_loud_windows_do_not_make_a_calm_wall_loud():
    film = textured(torch.Generator().manual_seed(1), strength=0.003)
    film[..., :60, 60:110] = textured(torch.Generator().manual_seed(2))[..., :60, 60:110]
    film += torch.linspace(-0.1, 0.0, W).clamp(max=0)  # the wall is darker farther away
    painted = painted_right()
    out = grained(torch.where(painted, 0.5, film), painted)
    assert 0.001 < out[0, 0, 8:-8, 120:-8].std() < 0.003


def test_softened_paint_is_the_frame_outside_and_never_louder_than_the_truth(film):
    painted = painted_right()[:1]
    smooth = softened(film[:1], painted, SOFT)
    assert torch.equal(smooth[..., :110], film[:1, ..., :110])
    assert smooth[..., 120:-8].std() < 0.5 * film[..., 120:-8].std()
    assert louder(smooth, film[:1], painted, SOFT) == 0
    assert louder(0.5 + 4 * (film[:1] - 0.5), film[:1], painted, SOFT) == 1


def test_what_is_strong_by_its_shapes_makes_no_strong_noise():
    film = textured(torch.Generator().manual_seed(1), strength=0.15).clamp(0, 1)
    painted = painted_right()
    out = grained(torch.where(painted, 0.5, film), painted)
    assert 0.02 < out[0, 0, 8:-8, 120:-8].std() < 0.06


@pytest.mark.parametrize(
    "painted", (torch.zeros(T, 1, H, W, dtype=torch.bool), torch.ones(T, 1, H, W, dtype=torch.bool))
)
def test_nothing_painted_or_nothing_filmed_changes_nothing(film, painted):
    assert torch.equal(grained(film, painted), film)


def test_a_picture_smaller_than_a_window_stays_as_it_is(film):
    small, painted = film[..., :20, :20], painted_right()[..., :20, -20:]
    assert torch.equal(grained(small, painted, torch.ones(T, 20, 20)), small)


def test_grain_moves_with_the_scene(film):
    # a wall at depth 2, past which the camera slides by 4 pixels a frame
    z, world_from_cam = torch.full((T, H, W), 2.0), torch.eye(4).repeat(T, 1, 1)
    world_from_cam[:, 0, 3] = torch.arange(T) * 4 * 2 / K[0, 0, 0]
    path = CameraPath(world_from_cam, K)
    painted = painted_right()
    for t in range(T):
        painted[t, ..., : 110 - 4 * t] = False
        painted[t, ..., 110 - 4 * t :] = True
    out = grained(torch.where(painted, 0.5, film), painted, z, path)
    before, after = out[0, 0, :, 124:160], out[1, 0, :, 120:156]
    assert before.std() > 0.01 and (before - after).abs().max() < 0.1 * before.std()
    # depth of another size says the same
    coarse = grained(torch.where(painted, 0.5, film), painted, z[:, ::2, ::2], _half(path))
    assert (coarse - out)[..., 2:-2, 2:-2].abs().max() < 0.005


def _half(path: CameraPath) -> CameraPath:
    K = path.K.clone()
    K[:, :2] /= 2
    return CameraPath(path.world_from_cam, K)


def test_a_render_has_it_at_the_clip_s_own_resolution_where_it_is_painted(tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    film = textured(torch.Generator().manual_seed(1), strength=0.04)
    large = torch.nn.functional.interpolate(film, (240, 360), mode="bicubic")
    write_video(tmp_path / "film.mp4", Clip(large, 8.0))
    np.savez(tmp_path / "depth.npz", z=np.full((T, 240, 360), 2.0, np.float32))
    softer = shutil.copytree(tiny_backbone_folder, tmp_path / "softer")
    settings = json.loads((softer / "recapture.json").read_text())
    (softer / "recapture.json").write_text(json.dumps(settings | {"softness": 2.0}))
    given = {"size": (64, 96), "steps": 1, "depth": str(tmp_path / "depth.npz"), "backbone": str(softer)}
    request = RenderRequest.of(str(tmp_path / "film.mp4"), camera="dolly-out", **given)
    results, reports = {}, {}
    for grain in (True, False):
        *_, done = render(request.changed(grain=grain), tmp_path / str(grain))
        assert isinstance(done, DoneEvent), done
        results[grain], reports[grain] = read_video(str(done.result.video)).frames, done.result.report.to_dict()
    assert "grain" in reports[True]["seconds"] and "grain" not in reports[False]["seconds"]
    assert GRAINED in reports[True]["notes"] and GRAINED not in reports[False]["notes"]
    assert reports[True]["measurement"] == reports[False]["measurement"], "figures are of the model's own paint"
    change = (results[True] - results[False]).abs().amax(1)[-1]
    assert change[:8].mean() > 0.005, "the border is painted"
    assert change[80:160, 120:240].max() < 0.03, "the middle is filmed"
    # at the working size there is nothing to match
    *_, done = render(request.changed(composite=False), tmp_path / "raw")
    assert isinstance(done, DoneEvent) and "grain" not in done.result.report.to_dict()["seconds"]
