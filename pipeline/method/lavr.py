"""LaVR (arXiv 2601.14674): the scene's latents, the source video and both cameras condition the velocity, softly.

Neither code nor weights are published. What is inferred is said where it is done. Without the scene and the source's
camera it is ReCamMaster (arXiv 2503.11647), whose weights are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.files import RECAMMASTER_UNIT
from pipeline.camera.geometry import invert_rigid
from pipeline.known.known import Known
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import tell
from pipeline.method.problem import Problem, padded, prepare
from pipeline.method.told import Told
from pipeline.prior.backbone import Backbone
from pipeline.prior.posed import Beside
from pipeline.prior.said import said_of
from pipeline.prior.soft import Soft
from pipeline.scene.weights import listed, load_encoder

SOFT = ("lavr", "recammaster", "both")
ALONE = ("lavr", "recammaster")  # these show no warp and impose nothing


def lavr(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: soft alone. Nothing of the warp is shown or imposed; depth is not used.

    Of the guidance, what says how a warp is used (solver, latent mask, condition, strength) is left aside. Raises
    `InputError` where the backbone has no soft parts, reads no scene, or is compiled, and where an object is to be
    replaced.
    """
    alone = followed(replace(guidance, method="lavr"))
    return tell(backbone, softened(backbone, known, alone), alone)


def recammaster(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: as `lavr`, without the scene and the source's camera.

    With the published weights that is ReCamMaster; with those of LaVR, the ablation that leaves out both. Raises
    `InputError` as `lavr` does, but for the scene.
    """
    alone = followed(replace(guidance, method="recammaster"))
    return tell(backbone, softened(backbone, known, alone, scene=False), alone)


def both(backbone: Backbone, known: Known, guidance: Guidance) -> Told:
    """A row of `methods.METHODS`: the soft velocity, and the data consistency of InverseCrafter (ours).

    The velocity is LaVR's, or ReCamMaster's where the backbone reads no scene. All of the guidance is followed: with
    `solver="none"` it is soft with the warp in the model's own channels, with `condition="none"` soft with data
    consistency. Raises `InputError` as `recammaster` and `prepare` do.
    """
    has_scene = backbone.soft is not None and backbone.soft.adapter is not None
    return tell(backbone, softened(backbone, known, replace(guidance, method="both"), scene=has_scene), guidance)


def followed(guidance: Guidance) -> Guidance:
    """The settings as their method follows them: soft alone starts from noise, shows no warp, and imposes nothing."""
    if guidance.method not in ALONE:
        return guidance
    return replace(guidance, solver="none", condition="none", strength=1.0)


def parts_of(backbone: Backbone, guidance: Guidance) -> int:
    """How many videos the method shows the transformer one behind the other, the noisy one among them."""
    if guidance.method not in SOFT or backbone.soft is None:
        return 1
    return 2 if guidance.method == "recammaster" or backbone.soft.adapter is None else 3


def check_soft(method: str, ref: str, *, replaces: bool, compiled: bool) -> None:
    """Raises `InputError` for a method that a backbone cannot serve, as far as it is known without loading it.

    ref: the backbone, as in a request. replaces: an object is to be replaced or removed.
    """
    said = said_of(ref)
    if said is not None:
        _check(method, ref, soft=said.soft, scene=said.encoder is not None, inpaints=said.inpaints)
    if method in SOFT:
        _check_task(replaces, compiled)


def scene_model_of(method: str, ref: str) -> str:
    """The scene encoder that a method reads with a backbone, by its name in `table.MODELS`; "" for none of these."""
    said = said_of(ref)
    if method not in ("lavr", "both") or said is None or said.encoder is None:
        return ""
    return listed(said.encoder)


def _check(method: str, ref: str, *, soft: bool, scene: bool, inpaints: bool) -> None:
    if method in SOFT and not soft:
        raise InputError(
            f"The model {ref!r} has no parts for soft conditioning, which the method {method} needs: choose the method "
            "inversecrafter, the backbone recammaster-1.3b, or a model whose recapture.json names a folder of such "
            "parts as soft."
        )
    if method == "lavr" and not scene:
        raise InputError(
            f"The model {ref!r} reads no scene, which the method lavr needs: choose the method recammaster, or both."
        )
    if method == "inversecrafter" and not inpaints:
        raise InputError(
            f"The model {ref!r} has no inpainting channels, which the method inversecrafter needs: choose the method "
            "recammaster or both, or another backbone."
        )


def _check_task(replaces: bool, compiled: bool) -> None:
    if replaces:
        raise InputError(
            "The soft methods show the model the clip as it is, and so replace nothing: choose the method "
            "inversecrafter to replace or remove an object."
        )
    if compiled:
        raise InputError("The soft methods do not work with a compiled model; leave out compile.")


def softened(backbone: Backbone, known: Known, guidance: Guidance, *, scene: bool = True) -> Problem:
    """`prepare`, with what is shown beside the noisy video in its conditions.

    scene: the scene and the source's camera are shown, too. Raises `InputError` for what `check_soft` refuses.
    """
    soft = backbone.soft
    has_scene = soft is not None and soft.adapter is not None
    name = guidance.method
    _check(name, backbone.name, soft=soft is not None, scene=has_scene, inpaints=backbone.inpaints)
    _check_task(known.place is not None, backbone.compiled)
    assert soft is not None
    problem = prepare(backbone, known, guidance)
    beside = beside_of(backbone, soft, known, scene=scene)
    return replace(problem, conditions=replace(problem.conditions, beside=beside))


def beside_of(backbone: Backbone, soft: Soft, known: Known, *, scene: bool = True) -> Beside:
    """What the model is shown beside the noisy video. scene: with the scene and the source's camera.

    The source stands in the inpainting channels, too, as known throughout; the scene's are zero, as unknown (both
    inferred). Poses are relative to the source's first camera, as in ReCamMaster, one for each latent frame, in
    distances of the subject: the target's by the depth that its path was laid out with, which cancels, the source's by
    the scene encoder (inferred). ReCamMaster was trained in metres; the subject is taken to be five away (inferred),
    as for files of its cameras.
    """
    clip, unit = padded(known.clip, backbone), RECAMMASTER_UNIT if soft.metres else 1.0
    z = backbone.encode(clip)
    source = torch.cat([z, backbone.condition(clip, torch.ones_like(clip[:, :1]), z)])
    motion = invert_rigid(known.source.world_from_cam[:1]) @ known.target.world_from_cam
    target_pose = pose_numbers(motion, distance_of(known) / unit, backbone)
    shown = source_pose = None
    if scene and soft.adapter is not None and soft.encoder is not None:
        latents = load_encoder(soft.encoder, str(backbone.device)).encode(clip)
        if len(latents.tokens) != z.shape[1]:
            raise ValueError(f"{len(latents.tokens)} groups of tokens for {z.shape[1]} latent frames")
        with torch.no_grad():
            made = soft.adapter(latents.tokens[None].to(backbone.device), (z.shape[-2], z.shape[-1]))[0]
        shown = torch.cat([made, torch.zeros_like(source[len(z) :])])
        if soft.layers.source_encoder is not None:
            source_pose = _numbers(latents.world_from_cam.to(backbone.device), latents.unit / unit)[None]
    return Beside(source[None], target_pose[None], None if shown is None else shown[None], source_pose)


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
    """The unit of the poses that soft parts are told: the median depth of the first frame's central half."""
    height, width = known.z.shape[-2:]
    top, left = height // 4, width // 4
    middle = known.z[0, top : height - top, left : width - left]
    found = middle[middle.isfinite() & (middle > 0)]
    return float(found.median()) if len(found) else 1.0
