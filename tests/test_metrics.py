import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline import InputError
from pipeline.evaluation.metrics import psnr, ssim


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
