"""A stock Wan transformer that is shown other videos beside the noisy one, and the cameras of all of them.

ReCamMaster (arXiv 2503.11647; facts from github.com/KwaiVGI/ReCamMaster): [noisy, source] one after the other in time,
through the one patch embedding, and the target's camera in every block. LaVR (arXiv 2601.14674) adds a third part, the
scene, and the camera of the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import InputError
from pipeline.prior.wan_layout import diffusers_key, original_config

POSE_NUMBERS = 12  # of a 3x4 camera-to-world matrix, row by row


@dataclass(frozen=True, eq=False)
class Beside:
    """What the transformer is shown beside the noisy latents; P is its number of input channels.

    source: the latents of the source video, with the model's other channels. scene: those of the adapter, likewise;
    None for no scene. target_pose: camera-to-world of each latent frame of the target, 12 numbers, relative to the
    source's first camera. source_pose: that of the source; None to tell the other parts the target's pose, too, as
    ReCamMaster does.
    """

    source: Float[Tensor, "B P t h w"]
    target_pose: Float[Tensor, "B t 12"]
    scene: Float[Tensor, "B P t h w"] | None = None
    source_pose: Float[Tensor, "B t 12"] | None = None

    def within(self, span: slice) -> Beside:
        """That of a window of latent frames."""
        latents = lambda x: None if x is None else x[:, :, span]
        poses = lambda x: None if x is None else x[:, span]
        return Beside(self.source[:, :, span], self.target_pose[:, span], latents(self.scene), poses(self.source_pose))

    def to(self, dtype: torch.dtype) -> Beside:
        """The same numbers in another precision."""
        cast = lambda x: None if x is None else x.to(dtype)
        return Beside(self.source.to(dtype), self.target_pose.to(dtype), cast(self.scene), cast(self.source_pose))

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
    """

    def __init__(self, width: int, blocks: int, *, source: bool = True, shared: bool = True):
        super().__init__()
        self.shared = shared
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
) -> Float[Tensor, "B C t h w"]:
    """The transformer's answer for the noisy part.

    noisy: with the model's other channels. timestep: of the transformer, one for all parts. text, image: as the
    transformer reads them. The transformer is as it was, afterwards. Raises ValueError if the parts do not fit, or the
    layers have none for a pose that is given.
    """
    parts = [noisy, beside.source, *([] if beside.scene is None else [beside.scene])]
    if any(part.shape != noisy.shape for part in parts):
        raise ValueError(f"parts of different shapes: {[tuple(part.shape) for part in parts]}")
    if beside.source_pose is not None and layers.source_encoder is None:
        raise ValueError("the layers have none for the source's pose")
    with hooked(transformer, layers, beside):
        whole = transformer(
            hidden_states=torch.cat(parts, 2),
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_image=image,
            return_dict=False,
        )[0]
    return whole[:, :, : noisy.shape[2]]


@contextmanager
def hooked(transformer: Any, layers: PosedLayers, beside: Beside) -> Iterator[None]:
    """Inside, the transformer takes the parts one after the other in time, with the poses of `beside`.

    A training with gradient checkpointing has to stay inside until its backward pass is done, which computes again.
    Blocks must not be compiled: what is compiled once does not notice other hooks.
    """
    frames = beside.source.shape[2]
    blocks = list(transformer.blocks)
    if len(blocks) != len(layers.projector):
        raise ValueError(f"layers for {len(layers.projector)} blocks, and {len(blocks)} blocks")
    added = [pose_tokens(layers, index, beside) for index in range(len(blocks))]

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
        return x + repeat(layers.part[: beside.parts], "p d -> 1 d (p f) 1 1", f=x.shape[2] // beside.parts).to(x)

    hooks = []
    own = transformer.rope
    try:
        for index, block in enumerate(blocks):
            hooks.append(block.attn1.register_forward_pre_hook(add_pose(index)))
            hooks.append(block.attn1.register_forward_hook(project(index)))
        if layers.shared:
            hooks.append(transformer.patch_embedding.register_forward_hook(tell_parts))
            transformer.rope = SharedPositions(own, frames, beside.parts)
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


class SharedPositions(nn.Module):
    """In place of the rotary embedding of a transformer: every part stands at the positions of the first."""

    def __init__(self, rope: nn.Module, frames: int, parts: int):
        super().__init__()
        self.rope, self.frames, self.parts = rope, frames, parts

    def forward(self, x: Float[Tensor, "B P parts*t h w"]) -> tuple[Tensor, ...]:
        return tuple(repeat(one, "1 n h c -> 1 (p n) h c", p=self.parts) for one in self.rope(x[:, :, : self.frames]))


# --- the published weights of ReCamMaster -----------------------------------------------------------------------------


def recammaster_key(key: str) -> tuple[str, str] | None:
    """Where a tensor of ReCamMaster belongs: ("layers", name in `PosedLayers`), or ("transformer", name of diffusers).

    None for a tensor of another model.
    """
    if found := re.fullmatch(r"blocks\.(\d+)\.(cam_encoder|projector)\.(weight|bias)", key):
        return "layers", f"{found[2]}.{found[1]}.{found[3]}"
    name = diffusers_key(key)
    return None if name is None else ("transformer", name)


def load_recammaster(file: str | Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, PosedLayers]:
    """The transformer and the layers of ReCamMaster on the CPU, from its safetensors in Wan's own names.

    dtype: of the weights, but for those that diffusers keeps in float32. None may be missing or left over. The layers
    have none for the source's pose, and positions run on. Raises `InputError`.
    """
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights {str(file)!r} cannot be read ({error}); fetch them again.") from error
    own = {key: value for key, value in tensors.items() if (recammaster_key(key) or ("",))[0] != "layers"}
    shapes = {key: list(value.shape) for key, value in own.items()}
    config = original_config(str(file), shapes, text_to_video=True)
    with init_empty_weights():
        transformer: Any = WanTransformer3DModel(**config)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        layers = PosedLayers(width, config["num_layers"], source=False, shared=False)
    kept = set(transformer._keep_in_fp32_modules or ())
    weights: Mapping[str, dict[str, Tensor]] = {"layers": {}, "transformer": {}}
    for key, value in tensors.items():
        place = recammaster_key(key)
        assert place is not None  # `original_config` has refused all others
        exact = place[0] == "transformer" and kept.intersection(place[1].split("."))
        weights[place[0]][place[1]] = value.to(torch.float32 if exact else dtype)
    for name, module in (("transformer", transformer), ("layers", layers)):
        wanted = {key: value.shape for key, value in module.state_dict().items()}
        given = weights[name]
        wrong = sorted(key for key in {*wanted, *given} if key not in given or wanted.get(key) != given[key].shape)
        if wrong:
            raise InputError(
                f"The weights {str(file)!r} are not those of ReCamMaster: {len(wrong)} tensors of its {name} are "
                f"missing or of another shape, such as {', '.join(wrong[:3])}."
            )
        module.load_state_dict(given, strict=True, assign=True)
    return transformer.eval().requires_grad_(False), layers.eval().requires_grad_(False)
