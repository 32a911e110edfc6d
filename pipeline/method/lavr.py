"""LaVR (arXiv 2601.14674): the scene's latents, the source video and both cameras condition the velocity, softly.

Neither code nor weights are published. What is inferred is said where it is done.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import invert_rigid
from pipeline.known.known import Known
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import tell
from pipeline.method.problem import Problem, padded, prepare
from pipeline.method.told import Told
from pipeline.prior.backbone import Backbone
from pipeline.prior.posed import Beside
from pipeline.prior.soft import Soft
from pipeline.scene.cut3r import CUT3REncoder
from pipeline.scene.latents import SceneEncoder
from pipeline.scene.weights import load_cut3r


def lavr(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: soft alone. Nothing of the warp is shown or imposed; depth is not used.

    Of the guidance, what says how a warp is used (solver, latent mask, condition, strength) is left aside. Raises
    `InputError` where the backbone has no soft parts or is compiled, and where an object is to be replaced.
    """
    alone = soft_alone(guidance)
    return tell(backbone, softened(backbone, known, alone), alone)


def soft_alone(guidance: Guidance) -> Guidance:
    """The settings as `lavr` follows them: it starts from noise, shows no warp, and imposes nothing."""
    return replace(guidance, solver="none", condition="none", strength=1.0)


def both(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: LaVR's velocity, and the data consistency of InverseCrafter (ours).

    All of the guidance is followed: with `solver="none"` it is soft with the warp in the model's own channels, with
    `condition="none"` soft with data consistency. Raises `InputError` as `lavr` and `prepare` do.
    """
    return tell(backbone, softened(backbone, known, guidance), guidance)


def softened(backbone: Backbone, known: Known, guidance: Guidance) -> Problem:
    """`prepare`, with what is shown beside the noisy video in its conditions. Raises `InputError` as `lavr` does."""
    if backbone.soft is None:
        raise InputError(
            f"The model {backbone.name!r} has no parts for soft conditioning, which the methods lavr and both need: "
            "choose the method inversecrafter, or a model whose recapture.json names a folder of them as soft."
        )
    if known.place is not None:
        raise InputError(
            "The methods lavr and both show the model the clip as it is, and so replace nothing: choose the method "
            "inversecrafter to replace an object."
        )
    if backbone.compiled:
        raise InputError("The methods lavr and both do not work with a compiled model; leave out compile.")
    problem = prepare(backbone, known, guidance)
    return replace(problem, conditions=replace(problem.conditions, beside=beside_of(backbone, backbone.soft, known)))


def beside_of(backbone: Backbone, soft: Soft, known: Known) -> Beside:
    """What the model is shown beside the noisy video.

    The source stands in the inpainting channels, too, as known throughout; the scene's are zero, as unknown (both
    inferred). Poses are relative to the source's first camera, as in ReCamMaster, one for each latent frame, in
    distances of the subject: the target's by the depth that its path was laid out with, which cancels, the source's by
    the scene encoder (inferred).
    """
    clip = padded(known.clip, backbone)
    z = backbone.encode(clip)
    source = torch.cat([z, backbone.condition(clip, torch.ones_like(clip[:, :1]), z)])
    motion = invert_rigid(known.source.world_from_cam[:1]) @ known.target.world_from_cam
    target_pose = pose_numbers(motion, distance_of(known), backbone)
    scene = source_pose = None
    if soft.adapter is not None and soft.encoder is not None:
        latents = load_encoder(soft.encoder, str(backbone.device)).encode(clip)
        if len(latents.tokens) != z.shape[1]:
            raise ValueError(f"{len(latents.tokens)} groups of tokens for {z.shape[1]} latent frames")
        with torch.no_grad():
            made = soft.adapter(latents.tokens[None].to(backbone.device), (z.shape[-2], z.shape[-1]))[0]
        scene = torch.cat([made, torch.zeros_like(source[len(z) :])])
        if soft.layers.source_encoder is not None:
            source_pose = _numbers(latents.world_from_cam.to(backbone.device), latents.unit)[None]
    return Beside(source[None], target_pose[None], None if scene is None else scene[None], source_pose)


def pose_numbers(first_from_cam: Float[Tensor, "T 4 4"], unit: float, backbone: Backbone) -> Float[Tensor, "t 12"]:
    """A path as the transformer reads it: of every fourth frame the 3x4 matrix, row by row, translations in `unit`.

    Where the clip is padded, the last camera stays.
    """
    frames = range(0, backbone.padded(len(first_from_cam)), backbone.temporal)
    kept = first_from_cam[[min(frame, len(first_from_cam) - 1) for frame in frames]]
    return _numbers(kept.to(backbone.device), unit)


def _numbers(poses: Float[Tensor, "t 4 4"], unit: float) -> Float[Tensor, "t 12"]:
    matrix = poses[:, :3].clone().float()
    matrix[..., 3] /= unit
    return matrix.flatten(1)


def distance_of(known: Known) -> float:
    """How far the subject is away: the median over the central half of the first frame, as paths are laid out."""
    height, width = known.z.shape[-2:]
    top, left = height // 4, width // 4
    middle = known.z[0, top : height - top, left : width - left]
    found = middle[middle.isfinite() & (middle > 0)]
    return float(found.median()) if len(found) else 1.0


@lru_cache(maxsize=1)
def load_encoder(folder: str, device: str) -> SceneEncoder:
    """The scene encoder of a folder. The last one is kept. Raises `InputError`."""
    return CUT3REncoder(load_cut3r(folder, device))
