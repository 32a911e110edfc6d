"""From a mask over pixels to a mask over latents: how much of each latent value does the measurement determine?

InverseCrafter (arXiv 2512.05672), section 3: a continuous mask for every channel, h = 1 - phi(|E(x) - E(m * x)|)
(Eq. 5), where phi normalises to [0, 1]; the resized masks that others use; and probes of the encoder of our own. Each
way is a row of `LATENT_MASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

GREY = 0.5  # zero in the model's [-1, 1]: what m * x leaves in place of an unknown pixel
TAU = 0.6  # the difference, in spreads of its channel, at which a latent value counts as about half known
MIN_SPREAD = 0.1  # of a normalised latent; a channel that hardly moves in a clip must not turn rounding into holes
PROBES = 4  # of `jacobian_mask`
PROBE_SIZE = 0.1  # their standard deviation, in the pixels' [0, 1]
CLAMP_AT = 0.95  # quantile of a channel's differences that counts as wholly unknown


@dataclass(frozen=True, eq=False)
class LatentMask:
    """h: C t h w in [0, 1], 1 = known, float32."""

    h: Float[Tensor, "C t h w"]


Encode = Callable[[Tensor], Tensor]
Learned = Callable[[Tensor, Tensor], Tensor]
Phi = Callable[[Tensor, Tensor], Tensor]


def _minmax(d: Tensor) -> Tensor:
    low, high = d.amin(dim=(1, 2, 3), keepdim=True), d.amax(dim=(1, 2, 3), keepdim=True)
    return (d - low) / (high - low).clamp_min(torch.finfo(d.dtype).tiny)


def _quantile(d: Tensor) -> Tensor:
    high = torch.from_numpy(np.quantile(d.flatten(1).cpu().numpy(), CLAMP_AT, axis=1)).to(d)
    return (d / high.view(-1, 1, 1, 1).clamp_min(torch.finfo(d.dtype).tiny)).clamp(max=1)


# phi(d, unit) -> [0, 1], with d = |E(x) - E(m * x)| "C t h w" and unit "C 1 1 1": tau standard deviations of each
# channel, tau being phi's temperature. The paper leaves phi open. `wiener` is the default: with the prior's variance
# s^2 and an error d of the measurement, 1 - phi is the weight of the best linear estimate. It is flat at 0, so the
# faint trace that a hole leaves far away (the VAE attends over whole frames) does not loosen known latents, as the
# slopes of `exp`, `tanh` and `ratio` do; and it looks at each latent alone, where `minmax` and `quantile` make the
# largest differences of a clip the unit of all others, and know no temperature.
PHI: dict[str, Phi] = {
    "wiener": lambda d, unit: d.square() / (d.square() + unit.square()),
    "exp": lambda d, unit: 1 - torch.exp(-d / unit),
    "tanh": lambda d, unit: torch.tanh(d / unit),
    "ratio": lambda d, unit: d / (d + unit),
    "quantile": lambda d, unit: _quantile(d),
    "minmax": lambda d, unit: _minmax(d),
}


def binary_mask(
    mask: Bool[Tensor, "T 1 H W"], channels: int, *, temporal: int = 4, spatial: int = 8, every_frame: bool = True
) -> LatentMask:
    """The mask resized to the latent grid, nearest in space (the centre of each cell); all channels get the same.

    mask: True = observed; T = temporal n + 1, the first frame being a group of its own, H and W multiples of `spatial`.
    every_frame: known are latents whose pixel is observed in all frames of the temporal group, the baseline of the
    paper's section 3; else in the frame nearest to the middle of the group.
    """
    groups = _by_latent_frame(mask.float(), temporal)
    size = (mask.shape[-2] // spatial, mask.shape[-1] // spatial)
    near = F.interpolate(rearrange(groups, "t g 1 H W -> t g H W"), size=size, mode="nearest-exact")
    known = near.amin(dim=1) if every_frame else near[:, temporal // 2]
    return LatentMask(known.expand(channels, *known.shape).contiguous())


def pooled_mask(mask: Bool[Tensor, "T 1 H W"], channels: int, *, temporal: int = 4, spatial: int = 8) -> LatentMask:
    """The observed share of the pixels under each latent, as NVS-Solver and Zero4D pool masks.

    All channels get the same. The arguments are those of `binary_mask`.
    """
    share = F.avg_pool2d(rearrange(_by_latent_frame(mask.float(), temporal), "t g 1 H W -> t g H W"), spatial).mean(1)
    return LatentMask(share.expand(channels, *share.shape).contiguous())


def difference_mask(
    encode: Encode,
    video: Float[Tensor, "T 3 H W"],
    mask: Bool[Tensor, "T 1 H W"],
    *,
    phi: str = "wiener",
    tau: float = TAU,
    gate: bool = True,
) -> LatentMask:
    """h = 1 - phi(|E(x) - E(m * x)|), Eq. 5: a latent is known as far as hiding the unknown pixels leaves it in place.

    encode: pixels in [0, 1] -> normalised latents "C t h w" (two calls). video: the clean target ("reference"), or the
    source clip when only that is known ("training-free"); in [0, 1]. mask: True = observed in the *target*.
    phi: a name of `PHI`; tau: its temperature, above 0.

    gate: also set h = 0 where the pixels under a latent (its 8x8 block, its group of frames) are *all* unknown. The
    difference is small there wherever x happens to be near grey in one of the channels, which says nothing about the
    target: with unit-variance latents about a quarter of the values of a hole would pass for known. gate=False is the
    formula of the paper alone.
    """
    z = encode(video)
    return _one_minus_phi(z, encode(torch.where(mask, video, GREY)), mask, phi, tau, gate)


def filling_mask(
    encode: Encode,
    filled: Float[Tensor, "T 3 H W"],
    other: Float[Tensor, "T 3 H W"],
    mask: Bool[Tensor, "T 1 H W"],
    *,
    phi: str = "wiener",
    tau: float = TAU,
) -> LatentMask:
    """h = 1 - phi(|E(A) - E(B)|): a latent is known as far as it stays when only what fills the holes changes.

    A: `filled`, the measurement filled smoothly, as it is encoded for the solver. B: the same measurement with the
    pixels of `other` (the source clip: what really stands in such a scene) in its holes. Ours; gated as
    `difference_mask` is.
    """
    return _one_minus_phi(encode(filled), encode(torch.where(mask, filled, other)), mask, phi, tau, gate=True)


def jacobian_mask(
    encode: Encode, filled: Float[Tensor, "T 3 H W"], mask: Bool[Tensor, "T 1 H W"], *, seed: int = 0
) -> LatentMask:
    """The share of a latent's sensitivity that belongs to observed pixels: k / (k + u), needing no phi.

    k = sum |E(x + m n) - E(x)|^2, u = sum |E(x + (1 - m) n) - E(x)|^2 over `PROBES` random perturbations n: finite
    differences of the squared Jacobian, summed over the observed and over the unknown pixels. n is equally strong at
    scales of 1, 4, 8 and 16 pixels, since the channels of an encoder read coarse and fine. Ours.
    filled: the measurement, filled, in [0, 1]. 1 + 2 PROBES calls of `encode`.
    """
    generator = torch.Generator().manual_seed(seed)
    z = encode(filled)
    known, unknown = torch.zeros_like(z), torch.zeros_like(z)
    for _ in range(PROBES):
        n = PROBE_SIZE * _noise_of_all_scales(filled.shape, generator).to(filled)
        known += (encode(torch.where(mask, filled + n, filled)) - z).square()
        unknown += (encode(torch.where(mask, filled, filled + n)) - z).square()
    share = known / (known + unknown).clamp_min(torch.finfo(z.dtype).tiny)
    # a latent that no probe moved depends on nothing: it is known if any of its pixels is
    h = torch.where(known + unknown > 0, share, 1.0)
    return LatentMask(torch.where(_any_known(mask, z.shape[1:]).to(h.device), h, 0.0))


@dataclass(frozen=True, eq=False)
class MaskInputs:
    """What a latent mask may be made from; videos T 3 H W in [0, 1], with T = 4n + 1.

    encode: of the backbone. grid: (C, t, h, w) of its latents. mask: True = observed in the target. filled: the
    measurement, holes filled. source: the clip that was warped. target: the clean video, where it is known.
    phi, tau: of `PHI`. seed: of random probes. learned: (mask, filled) -> h, by the backbone's mask encoder.
    """

    encode: Encode
    grid: tuple[int, int, int, int]
    mask: Bool[Tensor, "T 1 H W"]
    filled: Float[Tensor, "T 3 H W"]
    source: Float[Tensor, "T 3 H W"]
    target: Float[Tensor, "T 3 H W"] | None = None
    phi: str = "wiener"
    tau: float = TAU
    seed: int = 0
    learned: Learned | None = None

    @property
    def temporal(self) -> int:
        """Frames under a latent frame, but for the first."""
        return (len(self.mask) - 1) // (self.grid[1] - 1) if self.grid[1] > 1 else 1

    @property
    def spatial(self) -> int:
        """Pixels under a latent, each way."""
        return self.mask.shape[-1] // self.grid[3]


@dataclass(frozen=True)
class MaskKind:
    """A way to get a latent mask. label: for people; needs_target: it wants the clean target video."""

    label: str
    make: Callable[[MaskInputs], LatentMask]
    needs_target: bool = False


LATENT_MASKS: dict[str, MaskKind] = {
    "training-free": MaskKind(
        "Continuous", lambda x: difference_mask(x.encode, x.source, x.mask, phi=x.phi, tau=x.tau)
    ),
    "reference": MaskKind(
        "Continuous, of the clean video",
        lambda x: difference_mask(x.encode, _target(x), x.mask, phi=x.phi, tau=x.tau),
        needs_target=True,
    ),
    "learned": MaskKind("Continuous, learned", lambda x: learned_mask(_learned(x), x.mask, x.filled)),
    "filling": MaskKind(
        "Sensitivity to the filling",
        lambda x: filling_mask(x.encode, x.filled, x.source, x.mask, phi=x.phi, tau=x.tau),
    ),
    "jacobian": MaskKind(
        "Sensitivity to random changes", lambda x: jacobian_mask(x.encode, x.filled, x.mask, seed=x.seed)
    ),
    "pooled": MaskKind("Averaged", lambda x: pooled_mask(x.mask, x.grid[0], temporal=x.temporal, spatial=x.spatial)),
    "binary": MaskKind(
        "Binary, seen in every frame",
        lambda x: binary_mask(x.mask, x.grid[0], temporal=x.temporal, spatial=x.spatial),
    ),
    "binary-nearest": MaskKind(
        "Binary, nearest frame",
        lambda x: binary_mask(x.mask, x.grid[0], temporal=x.temporal, spatial=x.spatial, every_frame=False),
    ),
}


def learned_mask(learned: Learned, mask: Bool[Tensor, "T 1 H W"], filled: Float[Tensor, "T 3 H W"]) -> LatentMask:
    """The reference mask as a small network predicts it from the pixels' mask, see `mask_encoder.MaskEncoder`.

    Gated as `difference_mask` is. filled: the measurement, filled, in [0, 1].
    """
    h = learned(mask, filled)
    return LatentMask(torch.where(_any_known(mask, h.shape[1:]).to(h.device), h, 0.0))


def _target(inputs: MaskInputs) -> Tensor:
    assert inputs.target is not None, "the caller checks `needs_target`"
    return inputs.target


def _learned(inputs: MaskInputs) -> Learned:
    assert inputs.learned is not None, "the caller has a backbone"
    return inputs.learned


def _one_minus_phi(z: Tensor, other: Tensor, mask: Tensor, phi: str, tau: float, gate: bool) -> LatentMask:
    unit = tau * z.std(dim=(1, 2, 3), keepdim=True).clamp_min(MIN_SPREAD)
    h = 1 - PHI[phi]((z - other).abs(), unit)
    if gate:
        h = torch.where(_any_known(mask, z.shape[1:]).to(h.device), h, 0.0)
    return LatentMask(h)


def _noise_of_all_scales(shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "T 3 H W"]:
    """Unit variance, a quarter each from random blocks of 1, 4, 8 and 16 pixels; the frames are independent."""
    frames, channels, height, width = shape
    layers = []
    for side in (1, 4, 8, 16):
        coarse = torch.randn(frames, channels, -(-height // side), -(-width // side), generator=generator)
        layers.append(coarse.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., :height, :width])
    return torch.stack(layers).sum(0) / 2


def _by_latent_frame(mask: Tensor, group: int) -> Float[Tensor, "t g 1 H W"]:
    """The frames under each latent frame; the first latent frame has a single one, here repeated."""
    return rearrange(torch.cat([mask[:1].expand(group - 1, -1, -1, -1), mask]), "(t g) 1 H W -> t g 1 H W", g=group)


def _any_known(mask: Tensor, grid: torch.Size) -> Bool[Tensor, "t h w"]:
    t, h, w = grid
    group = (len(mask) - 1) // (t - 1) if t > 1 else 1
    blocks = rearrange(_by_latent_frame(mask, group), "t g 1 (h a) (w b) -> t h w (g a b)", h=h, w=w)
    return blocks.any(dim=-1)
