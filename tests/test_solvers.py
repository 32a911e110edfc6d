"""Laws of the data-consistency solvers; the closed form is the oracle of the conjugate gradients."""

import pytest
import torch

from pipeline import InputError
from pipeline.solvers import SOLVERS, dds, dds_cg


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
    batch = dds_cg(torch.stack([z0_hat, 5 * z0_hat]), torch.stack([y_full] * 2), torch.stack([h] * 2), gamma=0.1)
    torch.testing.assert_close(batch[0], dds_cg(z0_hat, y_full, h, gamma=0.1))
    torch.testing.assert_close(batch[1], dds_cg(5 * z0_hat, y_full, h, gamma=0.1))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0])
def test_nothing_known_leaves_the_estimate(name, gamma, problem):
    z0_hat, y_full, h = problem
    assert torch.equal(SOLVERS[name](z0_hat, y_full, torch.zeros_like(h), gamma=gamma, iterations=5), z0_hat)


def test_unknown_latents_are_left_exactly(problem):
    z0_hat, y_full, h = problem
    h = h.where(h > 0.5, 0.0)
    for solve in (dds, dds_cg):
        z = solve(z0_hat, y_full, h, gamma=0.1, iterations=4)
        assert torch.equal(z[h == 0], z0_hat[h == 0])


@pytest.mark.parametrize("name", ["dds", "dds_cg"])
def test_all_known_and_no_prior_gives_the_measurement(name, problem):
    z0_hat, y_full, h = problem
    z = SOLVERS[name](z0_hat, y_full, torch.ones_like(h), gamma=1e-9, iterations=5)
    torch.testing.assert_close(z, y_full)


@pytest.mark.parametrize("name", ["dds", "dds_cg"])
def test_large_gamma_keeps_the_prior(name, problem):
    z = SOLVERS[name](*problem, gamma=1e8, iterations=5)
    torch.testing.assert_close(z, problem[0], atol=1e-6, rtol=0)


def test_closed_form_lies_between_estimate_and_measurement(problem):
    z0_hat, y_full, _ = problem
    z = dds(*problem, gamma=0.1)
    assert ((z - z0_hat) * (z - y_full) <= 1e-6).all()


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["dds", "dds_cg"])
def test_bad_gamma_is_refused(name, gamma, problem):
    with pytest.raises(InputError, match="gamma"):
        SOLVERS[name](*problem, gamma=gamma, iterations=1)
