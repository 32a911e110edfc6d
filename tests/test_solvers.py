"""Laws of the solvers: closed forms, all known, nothing known, and what each becomes without its extra part."""

from functools import partial
from math import sqrt

import pytest
import torch
from einops import rearrange

from pipeline import InputError
from pipeline.method.sampler import flow_sigmas, sample, time_travel
from pipeline.method.solvers import (
    SOLVERS,
    Given,
    dds,
    dds_cg,
    dds_pixels,
    flowdps,
    flowdps_noise,
    gibbs,
    noise_anew,
    nvs_dgs,
    nvs_post,
    replacement,
    trusted,
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    z0_hat, y_full = torch.randn(2, 4, 3, 5, 6, generator=generator)
    return z0_hat, y_full, torch.rand(4, 3, 5, 6, generator=generator)


def test_closed_form_is_the_minimiser(problem):
    z0_hat, y_full, h = (tensor.double() for tensor in problem)
    z = dds(z0_hat, y_full, h, gamma=0.3).requires_grad_()
    loss = 0.5 * (h * y_full - h * z).square().sum() + 0.15 * (z - z0_hat).square().sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.abs().max() < 1e-12


def test_cg_converges_to_the_closed_form(problem):
    exact = dds(*problem, gamma=0.1)
    errors = [(dds_cg(*problem, gamma=0.1, iterations=k) - exact).abs().max() for k in (1, 3, 10, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 1e-5


def test_cg_stays_converged(problem):
    z = dds_cg(*problem, gamma=0.1, iterations=300)
    torch.testing.assert_close(z, dds(*problem, gamma=0.1), atol=1e-5, rtol=0)


def test_cg_without_iterations_is_the_start(problem):
    assert torch.equal(dds_cg(*problem, gamma=0.1, iterations=0), problem[0])


def test_cg_meets_a_binary_mask_in_one_iteration(problem):
    z0_hat, y_full, h = problem
    h = (h > 0.5).float()  # residuals all lie in one eigenspace
    torch.testing.assert_close(dds_cg(z0_hat, y_full, h, gamma=0.2, iterations=1), dds(z0_hat, y_full, h, gamma=0.2))


def test_cg_treats_the_samples_of_a_batch_apart(problem):
    z0_hat, y_full, h = problem
    solve = partial(dds_cg, gamma=0.1, iterations=5)
    batch = solve(torch.stack([z0_hat, 5 * z0_hat]), torch.stack([y_full] * 2), torch.stack([h] * 2))
    torch.testing.assert_close(batch[0], solve(z0_hat, y_full, h))
    torch.testing.assert_close(batch[1], solve(5 * z0_hat, y_full, h))


DDS = {"dds": dds, "dds_cg": partial(dds_cg, iterations=5)}


@pytest.mark.parametrize("name", DDS)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0])
def test_nothing_known_leaves_the_estimate(name, gamma, problem):
    z0_hat, y_full, h = problem
    assert torch.equal(DDS[name](z0_hat, y_full, torch.zeros_like(h), gamma=gamma), z0_hat)


def test_unknown_latents_are_left_exactly(problem):
    z0_hat, y_full, h = problem
    h = h.where(h > 0.5, 0.0)
    for solve in DDS.values():
        z = solve(z0_hat, y_full, h, gamma=0.1)
        assert torch.equal(z[h == 0], z0_hat[h == 0])


@pytest.mark.parametrize("name", DDS)
def test_all_known_and_no_prior_gives_the_measurement(name, problem):
    z0_hat, y_full, h = problem
    z = DDS[name](z0_hat, y_full, torch.ones_like(h), gamma=1e-9)
    torch.testing.assert_close(z, y_full)


@pytest.mark.parametrize("name", DDS)
def test_large_gamma_keeps_the_prior(name, problem):
    z = DDS[name](*problem, gamma=1e8)
    torch.testing.assert_close(z, problem[0], atol=1e-6, rtol=0)


def test_closed_form_lies_between_estimate_and_measurement(problem):
    z0_hat, y_full, _ = problem
    z = dds(*problem, gamma=0.1)
    assert ((z - z0_hat) * (z - y_full) <= 1e-6).all()


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", DDS)
def test_bad_gamma_is_refused(name, gamma, problem):
    with pytest.raises(InputError, match="gamma"):
        DDS[name](*problem, gamma=gamma)


# --- all solvers, on a toy: Gaussian data, whose velocity is known, and an invertible linear VAE --------------------

SHAPE = (12, 3, 4, 6)  # latents of three frames of 8 x 12 pixels
MEAN, STD = 0.3, 0.5


def velocity(z, sigma):
    """E[eps - z0 | z_t] for z0 ~ N(MEAN, STD^2): every latent by itself."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    centred = z - (1 - sigma) * MEAN
    return sigma / variance * centred - (MEAN + (1 - sigma) * STD**2 / variance * centred)


def encode(video):
    return 2 * rearrange(video, "t c (h a) (w b) -> (c a b) t h w", a=2, b=2) - 1


def decode(z):
    return (rearrange(z, "(c a b) t h w -> t c (h a) (w b)", a=2, b=2) + 1) / 2


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def given_of(mask, solver="none", **settings):
    """mask: 3 1 8 12, the same for all colours, so that the latent mask is exact."""
    video = torch.rand(3, 3, 8, 12, generator=seeded(7))
    y_full, h = encode(video), (encode(mask.expand_as(video).float()) + 1) / 2
    own = SOLVERS[solver]
    defaults = {"gamma": 1e-9, "iterations": own.iterations or 1, "step_size": own.step_size or 0.0}
    pixels = {"video": video, "mask": mask, "encode": encode, "decode": decode}
    return Given(y_full, h, velocity, **{**defaults, **settings}, generator=seeded(), **pixels)


def solve(solver, mask, *, steps=8, guided=(1.0, 0.0), **settings):
    """The result of a solver on the toy, from the same noise each time."""
    given = given_of(mask, solver, **settings)
    sigmas, z = flow_sigmas(steps, 2.0), torch.randn(SHAPE, generator=seeded(0))
    if SOLVERS[solver].resamples:
        sigmas = time_travel(sigmas, given.iterations, guide_from=guided[0], guide_until=guided[1])
    *_, last = sample(velocity, z, sigmas, **SOLVERS[solver].hooks(given, *guided), generator=given.generator)
    return last.z, given.y_full


def everywhere(value):
    return torch.full((3, 1, 8, 12), value)


def half():
    mask = everywhere(True)
    mask[..., 6:] = False
    return mask


@pytest.mark.parametrize("name", ["dds", "dds_cg", "dds_pixels", "replacement", "repaint", "gibbs"])
def test_all_known_ends_on_the_measurement(name):
    z, y_full = solve(name, everywhere(True))
    torch.testing.assert_close(z, y_full)


def test_direct_guidance_ends_on_the_measurement_where_it_trusts_it():
    z, y_full = solve("nvs_dgs", everywhere(True))
    agrees = (z == y_full).flatten(2).float().mean(dim=(0, 2))
    assert agrees[0] == 1  # the first frame is trusted throughout; of the others the nearest 60 % at the end
    assert agrees[1:].tolist() == pytest.approx([0.6, 0.6], abs=0.01)


@pytest.mark.parametrize(("name", "step_size"), [("nvs_post", 0.1), ("flowdps", 5.0)])
def test_solvers_by_gradients_come_nearer_to_the_measurement(name, step_size):
    distances = []
    for size in (0.0, step_size):
        z, y_full = solve(name, everywhere(True), step_size=size)
        distances.append((z - y_full).square().mean())
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize("name", ["dds", "dds_cg", "nvs_dgs", "nvs_post", "replacement", "repaint"])
def test_nothing_known_is_unguided_sampling_bit_for_bit(name):
    once = {"iterations": 1} if SOLVERS[name].resamples else {}
    assert torch.equal(solve(name, everywhere(False), **once)[0], solve("none", everywhere(False))[0])


@pytest.mark.parametrize("name", ["replacement", "repaint"])
def test_resampling_what_is_unknown_keeps_the_distribution(name):
    """Not the sample: the state is noised anew. The velocity is exact, so the moments must stay, up to step size."""
    z, _ = solve(name, everywhere(False), iterations=3, steps=200)
    assert not torch.allclose(z, solve("none", everywhere(False), steps=200)[0], atol=0.1)
    assert z.mean() == pytest.approx(MEAN, abs=0.06) and z.std() == pytest.approx(STD, abs=0.05)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "none"])
def test_outside_of_the_guided_range_every_solver_is_none(name):
    free, _ = solve("none", half())
    assert torch.equal(solve(name, half(), guided=(1e-6, 1e-6), step_size=1.0)[0], free)
    assert not torch.equal(solve(name, half(), guided=(1.0, 0.3), step_size=1.0)[0], free)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_seed_decides_the_result(name):
    assert torch.equal(solve(name, half())[0], solve(name, half())[0])


@pytest.mark.parametrize("name", ["dds", "dds_cg", "replacement", "nvs_dgs", "nvs_post"])
def test_what_is_unknown_does_not_feel_the_measurement(name):
    # of the posterior step only the unit of its gradient is common, and that is 0 where nothing is known
    once = {"iterations": 1} if SOLVERS[name].resamples else {}
    z, free = solve(name, half(), **once)[0], solve("none", half())[0]
    assert torch.equal(z[..., 3:], free[..., 3:]) and not torch.equal(z[..., :3], free[..., :3])


def test_repaint_with_one_pass_is_replacement():
    # where nothing couples the latents, the fresh noise of the known ones reaches nothing but them
    once = solve("repaint", half(), iterations=1)[0]
    torch.testing.assert_close(once, solve("replacement", half(), iterations=1)[0])
    assert not torch.allclose(solve("repaint", half(), iterations=2)[0], once, atol=0.1)


def test_repaint_noises_what_is_known_independently():
    given = given_of(half())
    eps = torch.randn(SHAPE, generator=seeded(5))
    noise = noise_anew(eps, given.h, seeded(9))
    assert torch.equal(noise[..., 3:], eps[..., 3:])
    assert torch.equal(noise[..., :3], torch.randn(SHAPE, generator=seeded(9))[..., :3])


def test_replacement_by_hand():
    z0_hat, y_full = torch.randn(2, *SHAPE, generator=seeded())
    h = torch.rand(SHAPE, generator=seeded(2))
    torch.testing.assert_close(replacement(z0_hat, y_full, h), h * y_full + (1 - h) * z0_hat)


def test_dds_in_pixels_of_an_invertible_vae_is_dds_in_latents():
    g = given_of(half())
    z0_hat = torch.randn(SHAPE, generator=seeded(3))
    for gamma in (1e-3, 0.5):
        z = dds_pixels(z0_hat, g.video, g.mask, encode, decode, gamma=gamma)
        torch.testing.assert_close(z, dds(z0_hat, g.y_full, g.h, gamma=gamma))


def test_direct_guidance_takes_the_nearest_of_each_frame():
    y_full, h = torch.zeros(1, 3, 1, 10), torch.ones(1, 3, 1, 10)
    h[..., 9] = 0
    z0_hat = torch.arange(1.0, 11).expand(1, 3, 1, 10)
    early = trusted(z0_hat, y_full, h, 0.95)  # sigma_EDM = 19 > 7
    assert torch.equal(early, h > 0.5)
    late = trusted(z0_hat, y_full, h, 0.5)  # sigma_EDM = 1 < 3.5
    assert late.sum(dim=-1).flatten().tolist() == [9, 5, 5]  # 60 % of nine, but for the first frame
    assert late[0, 1, 0, :5].all()
    assert torch.equal(nvs_dgs(z0_hat, y_full, h, 0.5), torch.where(late, y_full, z0_hat))
    middle = trusted(z0_hat, y_full, h, 0.82)  # sigma_EDM = 4.6: the last frame is late, the one before early
    assert middle.sum(dim=-1).flatten().tolist() == [9, 9, 5]
    assert not trusted(z0_hat, y_full, torch.zeros_like(h), 0.5).any()


def test_the_posterior_step_by_hand():
    g, sigma = given_of(half()), 0.4
    z = torch.randn(SHAPE, generator=seeded(4))
    # z0_hat is affine in z here, hence the gradient is proportional to the residual on what is trusted
    z0_hat = z - sigma * velocity(z, sigma)
    slope = (z0_hat - g.y_full) * trusted(z0_hat, g.y_full, g.h, sigma)
    wanted = z - 0.02 * sqrt(sigma * (1 - sigma)) * slope / slope.std()
    moved = nvs_post(z, g.y_full, g.h, sigma, velocity, step_size=0.02)
    torch.testing.assert_close(moved, wanted)
    assert not moved.requires_grad
    assert torch.equal(nvs_post(z, g.y_full, g.h, sigma, velocity, step_size=0.0), z)


def test_flowdps_walks_straight_to_the_measurement():
    """With an isometry for a decoder the gradient of the distance has length 1 on what is known."""
    g, sigma = given_of(half()), 0.7
    z0_hat = torch.randn(SHAPE, generator=seeded(4)) * 0.3
    away = torch.where(g.h > 0, z0_hat - g.y_full, 0.0)
    reach = away.norm().item()
    walk = partial(flowdps, z0_hat, g.video, g.mask, sigma, decode, iterations=3)
    torch.testing.assert_close(walk(step_size=0.1 * reach), z0_hat - sigma * 0.3 * away)
    assert torch.equal(walk(step_size=0.0), z0_hat)
    nothing = flowdps(z0_hat, g.video, everywhere(False), sigma, decode, iterations=3, step_size=30.0)
    assert torch.equal(nothing, z0_hat)


def test_flowdps_noise_keeps_its_variance():
    eps = torch.randn(8, 10, 50, 50, generator=seeded(4))
    assert torch.equal(flowdps_noise(eps, 1.0, seeded()), eps)
    for sigma in (0.0, 0.4):
        noise = flowdps_noise(eps, sigma, seeded())
        assert noise.std() == pytest.approx(1, abs=0.01)
        assert (noise * eps).mean() == pytest.approx(sqrt(sigma), abs=0.01)


def test_a_refresh_draws_the_unknown_part_anew_and_leaves_the_known_one():
    g, sigma = given_of(half()), 0.6
    z = torch.randn(SHAPE, generator=seeded(4))
    once = gibbs(z, g.y_full, g.h, sigma, velocity, iterations=1, generator=seeded(5))
    assert torch.equal(once[..., :3], z[..., :3])
    wanted = (1 - sigma) * (z - sigma * velocity(z, sigma)) + sigma * torch.randn(SHAPE, generator=seeded(5))
    torch.testing.assert_close(once[..., 3:], wanted[..., 3:])
    assert torch.equal(gibbs(z, g.y_full, g.h, sigma, velocity, iterations=0, generator=None), z)


def test_a_refresh_predicts_with_the_measurement_in_place():
    """A velocity that couples the latents carries what is known to what is not, more with each refresh."""
    given = given_of(half())
    seen = []

    def coupled(z, sigma):
        seen.append(z.clone())
        return z - z.mean()  # z0_hat = (1 - sigma) z + sigma mean

    gibbs(torch.zeros(SHAPE), given.y_full, given.h, 0.5, coupled, iterations=3, generator=seeded(5))
    assert len(seen) == 3 and all((z[..., :3] == 0).all() for z in seen) and not torch.equal(seen[1], seen[2])


def test_schedules_count_iterations():
    counts = {
        schedule: [given_of(half(), iterations=10, schedule=schedule).count(sigma) for sigma in (1.0, 0.5, 0.2, 0.0)]
        for schedule in ("constant", "falling", "rising")
    }
    assert counts == {"constant": [10] * 4, "falling": [10, 5, 2, 1], "rising": [1, 5, 8, 10]}
    few, many = (solve("dds_cg", half(), gamma=0.1, iterations=n)[0] for n in (1, 20))
    falling = solve("dds_cg", half(), gamma=0.1, iterations=20, schedule="falling")[0]
    assert torch.equal(few, solve("dds_cg", half(), gamma=0.1, iterations=1, schedule="rising")[0])
    torch.testing.assert_close(falling, many)  # a binary mask needs one
