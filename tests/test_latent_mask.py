"""Laws of the latent masks, with an encoder of which the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from pipeline.method.latent_mask import (
    LATENT_MASKS,
    PHI,
    MaskInputs,
    binary_mask,
    difference_mask,
    filling_mask,
    jacobian_mask,
    pooled_mask,
)

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
        value = phi(d, torch.full((1, 1, 1, 1), 0.3)).flatten()
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


def hole(frames=slice(None), rows=slice(0, 8), columns=slice(0, 8)):
    mask = mask_of()
    mask[frames, :, rows, columns] = False
    return mask


def inputs_of(video, mask, **given):
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(video.shape, generator=generator)
    filled = torch.where(mask, video, 0.5)
    learned = lambda mask, filled: difference_mask(encode, video, mask, gate=False).h
    return MaskInputs(encode, (3, 3, 2, 3), mask, filled, source, video, **{"learned": learned, **given})


@pytest.mark.parametrize("name", LATENT_MASKS)
def test_every_kind_is_one_where_all_is_known_and_zero_where_nothing_is(name, video):
    make = LATENT_MASKS[name].make
    assert torch.equal(make(inputs_of(video, mask_of(True))).h, torch.ones(3, 3, 2, 3))
    assert torch.equal(make(inputs_of(video, mask_of(False))).h, torch.zeros(3, 3, 2, 3))


@pytest.mark.parametrize("name", LATENT_MASKS)
def test_every_kind_lies_between_zero_and_one_and_sees_the_mask(name, video):
    mask = torch.rand(T, 1, H, W, generator=torch.Generator().manual_seed(1)) > 0.5
    h = LATENT_MASKS[name].make(inputs_of(video, mask)).h
    assert h.shape == (3, 3, 2, 3) and h.min() >= 0 and h.max() <= 1 and h.std() > 0


@pytest.mark.parametrize("name", LATENT_MASKS)
def test_every_kind_leaves_what_is_out_of_reach_known(name, video):
    h = LATENT_MASKS[name].make(inputs_of(video, hole())).h
    assert (h[:, :, 0, 0] == 0).all()
    h[:, :, 0, 0] = 1
    assert torch.equal(h, torch.ones_like(h))


def test_the_nearest_frame_by_hand():
    # frames 0 | 1 2 3 4 | 5 6 7 8: the frames nearest to the middle of the groups are 0, 3 and 7
    for frame, wanted in ((0, 0), (3, 1), (7, 2)):
        h = binary_mask(hole([frame]), 1, every_frame=False).h
        assert (h[0, wanted, 0, 0], h.sum()) == (0, h.numel() - 1)
    for frame in (1, 2, 4, 5, 6, 8):
        assert binary_mask(hole([frame]), 1, every_frame=False).h.all()


def test_pooling_by_hand():
    assert pooled_mask(hole([1]), 2).h[:, 1, 0, 0].tolist() == [0.75, 0.75]
    assert pooled_mask(hole([0], slice(0, 4)), 1).h[0, 0, 0, 0] == 0.5


def test_masks_are_ordered():
    for seed in range(5):
        mask = torch.rand(T, 1, H, W, generator=torch.Generator().manual_seed(seed)) > 0.2
        assert (binary_mask(mask, 1).h <= binary_mask(mask, 1, every_frame=False).h).all()


def test_the_filling_does_not_matter_where_it_is_the_same(video):
    mask = hole([2], slice(0, 4))
    assert (filling_mask(encode, video, video, mask).h == 1).all()
    h = filling_mask(encode, video, 1 - video, mask).h
    # it moves the mean of the group, and not the channel that looks at the first frame of a group alone
    assert h[0, 1, 0, 0] < 1 and (h[2] == 1).all()


def test_the_jacobian_of_a_mean_is_the_share_of_its_pixels(video):
    """A hole in one of four frames under a mean: a quarter of the squared Jacobian, up to the chance of the probes."""
    mean = lambda x: encode(x)[:1]
    many = torch.stack([jacobian_mask(mean, video, hole([2]), seed=seed).h[0, 1, 0, 0] for seed in range(40)])
    assert many.mean() == pytest.approx(0.75, abs=0.06)
    h = jacobian_mask(encode, video, hole([2])).h
    assert h[0, 1, 0, 0] < 1 and h[2, 1, 0, 0] == 1  # the channel of the first frame does not see it


def test_a_latent_that_no_pixel_moves_is_known_if_a_pixel_is(video):
    still = lambda x: torch.zeros(1, 3, 2, 3)
    h = jacobian_mask(still, video, hole()).h
    assert (h[0, :, 0, 0] == 0).all() and h.sum() == h.numel() - 3


@pytest.mark.parametrize("phi", ["wiener", "exp", "tanh", "ratio"])
def test_a_higher_temperature_knows_more(phi, video):
    cold, hot = (difference_mask(encode, video, hole(rows=slice(0, 4)), phi=phi, tau=tau).h for tau in (0.1, 1.0))
    assert (cold <= hot).all() and (cold < hot).any()
