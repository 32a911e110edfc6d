"""The ODE loop against closed forms: Gaussian data, for which the exact velocity field is known."""

import math
from itertools import pairwise

import pytest
import torch

from pipeline.method.sampler import flow_sigmas, sample, time_travel, within
from pipeline.method.solvers import dds
from pipeline.method.windows import window_weights, windowed, windows

SHAPE = (4, 3, 5, 6)


def gaussian_velocity(mean, std):
    """E[eps - z0 | z_t] for z0 ~ N(mean, std^2), eps ~ N(0, 1)."""

    def velocity(z_t, sigma):
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        centred = z_t - (1 - sigma) * mean
        return sigma / variance * centred - (mean + (1 - sigma) * std**2 / variance * centred)

    return velocity


def noise(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def run(*args, **options):
    return list(sample(*args, **options))


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 25, 50])
def test_sigmas_equal_those_of_diffusers(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler  # pyright: ignore[reportPrivateImportUsage]

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = flow_sigmas(steps, shift)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=1e-7, rtol=0)


def test_sigmas_fall_from_one_to_zero():
    sigmas = flow_sigmas(20, 3.0)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (5, 0.0), (5, float("nan"))])
def test_bad_schedules_are_refused(steps, shift):
    with pytest.raises(ValueError, match="must be"):
        flow_sigmas(steps, shift)


def test_the_flow_carries_noise_to_the_gaussian():
    # The exact flow of this field is affine: z_1 = eps goes to mean + std eps.
    mean, std = 0.7, 0.4
    steps = run(gaussian_velocity(mean, std), noise(), flow_sigmas(1000, 1.0))
    torch.testing.assert_close(steps[-1].z, mean + std * noise(), atol=4e-3, rtol=0)


def test_euler_is_of_first_order():
    mean, std = 0.7, 0.4
    error = [
        (run(gaussian_velocity(mean, std), noise(), torch.linspace(1, 0, n + 1))[-1].z - mean - std * noise())
        .abs()
        .max()
        for n in (100, 200)
    ]
    assert 1.8 < error[0] / error[1] < 2.2


def test_step_is_euler_without_consistency():
    velocity, sigmas = gaussian_velocity(0.7, 0.4), flow_sigmas(7, 3.0)
    z = noise()
    for step, (now, after) in zip(sample(velocity, z, sigmas), pairwise(sigmas.tolist()), strict=True):
        z = z + (after - now) * velocity(z, now)
        torch.testing.assert_close(step.z, z)


def test_steps_are_numbered_and_the_last_state_is_the_estimate():
    steps = run(gaussian_velocity(0.0, 1.0), noise(), flow_sigmas(6, 3.0))
    assert [step.index for step in steps] == list(range(6)) and {step.total for step in steps} == {6}
    assert [step.sigma for step in steps] == flow_sigmas(6, 3.0)[:-1].tolist()
    assert torch.equal(steps[-1].z, steps[-1].z0_hat)


def test_consistency_moves_the_estimate_and_not_the_noise():
    velocity, sigmas = gaussian_velocity(0.7, 0.4), flow_sigmas(5, 3.0)
    y = torch.full(SHAPE, 2.0)
    z = noise()
    steps = sample(velocity, z, sigmas, lambda z0, _: 0.5 * (z0 + y))
    for step, (now, after) in zip(steps, pairwise(sigmas.tolist()), strict=True):
        # Without reference to the loop: solve z_t = (1 - s) z0 + s eps for eps, given the velocity's z0.
        z0 = z - now * velocity(z, now)
        eps = (z - (1 - now) * z0) / now
        torch.testing.assert_close(step.z0_hat, 0.5 * (z0 + y))
        torch.testing.assert_close(
            (step.z - (1 - after) * step.z0_hat) / max(after, 1e-9) * (after > 0), eps * (after > 0)
        )
        z = step.z


def test_full_guidance_ends_on_the_measurement():
    y = torch.full(SHAPE, 2.0)
    consistency = lambda z0_hat, sigma: dds(z0_hat, y, torch.ones(SHAPE), gamma=1e-9)
    steps = run(gaussian_velocity(0.0, 1.0), noise(), flow_sigmas(5, 3.0), consistency)
    torch.testing.assert_close(steps[-1].z, y)


def test_unknown_part_keeps_following_the_prior():
    h = torch.zeros(SHAPE)
    h[..., :3] = 1
    consistency = lambda z0_hat, sigma: dds(z0_hat, torch.full(SHAPE, 2.0), h, gamma=1e-9)
    free = run(gaussian_velocity(0.7, 0.4), noise(), flow_sigmas(9, 3.0))[-1].z
    guided = run(gaussian_velocity(0.7, 0.4), noise(), flow_sigmas(9, 3.0), consistency)[-1].z
    assert torch.equal(guided[..., 3:], free[..., 3:])
    torch.testing.assert_close(guided[..., :3], torch.full_like(guided[..., :3], 2.0))


def test_guidance_acts_within_its_range_only():
    seen = []

    def consistency(z0_hat, sigma):
        seen.append(sigma)
        return z0_hat

    sigmas = flow_sigmas(20, 3.0)
    run(gaussian_velocity(0.0, 1.0), noise(), sigmas, within(consistency, 0.9, 0.4))
    assert seen == [sigma for sigma in sigmas.tolist() if 0.4 <= sigma <= 0.9] and 0 < len(seen) < 20
    seen.clear()
    run(gaussian_velocity(0.0, 1.0), noise(), sigmas, within(consistency))
    assert len(seen) == 20


def test_closing_early_stops_the_work():
    calls = []

    def velocity(z, sigma):
        calls.append(sigma)
        return torch.zeros_like(z)

    loop = sample(velocity, noise(), flow_sigmas(10, 3.0))
    assert not calls
    next(loop)
    next(loop)
    loop.close()
    assert len(calls) == 2 and next(loop, None) is None


def test_many_samples_have_the_right_moments():
    mean, std = -0.5, 0.3
    z = torch.randn(1, 1, 100, 200, generator=torch.Generator().manual_seed(1))
    result = run(gaussian_velocity(mean, std), z, flow_sigmas(400, 1.0))[-1].z
    assert math.isclose(result.mean(), mean, abs_tol=0.01) and math.isclose(result.std(), std, abs_tol=0.01)


LENGTHS = [(frames, length, overlap) for frames in (1, 2, 4, 5, 6, 9, 13, 22, 61) for length, overlap in
           ((2, 1), (5, 1), (5, 2), (5, 4), (21, 6))]  # fmt: skip


@pytest.mark.parametrize(("frames", "length", "overlap"), LENGTHS)
def test_windows_cover_every_latent_and_share_enough(frames, length, overlap):
    spans = windows(frames, length, overlap)
    assert spans[0].start == 0 and spans[-1].stop == frames
    assert all(span.stop - span.start == min(length, frames) for span in spans)
    assert all(a.start < b.start and a.stop - b.start >= overlap for a, b in pairwise(spans))
    # one fewer could not
    assert len(spans) == 1 or (len(spans) - 1) * (length - overlap) + overlap < frames


@pytest.mark.parametrize(("frames", "length", "overlap"), LENGTHS)
def test_window_weights_sum_to_one_and_ramp(frames, length, overlap):
    spans = windows(frames, length, overlap)
    weights = window_weights(spans)
    torch.testing.assert_close(weights.sum(0), torch.ones(frames))
    for before, (span, weight) in zip((None, *spans), zip(spans, weights, strict=True), strict=False):
        assert (weight >= 0).all() and not weight[: span.start].any() and not weight[span.stop :].any()
        assert weight[span].any()
        assert before is None or weight[span.start] == 0  # the latent that is taken for a single frame


def test_how_many_windows_a_clip_takes():
    count = lambda frames: len(windows((frames - 1) // 4 + 1, 21, 6))
    assert [count(frames) for frames in (17, 81, 85, 121, 141, 145, 241)] == [1, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(("frames", "length", "overlap"), [(0, 5, 1), (9, 5, 5), (9, 5, 0)])
def test_impossible_windows_are_refused(frames, length, overlap):
    with pytest.raises(ValueError, match="windows of"):
        windows(frames, length, overlap)


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_a_velocity_that_looks_at_one_latent_at_a_time_is_not_changed_by_windows(overlap):
    z = torch.randn(4, 14, 5, 6, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(4, 14, 5, 6, generator=torch.Generator().manual_seed(1))
    plain = lambda z, sigma: 3 * z - sigma * bias
    seen = []

    def part(z, sigma, span):
        seen.append(z.shape[1])
        return 3 * z - sigma * bias[:, span]

    in_windows = windowed(part, windows(14, 5, overlap))
    torch.testing.assert_close(in_windows(z, 0.3), plain(z, 0.3))
    assert set(seen) == {5}
    sigmas = flow_sigmas(6, 3.0)
    torch.testing.assert_close(run(in_windows, z, sigmas)[-1].z, run(plain, z, sigmas)[-1].z)


def test_windows_blend_and_agree_on_what_they_share():
    # Each window says its own number; the blend goes from one to the next and never leaves them.
    spans = windows(13, 5, 2)
    blended = windowed(lambda z, sigma, span: torch.full_like(z, float(spans.index(span))), spans)
    said = blended(torch.zeros(2, 13, 1, 1), 1.0)[0, :, 0, 0]
    assert said[0] == 0 and said[-1] == len(spans) - 1 and (said.diff() >= 0).all() and said.diff().max() <= 1


def test_one_window_is_the_velocity_itself():
    z = torch.randn(SHAPE)
    spans = windows(SHAPE[1], 5, 2)
    assert torch.equal(windowed(lambda z, sigma, span: z[:, span] ** 3, spans)(z, 0.5), z**3)


def test_time_travel_by_hand():
    sigmas = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0])
    assert torch.equal(time_travel(sigmas, 1), sigmas)
    twice = time_travel(sigmas, 2)
    wanted = [1, 0.8, 1, 0.8, 0.6, 0.8, 0.6, 0.4, 0.6, 0.4, 0]  # the last step, to clean, once
    torch.testing.assert_close(twice, torch.tensor(wanted))
    torch.testing.assert_close(time_travel(sigmas, 2, 2), torch.tensor([1, 0.8, 0.6, 1, 0.8, 0.6, 0.4, 0]))
    torch.testing.assert_close(time_travel(sigmas, 3, 3), torch.tensor([1, 0.8, 0.6, 0.4] * 3 + [0.0]))
    late = time_travel(sigmas, 2, guide_from=0.9, guide_until=0.5)
    torch.testing.assert_close(late, torch.tensor([1, 0.8, 0.6, 0.8, 0.6, 0.4, 0]))


def test_going_back_noises_as_the_forward_process_does():
    """A perfect estimate at sigma, noised to sigma' > sigma: the moments of (1 - sigma') z0 + sigma' eps."""
    z0 = torch.full((1, 1, 200, 200), 3.0)
    generator = torch.Generator().manual_seed(0)
    seen = {}

    def velocity(z, sigma):
        seen.setdefault(sigma, []).append(z)
        return (z - z0) / sigma  # knows z0

    levels = torch.tensor([0.9, 0.5, 0.8, 0.0])
    start = 0.1 * z0 + 0.9 * torch.randn(z0.shape, generator=generator)
    steps = run(velocity, start, levels, generator=generator)
    assert [(step.index, step.total, round(step.sigma, 3)) for step in steps] == [(0, 2, 0.9), (1, 2, 0.8)]
    (noised,) = seen[levels[2].item()]
    assert noised.mean() == pytest.approx(0.2 * 3, abs=0.02) and noised.std() == pytest.approx(0.8, abs=0.01)
    eps = (steps[0].z - 0.5 * z0) / 0.5
    assert (noised * eps).mean() == pytest.approx(0.2, abs=0.02)  # of its noise 0.5 * (1 - 0.8) / (1 - 0.5) is left
    torch.testing.assert_close(steps[-1].z, z0)


def test_the_state_is_refined_before_and_the_noise_after_the_prediction():
    calls = []

    def hook(name):
        return lambda state, sigma: calls.append((name, round(sigma, 2))) or state

    velocity = lambda z, sigma: calls.append(("velocity", round(sigma, 2))) or torch.zeros_like(z)
    hooks = {name: hook(name) for name in ("refine", "consistency", "renoise")}
    run(velocity, noise(), torch.tensor([1.0, 0.5, 0.0]), **hooks)
    one = lambda now, after: [("refine", now), ("velocity", now), ("consistency", now), ("renoise", after)]
    assert calls == [*one(1.0, 0.5), *one(0.5, 0.0)]
