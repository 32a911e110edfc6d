"""A backbone's parts for soft conditioning: posed layers, and an adapter of a scene's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline import InputError
from pipeline.prior.adapter import SceneAdapter
from pipeline.prior.posed import PosedLayers
from pipeline.prior.settings import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Soft:
    """The parts of LaVR.

    adapter, encoder: None for a model that is shown no scene, as ReCamMaster; else the adapter, and the folder of the
    scene encoder that it was trained for. metres: poses are told in the metres of ReCamMaster's scenes, not in
    distances of the subject.
    """

    layers: PosedLayers
    adapter: SceneAdapter | None = None
    encoder: str | None = None
    metres: bool = False


def load_soft(folder: str | Path, name: str, device: torch.device, dtype: torch.dtype) -> Soft:
    """The soft parts of the backbone `name` from its folder, on the device; the layers in `dtype`.

    config.json has the arguments of `PosedLayers` as "layers", those of `SceneAdapter` as "adapter", and as "encoder"
    the folder of the scene encoder, relative to this one; the last two may be missing together. model.safetensors has
    the tensors, as "layers.*" and "adapter.*". Raises `InputError`.
    """
    folder = Path(folder)
    try:
        config: dict[str, Any] = read_json(folder / CONFIG)
        layers = PosedLayers(**config["layers"])
        adapter = SceneAdapter(**config["adapter"]) if config.get("adapter") else None
        if (adapter is None) != (config.get("encoder") is None):
            raise ValueError("an adapter and the encoder that it was trained for go together")
        parts = nn.ModuleDict({"layers": layers} | ({} if adapter is None else {"adapter": adapter}))
        parts.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The model {name!r} has no usable soft parts in {folder}: {error}") from error
    parts.eval().requires_grad_(False).to(device)
    layers.to(dtype)
    return Soft(layers, adapter, None if adapter is None else str(folder / config["encoder"]))
