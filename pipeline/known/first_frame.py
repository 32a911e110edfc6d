"""The first frame of what is to be rendered, completed by an image model: what the clip knows of it is not touched.

Any inpainting pipeline of diffusers will do. Its weights have to be on this machine, in a folder or in the hub's cache;
nothing is downloaded. It is loaded, used once, and released.
"""

from __future__ import annotations

import gc
import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.media.video import resize, working_size
from pipeline.models import hub, table

DEFAULT_PIXELS = 1024 * 1024  # at which a model works that does not say
HEADROOM = 1.3  # of the memory of the weights, for what is computed with them


def inpaint(
    picture: Float[Tensor, "3 H W"],
    known: Bool[Tensor, "1 H W"],
    prompt: str,
    model: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device | None = None,
) -> Float[Tensor, "3 H W"]:
    """The picture in [0, 1] with what is unknown (False) painted by an image model; known pixels come back exactly.

    model: a name of `table.MODELS`, a folder in the diffusers layout, or a hub id. It works at its own size and at the
    picture's proportions, so that small pictures are enlarged for it. steps: None for the pipeline's own number.
    That the terms of a model that has some are accepted is for the caller to see to (`table.check_accepted`).
    Raises `InputError` if the weights are not on this machine, or are no inpainting model.
    """
    folder = locate(model)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe = load_inpainter(folder, model, device)
    try:
        size = _size_for(pipe, picture.shape[-2], picture.shape[-1])
        filled = fill_unknown(Measurement(picture[None], known[None]))
        # a pixel of the model's size is known if all that it shows is
        wholly = resize(known[None].float(), size) > 0.999
        options: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
        painted = pipe(
            prompt=prompt,
            image=resize(filled, size).clamp(0, 1).cpu(),
            mask_image=(~wholly).float().cpu(),
            height=size[0],
            width=size[1],
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **options,
        ).images
    finally:
        del pipe
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    painted = resize(painted.float().cpu(), (picture.shape[-2], picture.shape[-1]))[0].clamp(0, 1)
    return torch.where(known, picture, painted.to(picture.device))


def locate(model: str) -> Path:
    """The folder of a model's weights on this machine. Raises `InputError` that says how to get them."""
    try:
        return hub.locate(model)
    except InputError as error:
        raise InputError(f"{error}; or leave the first frame to the video model, or give a picture of it.") from error


def load_inpainter(folder: Path, model: str, device: torch.device) -> Any:
    """The pipeline, on the device or, where its memory is too small for all of it, fetched to it part by part."""
    import diffusers

    for library in ("diffusers", "transformers"):
        import_module(f"{library}.utils.logging").disable_progress_bar()
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        # FLUX Fill is none of those that the automatic choice knows
        loader: Any = diffusers.FluxFillPipeline if kind == "FluxFillPipeline" else diffusers.AutoPipelineForInpainting
        pipe = loader.from_pretrained(
            folder,
            torch_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            variant=_variant(folder),
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The image model {table.title_of(model)} cannot be loaded as an inpainting model: "
            f"{str(error).splitlines()[0]} Choose another, or download it again."
        ) from error
    if "mask_image" not in inspect.signature(pipe.__call__).parameters:
        raise InputError(f"The image model {table.title_of(model)} does not inpaint; choose another.")
    pipe.set_progress_bar_config(disable=True)
    if device.type != "cuda":
        return pipe.to(device)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    sizes = [HEADROOM * sum(p.numel() * p.element_size() for p in part.parameters()) for part in parts]
    free = torch.cuda.mem_get_info(device)[0]
    if sum(sizes) < free:
        return pipe.to(device)
    if max(sizes) < free:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def _variant(folder: Path) -> str | None:
    """Which of a repository's weights: the full ones where they are, else those at 16 bits."""
    weights = [file.name for file in folder.glob("*/*.safetensors")]
    full = [name for name in weights if ".fp16." not in name]
    return "fp16" if weights and not full else None


def _size_for(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """(h, w) at which the model was made to work, in these proportions, in whole steps of its network."""
    cell = pipe.vae_scale_factor
    unet = getattr(pipe, "unet", None)
    if unet is None:  # a transformer on patches of 2 x 2 latents
        return working_size(height, width, pixels=DEFAULT_PIXELS, multiple=2 * cell)
    pixels = (unet.config.sample_size * cell) ** 2
    return working_size(height, width, pixels=pixels, multiple=cell * 2 ** (len(unet.config.block_out_channels) - 1))
