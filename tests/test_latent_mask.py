"""Laws of the latent masks, with an encoder of which the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from pipeline.latent_mask import PHI, binary_mask, difference_mask

T, H, W = 9, 16, 24


def encode(video):
    """A causal block encoder: per 4x8x8 block (the first frame alone) mean, contrast to the left half, first frame."""
    x = F.avg_pool2d(video * 2 - 1, 4)
    x = rearrange(torch.cat([x[:1].expand(3, -1, -1, -1), x]), "(t g) c h w -> t g c h w", g=4).mean(2)
    blocks = rearrange(x, "t g (h a) (w b) -> t h w g a b", a=2, b=2)
    mean = blocks.mean(dim=(-3, -2, -1))
    contrast = blocks[..., 0].mean(dim=(-2, -1)) - blocks[..., 1].mean(dim=(-2, -1))
    return torch.stack([mean, contrast, blocks[..., 0, :, :].mean(dim=(-2, -1))])


@pytest.fixture
def video():
    return torch.rand(T, 3, H, W, generator=torch.Generator().manual_seed(0))


def mask_of(value=True):
    return torch.full((T, 1, H, W), value)


@pytest.mark.parametrize("phi", PHI)
def test_all_known_gives_exactly_one(phi, video):
    h = difference_mask(encode, video, mask_of(True), phi=phi).h
    assert h.shape == (3, 3, 2, 3) and torch.equal(h, torch.ones_like(h))
    assert torch.equal(binary_mask(mask_of(True), 3).h, h)


@pytest.mark.parametrize("phi", PHI)
def test_all_unknown_gives_exactly_zero(phi, video):
    h = difference_mask(encode, video, mask_of(False), phi=phi).h
    assert torch.equal(h, torch.zeros_like(h))
    assert torch.equal(binary_mask(mask_of(False), 3).h, h)


@pytest.mark.parametrize("phi", PHI)
def test_values_lie_between_zero_and_one(phi, video):
    mask = torch.rand(T, 1, H, W, generator=torch.Generator().manual_seed(1)) > 0.5
    for gate in (True, False):
        h = difference_mask(encode, video, mask, phi=phi, gate=gate).h
        assert h.min() >= 0 and h.max() <= 1 and h.std() > 0


def test_latents_out_of_reach_of_the_hole_stay_known(video):
    mask = mask_of()
    mask[:, :, :8, :8] = False
    h = difference_mask(encode, video, mask).h
    assert (h[:, :, 0, 0] == 0).all()
    h[:, :, 0, 0] = 1
    assert torch.equal(h, torch.ones_like(h))


def test_the_gate_overrides_accidental_agreement():
    grey = torch.full((T, 3, H, W), 0.5)  # hiding a grey pixel changes nothing
    mask = mask_of()
    mask[:, :, :8, :8] = False
    assert (difference_mask(encode, grey, mask, gate=False).h == 1).all()
    h = difference_mask(encode, grey, mask).h
    assert (h[:, :, 0, 0] == 0).all() and h.sum() == h.numel() - h[:, :, 0, 0].numel()


def test_the_mask_differs_between_channels(video):
    mask = mask_of()
    mask[2:5] = False  # the last three frames of the second group: its first-frame channel is still known
    h = difference_mask(encode, video, mask).h
    assert (h[2] == 1).all() and (h[0, 1] < 1).all()
    assert (h[:, [0, 2]] == 1).all()


def test_a_larger_difference_is_known_less():
    d = torch.linspace(0, 2, 12).view(1, 1, 3, 4)
    for phi in PHI.values():
        value = phi(d, torch.ones(1, 1, 1, 1)).flatten()
        assert value[0] == 0 and (value.diff() > 0).all() and value[-1] > 0.85


def test_a_still_channel_does_not_amplify_rounding(video):
    noisy = lambda x: torch.cat([encode(x), 1e-4 * x.mean() + torch.zeros(1, 3, 2, 3)])
    mask = mask_of()
    mask[:, :, :8, :8] = False
    assert (difference_mask(noisy, video, mask).h[3].flatten()[1:6] > 0.99).all()


def test_binary_by_hand():
    mask = mask_of()
    mask[3, :, :8, :8] = False  # one frame of the second group: AND makes the whole group unknown there
    mask[0, :, 8:, 16:] = False  # the first frame is a group of its own
    mask[7, :, 8:, 0] = False  # beside the centre of its cell
    wanted = torch.ones(3, 2, 3)
    wanted[1, 0, 0] = 0
    wanted[0, 1, 2] = 0
    h = binary_mask(mask, 5).h
    assert h.shape == (5, 3, 2, 3) and (h == wanted).all()


def test_binary_is_monotone():
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        mask = torch.rand(T, 1, H, W, generator=generator) > 0.2
        subset = mask & (torch.rand(T, 1, H, W, generator=generator) > 0.2)
        assert (binary_mask(subset, 2).h <= binary_mask(mask, 2).h).all()


def test_a_single_frame(video):
    h = difference_mask(encode, video[:1], mask_of()[:1]).h
    assert h.shape == (3, 1, 2, 3) and (h == 1).all()
    assert binary_mask(mask_of()[:1], 3).h.shape == (3, 1, 2, 3)
