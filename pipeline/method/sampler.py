"""The flow-matching ODE loop with data consistency on the posterior mean: InverseCrafter (arXiv 2512.05672), Alg. 1.

`z_t = (1 - sigma) z0 + sigma eps` and `v = eps - z0`, hence `z0_hat = z_t - sigma v`, `eps_hat = z_t + (1 - sigma) v`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Hook = Callable[[Tensor, float], Tensor]  # (z0_hat | z_t | eps_hat, sigma) -> the same


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


def time_travel(
    sigmas: Float[Tensor, " N+1"], times: int, jump: int = 1, *, guide_from: float = 1.0, guide_until: float = 0.0
) -> Float[Tensor, " M"]:
    """The levels with returns: each stretch of `jump` steps is passed `times` times, the last step to 0 once.

    RePaint (arXiv 2201.09865, Algorithm 1); once: the levels as they are. `sample` noises the state anew where the
    levels rise. Only stretches within the guided range are repeated: elsewhere there is nothing to harmonise.
    """
    levels = sigmas.tolist()
    walked = levels[:1]
    for index in range(1, len(levels)):
        walked.append(levels[index])
        stretch = levels[index - jump : index + 1]
        whole = index % jump == 0 and index < len(levels) - 1
        if whole and guide_until <= stretch[-1] and stretch[0] <= guide_from:
            walked += stretch * (times - 1)
    return sigmas.new_tensor(walked)


def normal_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit Gaussian noise of the shape of z; drawn on the CPU, so that a seed means the same everywhere."""
    return torch.randn(z.shape, generator=generator).to(z)


def sample(
    velocity: Velocity,
    z: Tensor,
    sigmas: Float[Tensor, " N+1"],
    consistency: Hook | None = None,
    *,
    refine: Hook | None = None,
    renoise: Hook | None = None,
    generator: torch.Generator | None = None,
) -> Generator[Step, None, None]:
    """Integrate the flow from noise to data, yielding after every step; closing the generator stops it.

    velocity(z_t, sigma) -> v, of the shape of z. z: noise at sigmas[0]. sigmas: decreasing, the last one 0; where they
    rise (`time_travel`), z is noised up to there with fresh noise of `generator`.
    consistency(z0_hat, sigma) -> z0_hat imposes the measurement (Eq. 8), see `solvers` and `within`; None samples the
    prior. The noise estimate eps_hat is never touched by it (DDS, arXiv 2303.05754).
    refine(z_t, sigma) -> z_t changes the state before the prediction; renoise(eps_hat, sigma) -> eps_hat changes the
    noise of the step to the level sigma. Most solvers need neither.
    """
    levels = sigmas.tolist()
    total, index = sum(after < now for now, after in pairwise(levels)), 0
    for sigma, sigma_next in pairwise(levels):
        if sigma_next > sigma:  # the forward process: variances (1 - sigma')^2 of the data and sigma'^2 of the noise
            keep = (1 - sigma_next) / (1 - sigma)
            z = keep * z + math.sqrt(sigma_next**2 - (keep * sigma) ** 2) * normal_like(z, generator)
            continue
        if refine is not None:
            z = refine(z, sigma)
        v = velocity(z, sigma)
        z0_hat = z - sigma * v
        eps_hat = z + (1 - sigma) * v
        if consistency is not None:
            z0_hat = consistency(z0_hat, sigma)
        if renoise is not None:
            eps_hat = renoise(eps_hat, sigma_next)
        z = (1 - sigma_next) * z0_hat + sigma_next * eps_hat
        yield Step(index, total, sigma, z0_hat, z)
        index += 1


def within(hook: Hook, guide_from: float = 1.0, guide_until: float = 0.0) -> Hook:
    """The same hook, acting only while guide_until <= sigma <= guide_from; elsewhere its argument is left alone.

    An early start follows the measurement in the large, an early end leaves the details to the prior.
    """

    return lambda state, sigma: hook(state, sigma) if guide_until <= sigma <= guide_from else state
