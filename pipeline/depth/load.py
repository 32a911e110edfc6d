"""Depth models by name, folder or hub id."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import InputError
from pipeline.depth.depthcrafter import load_depthcrafter
from pipeline.depth.estimate import DepthModel, HubDepth
from pipeline.depth.network import DepthNet
from pipeline.models import hub, table


def load_depth_model(ref: str, device: str | torch.device = "cpu") -> DepthModel:
    """The depth model `ref`: a name of `table.MODELS`, a folder, or the hub id of a model of transformers.

    A folder holds a `DepthNet`, a depth model of transformers or the parts of DepthCrafter, or is a backbone's with a
    sub-folder `depth`. Of the models of transformers those of type depth_anything and dpt are known, for example
    depth-anything-v2-small of the table (Apache-2.0). Fetches what is on the hub and not in its cache; whether the user
    has accepted its terms is for the caller to ask (`table.check_accepted`). Weights are read from safetensors only,
    never from pickles. Raises InputError.
    """
    spec = table.find(ref)
    if spec is not None and spec.name == "depthcrafter":
        with _naming_remedy():
            return load_depthcrafter(device=device)
    if spec is None or spec.local:
        folder = Path(hub.resolve(spec.name) if spec else ref).expanduser()
    elif spec.role == "depth":
        with _naming_remedy():
            folder = hub.download(spec)[0]
    else:
        raise InputError(f"The model {ref!r} is for {spec.role}, not for depth.")
    if (folder / "depth" / "config.json").is_file():
        folder = folder / "depth"
    if (folder / "unet").is_dir() and (folder / "image_encoder").is_dir():
        return load_depthcrafter(folder, device)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"The folder {ref!r} holds no depth model: it has no config.json.")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if "model_type" not in config:
                if not (folder / "model.safetensors").is_file():
                    raise InputError(f"The depth model {ref!r} has no weights: model.safetensors is missing.")
                # as from_pretrained does, but silently, and never from a pickle; float16 weights fill a float32 network
                net = DepthNet(**config)
                net.load_state_dict(load_file(folder / "model.safetensors"))
                return net.eval().requires_grad_(False).to(device)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The depth model {ref!r} cannot be read: {error}") from error
        return _load_hub_model(ref, folder, device)
    try:
        hub.resolve(ref)
    except InputError:
        raise InputError(
            f"Unknown depth model {ref!r}: give nano, depth-anything-v2-small, depthcrafter, a folder with a depth "
            "model, or a Hugging Face id such as depth-anything/Depth-Anything-V2-Small-hf."
        ) from None
    with _naming_remedy():
        _refuse_unknown(ref, hub.fetch(ref, ["config.json"]))  # before its weights
        folder = hub.fetch(ref, ["config.json", "preprocessor_config.json", "*.safetensors"])
    return _load_hub_model(ref, folder, device)


def fetch_depth_model(ref: str, accepted: Collection[str] = ()) -> None:
    """Fetch a depth model of the table, if it is not on this machine; `load_depth_model` then finds it there.

    accepted: names of models whose terms the user has accepted. Raises `InputError`.
    """
    spec = table.find(ref)
    if spec is not None and spec.role == "depth":
        with _naming_remedy():
            hub.download(spec, accepted)


@contextmanager
def _naming_remedy() -> Iterator[None]:
    """What can be done about depth where a model cannot be had."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error} Without it, use the depth model nano, which comes with the program, or give the depth as a file."
        ) from error


def _refuse_unknown(ref: str, folder: Path) -> None:
    """Raises `InputError` for a model of transformers that is none of the known depth models."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"The depth model {ref!r} cannot be read: {error}") from error
    if kind not in ("depth_anything", "dpt"):
        raise InputError(
            f"The depth model {ref!r} is of type {kind}; known are depth_anything and dpt, for example "
            "depth-anything/Depth-Anything-V2-Small-hf. Video Depth Anything and Depth Anything 3 are not in "
            "transformers and cannot be used."
        )


def _load_hub_model(ref: str, folder: Path, device: str | torch.device) -> HubDepth:
    import transformers

    _refuse_unknown(ref, folder)
    try:
        # the plain (PIL) class where there are two: the other one needs torchvision
        cls = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor
        processor = cls.from_pretrained(folder)
        model = transformers.AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"The depth model {ref!r} could not be loaded: {str(error).splitlines()[0]}") from error
    inverse = getattr(model.config, "depth_estimation_type", "relative") == "relative"
    return HubDepth(model.eval().requires_grad_(False).to(device), processor, inverse=inverse)
