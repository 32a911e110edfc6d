"""Of what is painted, colours are the model's and detail is the filling's."""

import torch

from pipeline.finish.texture import take_texture

T, H, W = 3, 40, 56


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    raw, filled = 0.2 + 0.6 * torch.rand(2, T, 3, H, W, generator=generator)
    holes = torch.zeros(T, 1, H, W, dtype=torch.bool)
    holes[1:, :, 10:30, 15:40] = True
    return raw, filled, holes


def test_what_is_known_stays_bit_for_bit():
    raw, filled, holes = example()
    kept = raw.clone()
    result = take_texture(raw, filled, holes, 4.0)
    known = ~holes.expand_as(raw)
    assert torch.equal(raw, kept) and torch.equal(result[known], raw[known])
    assert not torch.equal(result, raw)


def test_another_colour_is_the_models_and_a_filling_it_agrees_with_stays():
    _, filled, holes = example()
    assert torch.allclose(take_texture(filled, filled, holes, 4.0), filled)
    tinted = torch.where(holes, filled + torch.tensor([0.1, -0.1, 0.05])[:, None, None], filled)
    assert torch.allclose(take_texture(tinted, filled, holes, 4.0), tinted, atol=1e-5)


def test_noise_of_the_model_is_left_out_up_to_the_rim():
    _, _, holes = example()
    filled = torch.full((T, 3, H, W), 0.5)
    noisy = (filled + 0.1 * torch.randn(filled.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    result = take_texture(noisy, filled, holes, 4.0)
    inside = holes.expand_as(filled)
    assert (result - filled)[inside].std() < 0.15 * (noisy - filled)[inside].std()
