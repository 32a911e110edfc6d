"""What a backbone's folder says of it (recapture.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.models import hub


@dataclass(frozen=True, eq=False)
class LatentRgb:
    """A linear map from normalised latents to RGB in [0, 1]: rgb = latent @ weight + bias."""

    weight: Float[Tensor, "C 3"]
    bias: Float[Tensor, " 3"]


LENGTH = 49  # frames, about two seconds of film


@dataclass(frozen=True, eq=False)
class Settings:
    """What recapture.json says of a backbone; the defaults are those of Wan 2.1 at 480x832.

    frames, pixels: clip length that it was made for, and H*W. length: frames of a clip that a render takes unless it is
    told how many; None for `LENGTH`, or as many as it was made for where that is more. text_tokens: length of the
    embedded prompt. strength: noise level to start from. shift: of the noise levels, see `sampler.flow_sigmas`. depth:
    folder of the depth model that goes with the backbone. mask_encoder: folder of its `MaskEncoder`, if it has one.
    inpainter: folder of its `Inpainter`, if it has one. soft: folder of its parts for soft conditioning, see
    `soft.load_soft`, if it has them. fill_condition: the inpainting channels were trained on unknown pixels filled
    smoothly from the known ones, not grey as Wan's were.
    replace_guidance_scale: in place of guidance_scale where an object is replaced, None for the same. vocabulary: what
    its prompts may say, in words for the user, if that is little. steady: over how many frames to either side what it
    paints is made to agree, see `finish.steady`; 0 for a model whose frames agree by themselves. softness: how much
    softer than film its paint is, once enlarged, in pixels of the size at which it works, see `grain`. texture: what is
    finer in its paint than so many pixels is its inpainter's, see `finish.texture`; 0 for a model that knows better.
    token_times: it is shown what is known by a time for each token, see `prior.token_times`.
    """

    frames: int = 81
    length: int | None = None
    pixels: int = 480 * 832
    steps: int = 50
    guidance_scale: float = 5.0
    replace_guidance_scale: float | None = None
    strength: float = 1.0
    shift: float = 3.0
    text_tokens: int = 512
    latent_rgb: LatentRgb | None = None
    depth: str | None = None
    mask_encoder: str | None = None
    inpainter: str | None = None
    soft: str | None = None
    fill_condition: bool = False
    vocabulary: str = ""
    steady: int = 0
    softness: float = 0.5
    texture: float = 0.0
    token_times: bool = False


TI2V = {"token_times": True, "frames": 121, "pixels": 704 * 1280}  # of Wan 2.2 TI2V-5B, and what it was made for


def read_settings(folder: Path, scheduler: Path | None = None) -> Settings:
    """The settings of a backbone folder: recapture.json over the scheduler's shift over the defaults.

    The defaults are those of `TI2V` where its model_index.json says `expand_timesteps`.

    scheduler: its folder, where it is another than the sub-folder of that name.
    """
    scheduling = read_json((scheduler or folder / "scheduler") / "scheduler_config.json")
    given = read_json(folder / "recapture.json")
    values: dict[str, Any] = TI2V.copy() if read_json(folder / "model_index.json").get("expand_timesteps") else {}
    values |= {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    # diffusers' Euler scheduler calls it `shift`, its multistep ones `flow_shift`.
    shift = scheduling.get("shift", scheduling.get("flow_shift"))
    if shift is not None:
        values.setdefault("shift", shift)
    if factors := values.get("latent_rgb"):
        values["latent_rgb"] = LatentRgb(torch.tensor(factors["weight"]), torch.tensor(factors["bias"]))
    for name in ("depth", "mask_encoder", "inpainter", "soft"):
        if values.get(name):
            values[name] = str(folder / values[name])
    return Settings(**values)


def check_encoder(name: str, folder: str | None) -> None:
    """Raises `InputError` where a model has no mask encoder. name: of the model; folder: of its encoder."""
    if folder is None:
        raise InputError(
            f"The model {name!r} has no mask encoder: choose the latent mask training-free, or train one with "
            "python -m pipeline.training.mask_encoder and name its folder in the model's recapture.json."
        )


def vocabulary_of(ref: str) -> str:
    """`Settings.vocabulary` of a model that is a folder on this machine, without loading it; "" of others."""
    try:
        folder = Path(hub.resolve(ref))
    except InputError:  # said when it is loaded
        return ""
    return read_settings(folder).vocabulary if folder.is_dir() else ""


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
