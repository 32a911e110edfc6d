"""Wan's own layout of weights, renamed to that of diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline import InputError
from pipeline.models import hub, table
from pipeline.prior.settings import read_json

# What the modules are called in Wan-Video/Wan2.1 (wan/modules/model.py), which VideoX-Fun keeps, and in diffusers'
# WanTransformer3DModel, of which each is the same: {block} is the number of a block.
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in (_ATTENTION | _IMAGE_ATTENTION).items()},
    "norm3": "norm2",  # the one with weights, before the cross-attention; norm1 and the other have none
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_HEAD_DIM = 128  # of all published Wan models, where no config.json says how many heads there are


def diffusers_key(key: str) -> str | None:
    """What diffusers calls a tensor of Wan's own layout; None if a plain image-to-video transformer has no such tensor.

    A pure renaming: no tensor is changed, split or joined.
    """
    place, names, prefix = key, _OUTSIDE, ""
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        place, names, prefix = found[2], _BLOCK, f"blocks.{found[1]}."
    if place in names:  # a tensor by itself
        return prefix + names[place]
    module, _, kind = place.rpartition(".")
    return f"{prefix}{names[module]}.{kind}" if module in names and kind in ("weight", "bias") else None


def original_files(folder: Path) -> list[Path]:
    """The weight files of a transformer in Wan's own layout in a folder; none if there is no such transformer."""
    files = sorted(folder.glob(table.ORIGINAL_FILES))
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                if any(".self_attn." in key for key in list(tensors.keys())):
                    return files
        except (OSError, SafetensorError) as error:
            raise InputError(f"The weights {file} cannot be read ({error}); fetch them again.") from error
    return []


def original_config(
    ref: str, shapes: Mapping[str, Sequence[int]], heads: int | None = None, *, text_to_video: bool = False
) -> dict[str, Any]:
    """The configuration of the diffusers transformer that fits the tensors of Wan's own layout, by their shapes.

    heads: their number, if it is known. text_to_video: such a transformer is wanted, too. Raises `InputError` for what
    is no image-to-video or inpainting transformer.
    """
    try:
        dim, channels, *patch = shapes["patch_embedding.weight"]
        ffn_dim = shapes["blocks.0.ffn.0.weight"][0]
        freq_dim, text_dim = shapes["time_embedding.0.weight"][1], shapes["text_embedding.0.weight"][1]
        out_channels = shapes["head.head.weight"][0] // math.prod(patch)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"The model {ref!r} is no Wan transformer: it lacks or has misshapen {error}.") from error
    wrong = sorted(key for key in shapes if diffusers_key(key) is None)
    if wrong:
        kind = next((kind for part, kind in _RELATIVES.items() if any(part in key for key in wrong)), "another model")
        raise InputError(
            f"The model {ref!r} is {kind}, not a plain image-to-video or inpainting model: it has {len(wrong)} tensors "
            f"that those have not, such as {', '.join(wrong[:3])}. {GIVE}"
        )
    if channels == out_channels and not text_to_video:
        raise InputError(
            f"The model {ref!r} is a text-to-video model: it takes {channels} channels, the noisy video alone, where "
            f"an image-to-video or inpainting model takes {2 * out_channels + 4}. {GIVE}"
        )
    has_image_branch = "img_emb.proj.1.weight" in shapes
    heads = heads or max(1, dim // _HEAD_DIM)
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": out_channels,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        "image_dim": shapes["img_emb.proj.1.weight"][1] if has_image_branch else None,
        "added_kv_proj_dim": dim if has_image_branch else None,
    }


_RELATIVES = {
    "vace": "a VACE model",
    "control_adapter": "a camera control model",
    "ref_conv": "a control model",
    "emb_pos": "a model of first and last frames",
    "scale_weight": "a model in scaled fp8",
}
GIVE = "Give one such as wan2.1-fun-1.3b-inp."


def load_original(ref: str, files: Sequence[Path], dtype: torch.dtype) -> Any:
    """A WanTransformer3DModel on the CPU from the files of a transformer in Wan's own layout.

    dtype: of its weights, but for those that diffusers keeps in float32. Each tensor is renamed, and checked by its
    shape; none may be missing or left over. Raises `InputError`.
    """
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    if missing := hub.lacking(files[0].parent, [table.ORIGINAL_FILES]):
        raise InputError(f"Of the weights of the model {ref!r} {', '.join(missing)} are missing; fetch them again.")
    given = read_json(files[0].parent / "config.json")
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        place = {key: tensors for tensors in opened for key in list(tensors.keys())}
        shapes = {key: tensors.get_slice(key).get_shape() for key, tensors in place.items()}
        config = original_config(ref, shapes, given.get("num_heads"))
        with init_empty_weights():  # which leaves the tables of the rotary embedding alone: no file has them
            transformer: Any = WanTransformer3DModel(**config, eps=given.get("eps", 1e-6))
        wanted = {key: list(tensor.shape) for key, tensor in transformer.state_dict().items()}
        renamed = {diffusers_key(key): key for key in place}
        misfits = [key for new, key in renamed.items() if wanted.get(new) != list(shapes[key])]
        if misfits or len(wanted) != len(renamed):
            named = [*misfits, *sorted(set(wanted) - set(renamed))]
            raise InputError(
                f"The weights of the model {ref!r} are not complete, or of another shape than they should be: "
                f"{', '.join(named[:3])} and {max(0, len(named) - 3)} more; fetch them again."
            )
        kept = set(transformer._keep_in_fp32_modules or ())
        weights = {
            new: place[key].get_tensor(key).to(torch.float32 if kept.intersection(str(new).split(".")) else dtype)
            for new, key in renamed.items()
        }
    transformer.load_state_dict(weights, strict=True, assign=True)
    return transformer
