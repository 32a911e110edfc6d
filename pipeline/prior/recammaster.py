"""The published weights of ReCamMaster (arXiv 2503.11647), the one soft model with real weights.

Names: github.com/KwaiVGI/ReCamMaster (`train_recammaster.py`) gives each block of Wan's text-to-video transformer a
`cam_encoder` and a `projector`. All other tensors have the names of Wan's own layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline import InputError
from pipeline.prior.posed import PosedLayers
from pipeline.prior.wan_layout import diffusers_key, original_config

FILES = "*recammaster*.safetensors"
SHIFT = 5.0  # of the noise levels, with which its authors sample


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


def recammaster_file(folder: Path) -> Path | None:
    """The weights of ReCamMaster in a folder; None if there are none. Raises `InputError` if there are several."""
    found = sorted(folder.glob(FILES))
    if len(found) > 1:
        raise InputError(f"The folder {folder} holds several files {FILES}; leave one of them.")
    return found[0] if found else None
