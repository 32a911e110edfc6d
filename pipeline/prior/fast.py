"""Fast modes: a cache of blocks, and a few-step LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipeline import InputError
from pipeline.models.memory import Mode

FAST = ("off", "cache", "lora")


@dataclass(frozen=True)
class FewSteps:
    """A distilled LoRA with which a model needs few steps and no classifier-free guidance.

    model: its name in `table.MODELS`. width, layers: of the transformer that it fits.
    """

    model: str
    width: int
    layers: int
    steps: int
    guidance_scale: float


# CausVid (arXiv 2412.07772), taken out as a LoRA by Kijai, who advises 4 steps or more without guidance.
FEW_STEPS = FewSteps("causvid-lora", width=1536, layers=30, steps=8, guidance_scale=1.0)


@dataclass
class Passes:
    """How many passes through the transformer were asked for; with a cache, how many went through all blocks."""

    asked: int = 0
    whole: int = 0


def check_fast(fast: str, name: str, width: int, layers: int, mode: Mode | None) -> None:
    """Raises `InputError` for a fast mode that a model cannot serve.

    name: of the model; width, layers: of its transformer; mode: how it is placed, None where that is open.
    """
    if fast == "cache" and layers < 2:
        raise InputError(f"The model {name!r} has one block only, so that there is nothing to cache.")
    if fast != "lora":
        return
    lora = FEW_STEPS
    if (width, layers) != (lora.width, lora.layers):
        raise InputError(
            f"The few-step LoRA fits Wan 2.1 1.3B, with {lora.layers} blocks {lora.width} wide; the model {name!r} has "
            f"{layers}, {width} wide. Choose that model, or another fast mode."
        )
    if mode is not None and mode.eight_bits:
        raise InputError(f"The few-step LoRA does not work in 8 bits, the memory mode {mode.name}; use groups.")
    if find_spec("peft") is None:
        raise InputError("The few-step LoRA needs the package peft; install it with: pip install peft")


def check_lora(state: Any, transformer: Any, file: str) -> None:
    """Raises `InputError` unless each pair of matrices fits its layer."""
    for key, matrix in state.items():
        layer, _, kind = key.removeprefix("transformer.").partition(".lora_")
        try:
            shape = transformer.get_submodule(layer).weight.shape
        except AttributeError:
            shape = None
        side = {"A.weight": -1, "B.weight": 0}.get(kind)
        fits = shape is not None and (side is None or matrix.shape[side] == shape[1 if side else 0])
        if not fits:
            raise InputError(f"The LoRA {file} does not fit the model: its {key} has no layer of that size.")
