"""The table of models: what each one is, where it comes from, under which licence, and how large it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline import InputError

ROOT = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    ref: a folder relative to the repository root, or a Hugging Face hub id. download_bytes: what has to be fetched
    before the first use, about; 0 for what comes with the program.
    """

    name: str
    ref: str
    role: str
    licence: str
    note: str
    download_bytes: int

    @property
    def local(self) -> bool:
        """Whether the model comes with the program."""
        return self.download_bytes == 0


_SPECS = (
    ModelSpec(
        name="nano",
        ref="assets/nano",
        role="backbone",
        licence="Apache-2.0",
        note="Our own small model of a procedural world; runs without a GPU.",
        download_bytes=0,
    ),
    ModelSpec(
        name="wan2.1-fun-1.3b-inp",
        ref="engineerA314/Wan2.1-Fun-V1.1-1.3B-InP-Diffusers",
        role="backbone",
        licence="Apache-2.0",
        note="The backbone of the InverseCrafter paper, 480x832, converted to the diffusers layout by a third party.",
        # 8.0e9 parameters at 16 bits: transformer 1.56e9, text encoder 5.68e9, image encoder 0.63e9, VAE 0.13e9.
        download_bytes=16_000_000_000,
    ),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def resolve(ref: str) -> str:
    """The folder (absolute path) or hub id ("owner/name") that `ref` means.

    ref: a name of `MODELS`, a folder that holds a model_index.json, or a hub id. Nothing is downloaded.
    Raises `InputError` for anything else, and for a model that should have come with the program but is not there.
    """
    if ref in MODELS:
        spec = MODELS[ref]
        if not spec.local:
            return spec.ref
        folder = ROOT / spec.ref
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The weights of the model {ref!r} are missing: {folder} has no model_index.json.")
        return str(folder)
    folder = Path(ref).expanduser()
    if ref and folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The folder {ref!r} holds no model: it has no model_index.json.")
        return str(folder.resolve())
    if _HUB_ID.fullmatch(ref):
        return ref
    raise InputError(
        f"Unknown model {ref!r}: give one of {', '.join(MODELS)}, a folder with a model_index.json, "
        "or a Hugging Face id of the form owner/name."
    )
