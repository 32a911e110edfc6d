"""The table of models: what each one is, where it comes from, under which licence, and how large it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline import InputError

ROOT = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    ref: a folder relative to the repository root, or a Hugging Face hub id. download_bytes: what has to be fetched
    before the first use, about; 0 for what comes with the program. terms: what the licence allows only, in plain words,
    where the user has to accept it before the first use; else empty.
    """

    name: str
    ref: str
    role: str
    licence: str
    note: str
    download_bytes: int
    terms: str = ""

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
    ModelSpec(
        name="depth-anything-v2-small",
        ref="depth-anything/Depth-Anything-V2-Small-hf",
        role="depth",
        licence="Apache-2.0",
        note="Sees one frame at a time; the frames' scales are aligned afterwards.",
        download_bytes=99_000_000,  # 24.8e6 parameters at 32 bits
    ),
    ModelSpec(
        name="depthcrafter",
        ref="tencent/DepthCrafter",
        role="depth",
        licence="DepthCrafter's own (academic); Stability AI Community License for what it stands on",
        note="Sees up to 110 frames at once, by diffusion; needs a GPU.",
        # at 16 bits: UNet 1.52e9 parameters; of Stable Video Diffusion the image encoder 0.63e9 and the VAE 0.10e9
        download_bytes=4_500_000_000,
        terms="DepthCrafter may be used for academic, research and education purposes only, not for commercial or "
        "production ones (github.com/Tencent/DepthCrafter, LICENSE). It stands on Stable Video Diffusion, to which the "
        "Stability AI Community License applies (stability.ai/license).",
    ),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def find(ref: str) -> ModelSpec | None:
    """The entry of the table that a name or a hub id means; None for a model that is not in it."""
    named = (spec for spec in _SPECS if ref.casefold() in (spec.name, spec.ref.casefold()))
    return next(named, None)


def check_accepted(ref: str, accepted: Collection[str]) -> None:
    """Raises `InputError` if `ref` is a model whose terms have to be accepted, and its name is not in `accepted`."""
    spec = find(ref)
    if spec is not None and spec.terms and spec.name not in accepted:
        raise InputError(
            f"The model {spec.name} waits for you to accept its terms; nothing is fetched before. {spec.terms} To "
            f"accept them, tick the box below the choice of the model; on the command line give --accept {spec.name}."
        )


def fetch(hub_id: str, files: list[str]) -> Path:
    """The folder with these files (exact names, or patterns) of a model on the hub, fetched unless they are at hand.

    Raises `InputError` that says what to do if they cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{hub_id}"
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=files))
    except GatedRepoError as error:
        raise InputError(
            f"The model {hub_id} is given to those who accept its terms: do so on {page}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no model {hub_id} on the Hugging Face hub, or it is private; see {page}."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(_unreachable(hub_id, constants.HF_HUB_CACHE)) from error
    if missing := [name for name in files if not any(folder.glob(name))]:  # offline, a part of it may be in the cache
        raise InputError(f"{_unreachable(hub_id, constants.HF_HUB_CACHE)} Missing: {', '.join(missing)}.")
    return folder


def _unreachable(hub_id: str, cache: str) -> str:
    return (
        f"The Hugging Face hub cannot be reached, and the model {hub_id} is not (all) in its cache ({cache}). Connect "
        f"this machine, or run `hf download {hub_id}` on one that is connected and copy that folder; or choose nano, "
        "which comes with the program, or for depth a file of your own."
    )


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
