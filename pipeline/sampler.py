"""The flow-matching ODE loop with data consistency on the posterior mean: InverseCrafter (arXiv 2512.05672), Alg. 1.

`z_t = (1 - sigma) z0 + sigma eps` and `v = eps - z0`, hence `z0_hat = z_t - sigma v`, `eps_hat = z_t + (1 - sigma) v`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Consistency = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step. index: 0 ... total - 1; sigma: the noise level it started from; z0_hat: the posterior mean
    predicted there, after data consistency; z: the state at the next noise level, which at the last step is the result.
    """

    index: int
    total: int
    sigma: float
    z0_hat: Tensor
    z: Tensor


def flow_sigmas(steps: int, shift: float) -> Float[Tensor, " N+1"]:
    """Noise levels 1 ... 0 of `steps` Euler steps (float32, on the CPU), decreasing.

    shift: > 1 spends more steps at high noise: sigma -> shift sigma / (1 + (shift - 1) sigma). Equal to those of
    diffusers' FlowMatchEulerDiscreteScheduler, which shifts its lowest level 1/1000 before spacing and once more after.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more; it is {steps}.")
    if not shift > 0:
        raise ValueError(f"shift must be above 0; it is {shift}.")
    shifted = lambda sigma: shift * sigma / (1 + (shift - 1) * sigma)
    spaced = torch.linspace(1.0, shifted(1e-3), steps, dtype=torch.float64)
    return torch.cat([shifted(spaced), spaced.new_zeros(1)]).float()


def sample(
    velocity: Velocity, z: Tensor, sigmas: Float[Tensor, " N+1"], consistency: Consistency | None = None
) -> Generator[Step, None, None]:
    """Integrate the flow from noise to data, yielding after every step; closing the generator stops it.

    velocity(z_t, sigma) -> v, of the shape of z. z: noise at sigmas[0]. sigmas: decreasing, the last one 0.
    consistency(z0_hat, sigma) -> z0_hat imposes the measurement (Eq. 8), see `solvers` and `within`; None samples the
    prior. The noise estimate eps_hat is never touched by it (DDS, arXiv 2303.05754).
    """
    levels = sigmas.tolist()
    total = len(levels) - 1
    for index in range(total):
        sigma, sigma_next = levels[index], levels[index + 1]
        v = velocity(z, sigma)
        z0_hat = z - sigma * v
        eps_hat = z + (1 - sigma) * v
        if consistency is not None:
            z0_hat = consistency(z0_hat, sigma)
        z = (1 - sigma_next) * z0_hat + sigma_next * eps_hat
        yield Step(index, total, sigma, z0_hat, z)


def within(consistency: Consistency, guide_from: float = 1.0, guide_until: float = 0.0) -> Consistency:
    """The same consistency, acting only while guide_until <= sigma <= guide_from; elsewhere z0_hat is left alone.

    An early start follows the measurement in the large, an early end leaves the details to the prior.
    """

    def guided(z0_hat: Tensor, sigma: float) -> Tensor:
        return consistency(z0_hat, sigma) if guide_until <= sigma <= guide_from else z0_hat

    return guided
