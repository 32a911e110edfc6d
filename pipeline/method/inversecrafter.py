"""InverseCrafter (arXiv 2512.05672): what is known is imposed on the posterior mean at every step, by a latent mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline import InputError
from pipeline.known.known import Known
from pipeline.method.guidance import Guidance, steps_of, strength_of
from pipeline.method.problem import Problem, prepare, windows_of
from pipeline.method.sampler import flow_sigmas, normal_like, time_travel
from pipeline.method.solvers import SOLVERS, Given
from pipeline.method.told import Told
from pipeline.method.windows import windowed
from pipeline.prior.backbone import Backbone

JUMP = 10 / 250  # of the noise levels, that RePaint goes back at a time (its authors: 10 of 250 steps)


def inversecrafter(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: `prepare`, then `tell`. Raises `InputError` as they do, and for a backbone that has
    no inpainting channels."""
    if not backbone.inpaints:
        raise InputError(
            f"The model {backbone.name!r} has no inpainting channels, which the method inversecrafter needs: choose "
            "the method recammaster or both, or another backbone."
        )
    return tell(backbone, prepare(backbone, known, guidance), guidance)


def tell(backbone: Backbone, problem: Problem, guidance: Guidance, *, spans: Sequence[slice] | None = None) -> Told:
    """The sampler's arguments for a prepared problem.

    spans: the windows in which a long clip is sampled, None for `windows_of`.
    """
    velocity = lambda z_t, sigma, span: backbone.velocity(z_t, sigma, problem.conditions.within(span))
    z = problem.noise
    spans = spans or windows_of(backbone, (z.shape[1] - 1) * backbone.temporal + 1)
    whole = windowed(velocity, spans)

    sigmas = flow_sigmas(steps_of(guidance, backbone), backbone.shift)
    sigmas = sigmas[sigmas <= max(strength_of(guidance, backbone), sigmas[-2].item())]
    start = sigmas[0].item()
    if problem.y_full is not None:
        z = (1 - start) * problem.y_full + start * problem.noise
    if problem.y_full is None or problem.h is None:
        return Told(z, sigmas, whole, filled=problem.filled)

    solver, guided = SOLVERS[guidance.solver], {"guide_from": guidance.guide_from, "guide_until": guidance.guide_until}
    iterations = guidance.iterations or solver.iterations or 1
    generator = torch.Generator().manual_seed(guidance.seed)
    normal_like(problem.noise, generator)  # the stream goes on after the noise that sampling starts from
    given = Given(
        problem.y_full,
        problem.h,
        whole,
        gamma=guidance.gamma,
        iterations=iterations,
        step_size=(solver.step_size or 0.0) if guidance.step_size is None else guidance.step_size,
        schedule=guidance.schedule,
        generator=generator,
        video=problem.video,
        mask=problem.mask,
        encode=backbone.encode,
        decode=backbone.decode,
    )
    if solver.resamples:
        sigmas = time_travel(sigmas, iterations, max(1, round(JUMP * (len(sigmas) - 1))), **guided)
    hooks = solver.hooks(given, **guided) | {"generator": generator}
    return Told(z, sigmas, whole, hooks, problem.filled)
