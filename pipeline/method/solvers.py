"""Data consistency: how a sampler is made to follow the measurement. Each published way is a row of `SOLVERS`.

They act at up to three places of the loop in `sampler.sample`: on the noisy state before the prediction (`refine`), on
the posterior mean (`consistency`), on the noise of the step that follows (`renoise`); and some go back to higher noise
levels (`sampler.time_travel`). The functions say the formulas; the table says what of a `Given` each of them takes.

Notation: the measurement is y = h * y_full, h a latent mask in [0, 1], 1 = known; z_t = (1 - sigma) z0 + sigma eps.
Methods published for other diffusions are carried over by x_EDM = z_t / (1 - sigma), sigma_EDM = sigma / (1 - sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.method.sampler import Hook, Velocity, normal_like, within

Latent = Float[Tensor, "C t h w"]
Video = Float[Tensor, "T 3 H W"]


def dds(
    z0_hat: Float[Tensor, "*b C t h w"],
    y_full: Float[Tensor, "*b C t h w"],
    h: Float[Tensor, "*b C t h w"],
    *,
    gamma: float,
) -> Float[Tensor, "*b C t h w"]:
    """The minimiser of 1/2 |y - h z|^2 + gamma/2 |z - z0_hat|^2: (h^2 y_full + gamma z0_hat) / (h^2 + gamma).

    InverseCrafter (arXiv 2512.05672), Eqs. 7 and 8; h is diagonal, hence a closed form.
    z0_hat: posterior mean; y_full: the encoded measurement, holes filled; both normalised latents. Where h is 0, z0_hat
    comes back unchanged. gamma >= 0: trust in the prior. Raises `InputError` on a negative or infinite gamma.
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
    iterations: int,
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


def dds_pixels(
    z0_hat: Latent,
    video: Video,
    mask: Bool[Tensor, "T 1 H W"],
    encode: Callable[[Video], Latent],
    decode: Callable[[Latent], Video],
    *,
    gamma: float,
) -> Latent:
    """DDS between the pixels: decode, solve, encode (as in VISION-XL, arXiv 2412.00156). What a latent mask saves.

    The mask is binary, so conjugate gradients reach the closed form in one iteration, and it stands here. Where nothing
    is known, what the VAE makes of its own decoding comes back, not z0_hat.
    """
    return encode(dds(decode(z0_hat), video, mask.to(video.dtype), gamma=gamma))


def replacement(z0_hat: Latent, y_full: Latent, h: Latent) -> Latent:
    """h y_full + (1 - h) z0_hat: hard for a binary mask (Zero4D, arXiv 2503.22622), soft for a continuous one."""
    return torch.lerp(z0_hat, y_full, h)


def noise_anew(eps_hat: Latent, h: Latent, generator: torch.Generator | None) -> Latent:
    """Fresh noise where h > 1/2: with `replacement`, what is known of the next state is the measurement noised
    independently, (1 - sigma) y_full + sigma eps (RePaint, arXiv 2201.09865, Eq. 8a).

    RePaint's reverse step of the unknown part is DDPM's; here it is the deterministic one of the sampler.
    """
    return torch.where(h > 0.5, normal_like(eps_hat, generator), eps_hat)


SVD_SIGMA_MAX = 700.0
TRUST_SLOPE = 0.01  # v3 / v2 of NVS-Solver: see `trusted`
TRUST_AT_LEAST = 0.6  # "w" of NVS-Solver for videos


def trusted(z0_hat: Latent, y_full: Latent, h: Latent, sigma: float) -> Bool[Tensor, "C t h w"]:
    """The known latents (h > 1/2) that NVS-Solver (arXiv 2405.15364) guides: those nearest to the prediction.

    Of each latent frame the share clamp(lambda / (1 + lambda), 0.6, 1) with the smallest |z0_hat - y_full|. lambda
    solves a quadratic whose three weights its authors search for on a grid (`search_hypers`). On the noise levels of
    SVD the search ends at v1 = 0.001, v2 = 1000, v3 = 10, where lambda / (1 + lambda) is a switch: close to 1 above
    sigma_EDM = 700 * 0.01 tau and close to 0, i.e. clamped, below, tau in [0, 1] being the place of the frame in the
    clip. That switch stands here.
    """
    known, frames = h > 0.5, z0_hat.shape[1]
    distance = (z0_hat - y_full).abs().masked_fill(~known, math.inf)
    kept = torch.zeros_like(known)
    for frame in range(frames):
        tau = frame / max(1, frames - 1)
        early = sigma > (1 - sigma) * SVD_SIGMA_MAX * TRUST_SLOPE * tau
        count = int((1.0 if early else TRUST_AT_LEAST) * int(known[:, frame].sum()))
        if count:
            cutoff = distance[:, frame].flatten().kthvalue(count).values
            kept[:, frame] = distance[:, frame] <= cutoff
    return kept & known


def nvs_dgs(z0_hat: Latent, y_full: Latent, h: Latent, sigma: float) -> Latent:
    """NVS-Solver's directly guided sampling: the measurement in place of the `trusted` latents."""
    return torch.where(trusted(z0_hat, y_full, h, sigma), y_full, z0_hat)


def nvs_post(z_t: Latent, y_full: Latent, h: Latent, sigma: float, velocity: Velocity, *, step_size: float) -> Latent:
    """NVS-Solver's posterior sampling: a normalised gradient step of the noisy state, through the model.

    L = mean over the `trusted` latents of (z0_hat - y_full)^2, x_EDM -= lr sqrt(sigma_EDM) g / std(g), hence here
    z_t -= lr sqrt(sigma (1 - sigma)) g / std(g). Its authors' lr is 0.02, at 100 steps. Their gradient is that of the
    unconditional pass alone; this one is of the same guided velocity that the step takes.
    """
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        z0_hat = z - sigma * velocity(z, sigma)
        kept = trusted(z0_hat.detach(), y_full, h, sigma)
        loss = (z0_hat - y_full).square().mul(kept).sum() / kept.sum().clamp_min(1)
        (gradient,) = torch.autograd.grad(loss, z)
    spread = gradient.std().clamp_min(torch.finfo(z_t.dtype).tiny)
    return z_t - step_size * math.sqrt(sigma * (1 - sigma)) * gradient / spread


def flowdps(
    z0_hat: Latent,
    video: Video,
    mask: Bool[Tensor, "T 1 H W"],
    sigma: float,
    decode: Callable[[Latent], Video],
    *,
    iterations: int,
    step_size: float,
) -> Latent:
    """FlowDPS (arXiv 2503.08136): (1 - sigma) z0_hat + sigma z, z by gradient steps on |m (D(z) - x)| from z0_hat.

    Through the decoder, over pixels in [-1, 1]. Its authors take three steps of size 30.
    """
    z = z0_hat
    for _ in range(iterations):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            residual = 2 * torch.where(mask, decode(z) - video, 0.0)
            (gradient,) = torch.autograd.grad(residual.norm(), z)
        z = z.detach() - step_size * gradient
    return torch.lerp(z0_hat, z, sigma)


def flowdps_noise(eps_hat: Latent, sigma: float, generator: torch.Generator | None) -> Latent:
    """FlowDPS's noise of the step to sigma: sqrt(sigma) eps_hat + sqrt(1 - sigma) fresh noise."""
    return math.sqrt(sigma) * eps_hat + math.sqrt(1 - sigma) * normal_like(eps_hat, generator)


def gibbs(
    z_t: Latent,
    y_full: Latent,
    h: Latent,
    sigma: float,
    velocity: Velocity,
    *,
    iterations: int,
    generator: torch.Generator | None,
) -> Latent:
    """What is unknown (h <= 1/2) drawn anew at the same noise level: predict, put the measurement in, noise again.

    After h-control (arXiv 2605.11871), which does this within hard replacement, over patches of which it freezes those
    that have converged; without the freezing (it saves nothing where a pass covers the whole clip), and with a count of
    our own, since the number of its refreshes was not at hand.
    """
    for _ in range(iterations):
        z0_hat = replacement(z_t - sigma * velocity(z_t, sigma), y_full, h)
        z_t = torch.where(h > 0.5, z_t, (1 - sigma) * z0_hat + sigma * normal_like(z_t, generator))
    return z_t


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda sigma: 1.0,
    "falling": lambda sigma: sigma,  # most iterations at high noise
    "rising": lambda sigma: 1 - sigma,
}


@dataclass(frozen=True, eq=False)
class Given:
    """What a solver works with besides the state: the measurement in latents and, for those that need it (mask T 1 H W,
    True = observed), in pixels; its settings; the model's functions, through which gradients flow; a source of noise.
    """

    y_full: Latent
    h: Latent
    velocity: Velocity
    gamma: float
    iterations: int
    step_size: float
    schedule: str = "constant"
    generator: torch.Generator | None = None
    # of solvers with `pixels` only
    video: Any = None
    mask: Any = None
    encode: Any = None
    decode: Any = None

    def count(self, sigma: float) -> int:
        """The iterations at that noise level, by the schedule; at least one."""
        return max(1, round(self.iterations * SCHEDULES[self.schedule](sigma)))


GivenHook = Callable[[Tensor, float, Given], Tensor]


@dataclass(frozen=True)
class Solver:
    """A published way to follow the measurement.

    label: for people. refine, consistency, renoise: (z_t, z0_hat, eps_hat; sigma; given) -> the same, see
    `sampler.sample`. iterations, step_size: its defaults, None where it has none. resamples: the iterations are passes
    through each stretch of the noise levels. pixels: it decodes within the loop.
    """

    label: str
    consistency: GivenHook | None = None
    refine: GivenHook | None = None
    renoise: GivenHook | None = None
    iterations: int | None = None
    step_size: float | None = None
    resamples: bool = False
    pixels: bool = False

    def hooks(self, given: Given, guide_from: float = 1.0, guide_until: float = 0.0) -> dict[str, Hook]:
        """What `sampler.sample` is to call, by its names; acting while guide_until <= sigma <= guide_from."""
        bind = lambda hook: lambda state, sigma: hook(state, sigma, given)
        named = {"consistency": self.consistency, "refine": self.refine, "renoise": self.renoise}
        return {name: within(bind(hook), guide_from, guide_until) for name, hook in named.items() if hook is not None}


_replace: GivenHook = lambda z0_hat, sigma, g: replacement(z0_hat, g.y_full, g.h)

SOLVERS: dict[str, Solver] = {
    "dds": Solver(
        "DDS, closed form",
        consistency=lambda z0_hat, sigma, g: dds(z0_hat, g.y_full, g.h, gamma=g.gamma),
    ),
    "dds_cg": Solver(
        "DDS, conjugate gradients",
        consistency=lambda z0_hat, sigma, g: dds_cg(z0_hat, g.y_full, g.h, gamma=g.gamma, iterations=g.count(sigma)),
        iterations=5,
    ),
    "dds_pixels": Solver(
        "DDS in pixels (decodes, encodes at each step)",
        consistency=lambda z0_hat, sigma, g: dds_pixels(z0_hat, g.video, g.mask, g.encode, g.decode, gamma=g.gamma),
        pixels=True,
    ),
    "replacement": Solver("Replacement (Zero4D)", consistency=_replace, iterations=1, resamples=True),
    "repaint": Solver(
        "RePaint (many passes)",
        consistency=_replace,
        renoise=lambda eps_hat, sigma, g: noise_anew(eps_hat, g.h, g.generator),
        iterations=10,
        resamples=True,
    ),
    "nvs_dgs": Solver(
        "NVS-Solver, direct",
        consistency=lambda z0_hat, sigma, g: nvs_dgs(z0_hat, g.y_full, g.h, sigma),
    ),
    "nvs_post": Solver(
        "NVS-Solver, posterior (gradients of the model)",
        refine=lambda z_t, sigma, g: nvs_post(z_t, g.y_full, g.h, sigma, g.velocity, step_size=g.step_size),
        step_size=0.02,
    ),
    "flowdps": Solver(
        "FlowDPS (gradients of the decoder)",
        consistency=lambda z0_hat, sigma, g: flowdps(
            z0_hat, g.video, g.mask, sigma, g.decode, iterations=g.count(sigma), step_size=g.step_size
        ),
        renoise=lambda eps_hat, sigma, g: flowdps_noise(eps_hat, sigma, g.generator),
        iterations=3,
        step_size=30.0,
        pixels=True,
    ),
    "gibbs": Solver(
        "Gibbs refinement, after h-control (many passes)",
        consistency=_replace,
        refine=lambda z_t, sigma, g: gibbs(
            z_t, g.y_full, g.h, sigma, g.velocity, iterations=g.count(sigma), generator=g.generator
        ),
        iterations=3,
    ),
    "none": Solver("None (no guidance)"),
}
