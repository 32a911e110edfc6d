import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline import InputError
from pipeline.camera.geometry import follow, invert_rigid
from pipeline.depth.estimate import Depth, subject_distance
from pipeline.evaluation.metrics import FEWEST_INLIERS, camera_error, motion_smoothness, texture_distance
from pipeline.evaluation.scenes import measure_sample
from pipeline.evaluation.scores import METRICS, Case, measure, world_case
from pipeline.media.quality import psnr, ssim
from pipeline.world.cameras import preset_motion
from pipeline.world.scenes import render_sample


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 40, 52, generator=generator)
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_known_error():
    a = torch.full((2, 3, 8, 8), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(a, a) == math.inf


def test_psnr_counts_masked_pixels_only():
    a = torch.zeros(1, 3, 4, 4)
    b = a.clone()
    b[..., 0] = 1
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert psnr(a, b, mask) == pytest.approx(10 * math.log10(4), abs=1e-6)
    mask[..., 0] = False
    assert psnr(a, b, mask) == math.inf


def test_ssim_is_one_for_equal_videos_and_falls_with_noise(videos):
    a, b = videos
    assert ssim(a, a) == pytest.approx(1)
    assert 0 < ssim(a, b) < 0.99


def test_ssim_equals_a_direct_computation(videos):
    a, b = videos

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=5, axes=(2, 3))

    x, y = a.double().numpy(), b.double().numpy()
    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(a, b) == pytest.approx(expected.mean(), abs=0.01)  # the borders are treated differently


def test_what_stands_in_the_holes_cannot_change_ssim(videos):
    a, b = videos
    mask = torch.rand(2, 1, 40, 52, generator=torch.Generator().manual_seed(1)) > 0.3
    assert ssim(a, b, mask) == pytest.approx(ssim(a, torch.where(mask, b, 0.7), mask), abs=1e-9)


def test_unusable_inputs_are_refused(videos):
    a, b = videos
    with pytest.raises(InputError, match="one shape"):
        psnr(a, b[:1])
    with pytest.raises(InputError, match="mask must have"):
        ssim(a, b, torch.ones(2, 3, 40, 52, dtype=torch.bool))
    with pytest.raises(InputError, match="empty"):
        psnr(a, b, torch.zeros(2, 1, 40, 52, dtype=torch.bool))


# --- steadiness -------------------------------------------------------------------------------------------------------


def panned(frames: int, step: int) -> torch.Tensor:
    """A picture that slides sideways by whole pixels."""
    rng = np.random.default_rng(0)
    picture = gaussian_filter(rng.random((3, 64, 140)), (0, 2, 2))
    picture = torch.from_numpy((picture - picture.min()) / (picture.max() - picture.min())).float()
    return torch.stack([picture[..., step * t : step * t + 96] for t in range(frames)])


def test_motion_that_goes_on_evenly_is_smooth():
    even, noise = panned(7, 2), 0.1 * torch.randn(7, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert motion_smoothness(even[:1].expand(5, -1, -1, -1)) == 1
    smooth, noisy = motion_smoothness(even), motion_smoothness(even + noise)
    assert smooth is not None and noisy is not None and noisy < 0.95 < 0.985 < smooth < 1
    uneven = motion_smoothness(even[[0, 0, 2, 2, 4, 4, 6]])  # every other frame stands still
    assert uneven is not None and uneven < smooth - 0.02
    assert motion_smoothness(even[:2]) is None


# --- the camera -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return render_sample(5, frames=5)


def test_the_camera_of_the_source_is_found_in_the_source(sample):
    source = sample.source
    found = camera_error(source.frames, source.frames, source.z, source.path, source.path)
    assert found.found == found.frames == 5
    assert found.rotation == pytest.approx(0, abs=1e-3) and found.translation == pytest.approx(0, abs=1e-5)


def test_the_camera_of_the_true_video_is_found_and_that_of_another_one_missed(sample):
    source, target = sample.source, sample.target
    known = source.z, source.path, target.path
    true = camera_error(target.frames, source.frames, *known)
    assert true.found >= 4 and true.rotation < 1 and true.translation < 0.01
    still = camera_error(source.frames, source.frames, *known)
    moved = invert_rigid(source.path.world_from_cam) @ target.path.world_from_cam
    cosine = (moved[:, :3, :3].diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    turned = torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean().item()
    went = moved[:, :3, 3].norm(dim=-1).mean().item() / subject_distance(Depth(source.z, True))
    assert still.rotation == pytest.approx(turned, abs=0.1) and turned > 5
    assert still.translation == pytest.approx(went, abs=0.005) and went > 0.1


def test_the_error_grows_with_the_angle_that_is_missed(sample):
    source = sample.source
    distance = subject_distance(Depth(source.z, True))
    for degrees in (4.0, 20.0):
        path = follow(source.path, preset_motion("orbit-left", degrees, 5, distance))
        found = camera_error(source.frames, source.frames, source.z, source.path, path)
        assert found.rotation == pytest.approx(degrees / 2, abs=0.01)  # from none to all of it
        chord = np.mean([2 * math.sin(math.radians(degrees) * t / 8) for t in range(5)])
        assert found.translation == pytest.approx(chord, abs=1e-3)


def test_frames_that_show_nothing_are_left_out_and_counted(sample):
    source = sample.source
    blank = source.frames.clone()
    blank[2:] = 0.5
    found = camera_error(blank, source.frames, source.z, source.path, source.path)
    assert (found.found, found.frames) == (2, 5) and found.rotation < 1e-3
    none = camera_error(torch.rand(5, 3, 128, 208), source.frames, source.z, source.path, source.path)
    assert none.found == 0 and math.isnan(none.rotation) and FEWEST_INLIERS > 10


# --- a case -----------------------------------------------------------------------------------------------------------

FREE = [name for name, metric in METRICS.items() if metric.weights is None]


def test_of_the_truth_everything_is_best(sample):
    measurement = measure_sample(sample)
    figures = measure(world_case(sample, measurement, sample.target.frames), FREE)
    assert list(figures) == FREE
    for where in ("holes", "whole"):
        assert figures[f"psnr_{where}"] == math.inf and figures[f"ssim_{where}"] == pytest.approx(1)
    assert figures["psnr_observed"] > 20 and figures["flicker"] == 1
    assert figures["rotation_error"] < 1 and figures["translation_error"] < 1 and figures["cameras_found"] >= 80


def test_what_does_not_apply_is_left_out(sample):
    measurement = measure_sample(sample)
    bare = Case(sample.target.frames, sample.source.frames, measurement)
    assert set(measure(bare, FREE)) == {"psnr_observed", "ssim_observed", "motion_smoothness"}
    whole = world_case(sample, measure_sample(sample), torch.full_like(sample.target.frames, 0.5))
    blank = measure(whole, ["psnr_whole", "rotation_error", "translation_error", "cameras_found"])
    assert set(blank) == {"psnr_whole", "cameras_found"} and blank["cameras_found"] == 0
    with pytest.raises(InputError, match="Unknown metric beauty"):
        measure(bare, ["beauty"])


def test_the_table_says_what_is_better():
    assert {metric.better for metric in METRICS.values()} == {"higher", "lower"}
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)
    assert {need for metric in METRICS.values() for need in metric.needs} <= set(Case.__dataclass_fields__)


def test_texture_distance_tells_texture_not_where_it_lies():
    generator = torch.Generator().manual_seed(0)
    noise = lambda: 0.5 + 0.1 * torch.randn(1, 3, 64, 96, generator=generator)
    mask = torch.zeros(1, 1, 64, 96, dtype=torch.bool)
    mask[..., 16:48, 16:80] = True
    a, b, flat = noise(), noise(), torch.full((1, 3, 64, 96), 0.5)
    assert texture_distance(a, a, mask) == [0, 0, 0]
    for other, smooth in zip(texture_distance(a, b, mask), texture_distance(a, flat, mask), strict=True):
        assert other < 0.2 * smooth
    # only the masked part counts, beyond the reach of a patch and of the pyramid
    elsewhere = a.clone()
    elsewhere[..., :2, :] = 0
    assert texture_distance(a, elsewhere, mask)[0] == 0
    with pytest.raises(InputError, match="too small"):
        texture_distance(a, b, torch.zeros_like(mask).index_fill(2, torch.tensor([0]), True))
