"""A backbone from a folder or from the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline import InputError
from pipeline.models import hub, memory, table
from pipeline.prior.backbone import Backbone
from pipeline.prior.recammaster import SHIFT, load_recammaster, recammaster_file
from pipeline.prior.settings import read_json, read_settings
from pipeline.prior.soft import Soft
from pipeline.prior.wan_layout import GIVE, load_original, original_files
from pipeline.stop import aside, check

COMPONENTS = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")


def default_dtype(device: torch.device | str) -> torch.dtype:
    """The transformer's precision: bfloat16 on CUDA and on CPUs that multiply it in hardware, else float32.

    Measured on the nano transformer: with AMX, bfloat16 is 1.8 times as fast as float32; with AVX512-BF16 alone it is
    0.9 times as fast, emulated 0.4 times. Decided by what the CPU is, never by timing, so that a seed keeps its result.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.bfloat16 if native else torch.float32


def load_backbone(
    ref: str = "nano",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    mode: memory.Mode | Callable[[Backbone], memory.Mode] = memory.WHOLE,
) -> Backbone:
    """Load a backbone, downloading it first if it is on the hub and not yet in its cache.

    ref: a name of `table.MODELS`, a folder, or a hub id; in the diffusers layout, or with the transformer in Wan's own
    layout, as VideoX-Fun publishes it. device: default CUDA, else the CPU.
    dtype: of the transformer, see `default_dtype`; the text encoder takes it on CUDA and is float32 on the CPU.
    mode: how the parts are placed, see `memory.MODES`; or what chooses it for the model, loaded on the CPU.
    Weights are read from safetensors only, never from pickles. Raises `InputError` when `ref` is no such model.
    """
    diffusers, transformers = aside(libraries)  # which takes seconds the first time
    for library in ("diffusers", "transformers"):
        # No bars over weights that are read in an instant; those of downloads stay.
        import_module(f"{library}.utils.logging").disable_progress_bar()

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    text_dtype = dtype if device.type == "cuda" else torch.float32
    root, folders = fetch_parts(ref)

    def load(cls: Any, component: str, **options: Any) -> Any:
        check()
        folder = folders.get(component)
        if folder is None:
            raise InputError(f"The model {ref!r} has no folder {component}.")
        try:
            if component == "transformer" and (files := original_files(folder)):
                model = load_original(ref, files, options["torch_dtype"])
            else:
                model, found = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
                if found["missing_keys"]:  # which the libraries would fill with noise, and only warn
                    raise InputError(
                        f"The weights of the {component} of the model {ref!r} are not complete: "
                        f"{', '.join(sorted(found['missing_keys'])[:3])} ... are missing; fetch them again."
                    )
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"The model {ref!r} has no usable {component}: {error}") from error
        return model.eval().requires_grad_(False)

    # First the one that may turn out to be of another kind: an error should not come after the text encoder's minutes.
    settings, soft = read_settings(root, folders.get("scheduler")), None
    if "transformer" in folders and (file := recammaster_file(folders["transformer"])):
        transformer, layers = load_recammaster(file, dtype)
        soft, settings = Soft(layers.to(device), metres=True), replace(settings, shift=SHIFT)
    else:
        transformer = load(diffusers.WanTransformer3DModel, "transformer", torch_dtype=dtype)
    has_image_encoder = "image_encoder" in folders and transformer.config["image_dim"] is not None
    image_encoder = load(transformers.CLIPVisionModel, "image_encoder", dtype=text_dtype) if has_image_encoder else None
    backbone = Backbone(
        ref,
        settings,
        vae=load(diffusers.AutoencoderKLWan, "vae", torch_dtype=torch.float32),
        transformer=transformer,
        text_encoder=load(transformers.UMT5EncoderModel, "text_encoder", dtype=text_dtype),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folders["tokenizer"]),
        image_encoder=image_encoder,
        image_processor=_load_image_processor(folders["image_processor"]) if has_image_encoder else None,
        soft=soft,
        device=device,
    )
    backbone.place(mode(backbone) if callable(mode) else mode)
    return backbone


def libraries() -> tuple[Any, Any]:
    """diffusers and transformers, with the classes of a backbone imported, which both do where one is first named."""
    import diffusers
    import transformers

    for name in ("AutoencoderKLWan", "WanTransformer3DModel"):
        getattr(diffusers, name)
    for name in ("AutoTokenizer", "CLIPVisionModel", "UMT5EncoderModel"):
        getattr(transformers, name)
    return diffusers, transformers


def skeleton(spec: table.ModelSpec) -> dict[str, Any]:
    """The parts of a backbone on the hub that need memory, by their published configurations, without weights."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    given: Any = spec.configs
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "vae": AutoencoderKLWan(**given["vae"]),
            "transformer": WanTransformer3DModel(**given["transformer"]),
            "text_encoder": UMT5EncoderModel(UMT5Config(**given["text_encoder"])),
        }
        if "image_encoder" in given:
            parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(**given["image_encoder"]))
    return parts


def fetch_parts(ref: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a backbone, and that of each of its components; fetched first where need be."""
    spec = table.find(ref)
    if spec is not None and spec.role != "backbone":
        raise InputError(f"The model {ref!r} is for {spec.role}, not a video model.")
    if spec is not None and not spec.local:
        downloaded = hub.download(spec, [spec.name])  # that terms are accepted is for the caller to see to
        return downloaded[0], _components(spec.parts, downloaded)
    resolved = hub.resolve(ref)
    root = Path(resolved)
    if not root.is_dir():
        patterns = [f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "safetensors", "model")]
        root = hub.fetch_matching(resolved, ["*.json", table.ORIGINAL_FILES, *patterns])
    found = {name: root / name for name in COMPONENTS if (root / name).is_dir()}
    if (root / "model_index.json").is_file():
        _check_index(ref, root)
        return root, found
    if "transformer" not in found:
        if not original_files(root):
            raise InputError(
                f"The model {ref!r} has neither a model_index.json nor a {table.ORIGINAL_FILES} with the names of "
                "Wan's own layout; give a Wan 2.1 image-to-video or inpainting model."
            )
        found["transformer"] = root
    # In that layout the encoders are pickles, which are never read: those of the Wan team's diffusers folders stand in.
    lacking = [part for part in table.WAN_ENCODERS if not set(part.components) <= set(found)]
    fetched = _components(lacking, [hub.fetch(part.repo, part.files, part.revision) for part in lacking])
    return root, fetched | found


def _components(parts: Sequence[table.Part], folders: Sequence[Path]) -> dict[str, Path]:
    """The folder of each component in the parts: the sub-folder of its name, or else the part's."""
    pairs = [(name, folder) for part, folder in zip(parts, folders, strict=True) for name in part.components]
    return {name: folder / name if (folder / name).is_dir() else folder for name, folder in pairs}


def _check_index(ref: str, folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    wanted = {"vae": "AutoencoderKLWan", "transformer": "WanTransformer3DModel", "text_encoder": "UMT5EncoderModel"}
    for component, cls in wanted.items():
        found = (index.get(component) or [None, None])[1]
        if found != cls:
            raise InputError(f"The model {ref!r} is not a Wan image-to-video model: its {component} is {found}.")
    if (index.get("transformer_2") or [None, None])[1] is not None:
        raise InputError(f"The model {ref!r} is a Wan 2.2 model with two transformers: not served. {GIVE}")


def _load_image_processor(folder: Path) -> Any:
    # The plain (PIL) class where there are two: the other one needs torchvision.
    import transformers

    cls = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return cls.from_pretrained(folder)
