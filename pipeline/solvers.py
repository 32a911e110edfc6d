"""Data consistency: pull the posterior mean towards the measurement, in the latent space.

InverseCrafter (arXiv 2512.05672), Eqs. 7 and 8: the measurement is y = h * y_full, and z0_hat becomes the minimiser of
`1/2 |y - h * z|^2 + gamma/2 |z - z0_hat|^2`. The operator h is diagonal, so the minimiser has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError


def none(
    z0_hat: Float[Tensor, "*b C t h w"],
    y_full: Float[Tensor, "*b C t h w"],
    h: Float[Tensor, "*b C t h w"],
    *,
    gamma: float,
    iterations: int = 0,
) -> Float[Tensor, "*b C t h w"]:
    """No data consistency: `z0_hat` itself. The arguments are those of `dds`."""
    return z0_hat


def dds(
    z0_hat: Float[Tensor, "*b C t h w"],
    y_full: Float[Tensor, "*b C t h w"],
    h: Float[Tensor, "*b C t h w"],
    *,
    gamma: float,
    iterations: int = 0,
) -> Float[Tensor, "*b C t h w"]:
    """The exact minimiser of Eq. 8, (h^2 y_full + gamma z0_hat) / (h^2 + gamma).

    z0_hat: posterior mean; y_full: the encoded measurement, holes filled; both normalised latents. h: latent mask in
    [0, 1], 1 = known; where it is 0, z0_hat comes back unchanged. gamma >= 0: trust in the prior. iterations: unused.
    Raises `InputError` on a negative or infinite gamma.
    """
    _check_gamma(gamma)
    # As a weighted mean, so that h = 0 and gamma -> 0 are exact and gamma = 0 is not 0/0.
    weight = (h.square() / (h.square() + gamma)).nan_to_num(0.0)
    return torch.lerp(z0_hat, y_full, weight)


def dds_cg(
    z0_hat: Float[Tensor, "*b C t h w"],
    y_full: Float[Tensor, "*b C t h w"],
    h: Float[Tensor, "*b C t h w"],
    *,
    gamma: float,
    iterations: int = 5,
) -> Float[Tensor, "*b C t h w"]:
    """Eq. 8 by `iterations` conjugate-gradient steps from z0_hat (Algorithm 2; DDS, arXiv 2303.05754).

    Solves (h^2 + gamma) z = h y + gamma z0_hat with one step length for each sample, so that few iterations stop short
    of the measurement, which regularises. The arguments are those of `dds`. Raises `InputError` likewise.
    """
    _check_gamma(gamma)
    y = h * y_full
    operator = lambda z: h * (h * z) + gamma * z
    inner = lambda a, b: (a * b).sum(dim=(-4, -3, -2, -1), keepdim=True)
    # A converged (or all-unknown) sample has residual 0; dividing by at least `tiny` makes its step 0, not NaN.
    tiny = torch.finfo(z0_hat.dtype).tiny

    z = z0_hat
    residual = h * (y - h * z0_hat)
    direction = residual
    rho = inner(residual, residual)
    for _ in range(iterations):
        towards = operator(direction)
        alpha = rho / inner(direction, towards).clamp_min(tiny)
        z = z + alpha * direction
        residual = residual - alpha * towards
        rho, rho_before = inner(residual, residual), rho
        direction = residual + rho / rho_before.clamp_min(tiny) * direction
    return z


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise InputError(f"gamma must be a finite number, 0 or more; it is {gamma}.")


SOLVERS: dict[str, Callable[..., Tensor]] = {"dds": dds, "dds_cg": dds_cg, "none": none}
