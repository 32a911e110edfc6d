"""A stock Wan transformer that is shown other videos beside the noisy one, and the cameras of all of them.

ReCamMaster (arXiv 2503.11647; facts from github.com/KwaiVGI/ReCamMaster): [noisy, source] one after the other in time,
through the one patch embedding, and the target's camera in every block. LaVR (arXiv 2601.14674) adds a third part, the
scene, and the camera of the source. All parts stand at the noise level of the noisy one and see each other, as in
ReCamMaster; or, as a switch of ours, the others are a context that stands at noise level 0, never sees the noisy part,
and so is computed once for all steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.prior.attention import Recording, Seeing, Seen

POSE_NUMBERS = 12  # of a 3x4 camera-to-world matrix, row by row


@dataclass(frozen=True, eq=False)
class Beside:
    """What the transformer is shown beside the noisy latents; P is its number of input channels.

    source: the latents of the source video, with the model's other channels. scene: those of the adapter, likewise;
    None for no scene. target_pose: camera-to-world of each latent frame of the target, 12 numbers, relative to the
    source's first camera. source_pose: that of the source; None to tell the other parts the target's pose, too, as
    ReCamMaster does. kept: what has been computed of the context, by names of passes; see `posed`.
    """

    source: Float[Tensor, "B P t h w"]
    target_pose: Float[Tensor, "B t 12"]
    scene: Float[Tensor, "B P t h w"] | None = None
    source_pose: Float[Tensor, "B t 12"] | None = None
    kept: MutableMapping[str, Sequence[Seen]] = field(default_factory=dict)

    def within(self, span: slice) -> Beside:
        """That of a window of latent frames."""
        scene = None if self.scene is None else self.scene[:, :, span]
        pose = None if self.source_pose is None else self.source_pose[:, span]
        cut = {"source": self.source[:, :, span], "target_pose": self.target_pose[:, span]}
        return replace(self, **cut, scene=scene, source_pose=pose)

    def to(self, dtype: torch.dtype) -> Beside:
        """The same numbers in another precision."""
        scene = None if self.scene is None else self.scene.to(dtype)
        pose = None if self.source_pose is None else self.source_pose.to(dtype)
        cast = {"source": self.source.to(dtype), "target_pose": self.target_pose.to(dtype)}
        return replace(self, **cast, scene=scene, source_pose=pose)

    @property
    def others(self) -> list[Tensor]:
        """The parts behind the noisy one, in their order."""
        return [self.source] if self.scene is None else [self.source, self.scene]

    @property
    def parts(self) -> int:
        """How many parts stand one after the other in time, with the noisy one."""
        return 2 if self.scene is None else 3


class PosedLayers(nn.Module):
    """What is trained besides the transformer. A new one changes nothing of what the transformer does.

    In each block `cam_encoder` of a pose is added to the tokens of its part before self-attention, after the norm and
    its modulation (zero at first), and `projector` follows self-attention, before the gate (identity at first). Where
    the source's pose is added, and that it has a layer like the target's, is inferred from ReCamMaster.

    width, blocks: of the transformer. source: whether there are layers for the source's pose. shared: whether the
    parts share their positions in time, and a learned embedding tells them apart (zero at first), as ReDirector
    (arXiv 2511.19827) argues; else positions run on, as in ReCamMaster. LaVR does not print which (inferred).
    asymmetric: whether the other parts are a context that does not look at the noisy one, and stands at noise level 0
    (ours); else all see each other, as in both papers.
    """

    def __init__(self, width: int, blocks: int, *, source: bool = True, shared: bool = True, asymmetric: bool = False):
        super().__init__()
        self.shared, self.asymmetric = shared, asymmetric
        poses = lambda: nn.ModuleList([_zero(nn.Linear(POSE_NUMBERS, width)) for _ in range(blocks)])
        self.cam_encoder = poses()
        self.source_encoder = poses() if source else None
        self.projector = nn.ModuleList([_identity(nn.Linear(width, width)) for _ in range(blocks)])
        self.part = nn.Parameter(torch.zeros(3, width)) if shared else None


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _identity(layer: nn.Linear) -> nn.Linear:
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def posed(
    transformer: Any,  # WanTransformer3DModel
    layers: PosedLayers,
    noisy: Float[Tensor, "B P t h w"],
    beside: Beside,
    *,
    timestep: Tensor,
    text: Float[Tensor, "B L D"],
    image: Float[Tensor, "B N D"] | None = None,
    name: str = "",
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B C t h w"]:
    """The transformer's answer for the noisy part.

    noisy: with the model's other channels. timestep: of the transformer, for the noisy part; with symmetric layers all
    parts stand there. text, image: as the transformer reads them. name: of this text and this window among those of a
    render. With asymmetric layers the context's keys and values are kept under it in `beside.kept`, and taken from
    there: two tensors "B n heads c" in each block, 5 GB for Wan 1.3B at 480x832x33 with a scene, once for each prompt.
    weights: in place of the transformer's own of these names, for this pass. The transformer is as it was, afterwards.
    Raises ValueError if the parts do not fit, or the layers have none for a pose that is given.
    """
    if beside.source.shape != noisy.shape or (beside.scene is not None and beside.scene.shape != noisy.shape):
        shapes = [tuple(part.shape) for part in (noisy, *beside.others)]
        raise ValueError(f"parts of different shapes: {shapes}")
    if beside.source_pose is not None and layers.source_encoder is None:
        raise ValueError("the layers have none for the source's pose")
    if not layers.asymmetric:
        with hooked(transformer, layers, beside):
            found = _answer(transformer, [noisy, *beside.others], timestep, text, image, weights)
            return found[:, :, : noisy.shape[2]]
    remember(transformer, layers, beside, text=text, image=image, name=name, weights=weights)
    kernels = _kernels(transformer)
    seeing = [Seeing(seen, kernel) for seen, kernel in zip(beside.kept[name], kernels, strict=True)]
    with hooked(transformer, layers, beside, slice(0, 1)), attending(transformer, seeing):
        return _answer(transformer, [noisy], timestep, text, image, weights)


def remember(
    transformer: Any,
    layers: PosedLayers,
    beside: Beside,
    *,
    text: Tensor,
    image: Tensor | None = None,
    name: str = "",
    weights: Mapping[str, Tensor] | None = None,
) -> bool:
    """Compute the context of asymmetric layers, unless it is kept under that name; whether it was computed.

    Arguments as of `posed`, which does it where nobody has. Symmetric layers have no context.
    """
    if not layers.asymmetric or name in beside.kept:
        return False
    recording = [Recording(kernel) for kernel in _kernels(transformer)]
    with hooked(transformer, layers, beside, slice(1, None)), attending(transformer, recording):
        _answer(transformer, beside.others, torch.zeros(len(text), device=text.device), text, image, weights)
    beside.kept[name] = [one.seen for one in recording if one.seen is not None]
    return True


def _answer(
    transformer: Any,
    parts: Sequence[Tensor],
    time: Tensor,
    text: Tensor,
    image: Tensor | None,
    weights: Mapping[str, Tensor] | None,
) -> Tensor:
    given = {
        "hidden_states": torch.cat(list(parts), 2),
        "timestep": time,
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": image,
        "return_dict": False,
    }
    return (functional_call(transformer, dict(weights), (), given) if weights else transformer(**given))[0]


def _kernels(transformer: Any) -> list[Any]:
    return [getattr(block.attn1.processor, "_attention_backend", None) for block in transformer.blocks]


@contextmanager
def attending(transformer: Any, processors: Sequence[Recording | Seeing]) -> Iterator[None]:
    """Inside, the blocks attend to themselves by these."""
    own = [block.attn1.processor for block in transformer.blocks]
    try:
        for block, processor in zip(transformer.blocks, processors, strict=True):
            block.attn1.processor = processor
        yield
    finally:
        for block, processor in zip(transformer.blocks, own, strict=True):
            block.attn1.processor = processor


@contextmanager
def hooked(transformer: Any, layers: PosedLayers, beside: Beside, seen: slice = slice(None)) -> Iterator[None]:
    """Inside, the transformer takes the parts one after the other in time, with the poses of `beside`.

    seen: which of the parts it is given, as if all were there. A training with gradient checkpointing has to stay
    inside until its backward pass is done, which computes again. Blocks must not be compiled: what is compiled once
    does not notice other hooks.
    """
    frames, parts = beside.source.shape[2], range(beside.parts)[seen]
    span = slice(parts.start * frames, parts.stop * frames)
    blocks = list(transformer.blocks)
    if len(blocks) != len(layers.projector):
        raise ValueError(f"layers for {len(layers.projector)} blocks, and {len(blocks)} blocks")
    added = [pose_tokens(layers, index, beside)[:, span] for index in range(len(blocks))]

    def add_pose(index: int):
        def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *others = given
            pose = added[index]  # B frames dim
            tokens = repeat(pose, "b f d -> b (f n) d", n=x.shape[1] // pose.shape[1])
            return (x + tokens.to(x), *others)

        return hook

    def project(index: int):
        return lambda _module, _given, x: layers.projector[index](x)

    def tell_parts(_: nn.Module, __: object, x: Tensor) -> Tensor:
        assert layers.part is not None
        told = layers.part[parts.start : parts.stop]
        return x + repeat(told, "p d -> 1 d (p f) 1 1", f=x.shape[2] // len(parts)).to(x)

    hooks = []
    own = transformer.rope
    try:
        for index, block in enumerate(blocks):
            hooks.append(block.attn1.register_forward_pre_hook(add_pose(index)))
            hooks.append(block.attn1.register_forward_hook(project(index)))
        if layers.shared:
            hooks.append(transformer.patch_embedding.register_forward_hook(tell_parts))
        transformer.rope = Positions(own, frames, parts, shared=layers.shared)
        yield
    finally:
        transformer.rope = own
        for hook in hooks:
            hook.remove()


def pose_tokens(layers: PosedLayers, index: int, beside: Beside) -> Float[Tensor, "B parts*t dim"]:
    """What is added to the tokens of each latent frame of each part, in a block: the encoded pose of that part."""
    target = layers.cam_encoder[index](beside.target_pose)
    other = target
    if beside.source_pose is not None and layers.source_encoder is not None:
        other = layers.source_encoder[index](beside.source_pose)
    return torch.cat([target, *[other] * (beside.parts - 1)], 1)


class Positions(nn.Module):
    """In place of the rotary embedding of a transformer, for some of the parts of `frames` latent frames each.

    shared: every part stands at the positions of the first; else they run on from part to part.
    """

    def __init__(self, rope: nn.Module, frames: int, parts: range, *, shared: bool):
        super().__init__()
        self.rope, self.frames, self.parts, self.shared = rope, frames, parts, shared

    def forward(self, x: Float[Tensor, "B P parts*t h w"]) -> tuple[Tensor, ...]:
        if self.shared:
            alone = self.rope(x[:, :, : self.frames])
            return tuple(repeat(one, "1 n h c -> 1 (p n) h c", p=len(self.parts)) for one in alone)
        *shape, _, height, width = x.shape
        whole = self.rope(x.new_empty(()).expand(*shape, self.frames * self.parts.stop, height, width))
        each = whole[0].shape[1] // self.parts.stop  # tokens of a part
        return tuple(one[:, each * self.parts.start :] for one in whole)
