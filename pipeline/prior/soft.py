"""A backbone's parts for soft conditioning: posed layers, and an adapter of a scene's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import InputError
from pipeline.prior.adapter import SceneAdapter
from pipeline.prior.posed import PosedLayers
from pipeline.prior.settings import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TRANSFORMER = "transformer."  # how the names of weights begin that replace the transformer's


@dataclass(frozen=True, eq=False)
class Soft:
    """The parts of LaVR.

    weights: of the transformer's self-attention, as it was trained with the others, by the transformer's own names;
    empty where it has them already. The other methods keep to the transformer's own. adapter, encoder: None for a model
    that is shown no scene, as ReCamMaster; else the adapter, and the folder of the scene encoder that it was trained
    for. metres: poses are told in the metres of ReCamMaster's scenes, not in distances of the subject.
    """

    layers: PosedLayers
    adapter: SceneAdapter | None = None
    encoder: str | None = None
    metres: bool = False
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def load_soft(folder: str | Path, name: str, device: torch.device, dtype: torch.dtype) -> Soft:
    """The soft parts of the backbone `name` from its folder, on the device; the layers in `dtype`.

    config.json has the arguments of `PosedLayers` as "layers", those of `SceneAdapter` as "adapter", and as "encoder"
    the folder of the scene encoder, relative to this one; the last two may be missing together. model.safetensors has
    the tensors, as "layers.*", "adapter.*" and, for what replaces the transformer's own, "transformer.*". Raises
    `InputError`.
    """
    folder = Path(folder)
    try:
        config: dict[str, Any] = read_json(folder / CONFIG)
        layers = PosedLayers(**config["layers"])
        adapter = SceneAdapter(**config["adapter"]) if config.get("adapter") else None
        if (adapter is None) != (config.get("encoder") is None):
            raise ValueError("an adapter and the encoder that it was trained for go together")
        parts = nn.ModuleDict({"layers": layers} | ({} if adapter is None else {"adapter": adapter}))
        tensors = load_file(folder / WEIGHTS)
        weights = {key.removeprefix(TRANSFORMER): tensors.pop(key) for key in [*tensors] if key.startswith(TRANSFORMER)}
        parts.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The model {name!r} has no usable soft parts in {folder}: {error}") from error
    parts.eval().requires_grad_(False).to(device)
    layers.to(dtype)
    encoder = None if adapter is None else str(folder / config["encoder"])
    return Soft(layers, adapter, encoder, weights={key: value.to(device, dtype) for key, value in weights.items()})
