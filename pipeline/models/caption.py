"""A picture in a few words, as a suggestion for the prompt: by BLIP or BLIP-2, the captioner of the paper.

The weights have to be on this machine, in a folder or in the hub's cache; nothing is downloaded. They are loaded, used
once, and released.
"""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.media.video import probe, read_video
from pipeline.models import hub, table

LARGE_GPU = 20 * 2**30  # bytes of a GPU's memory from which BLIP-2 is preferred; it takes 8 GB beside the video model
MAX_TOKENS = 40


@dataclass(frozen=True)
class Caption:
    """words: what the picture shows. by: the model, in words."""

    words: str
    by: str


def default_captioner(accepted: Collection[str] = ()) -> str:
    """BLIP-2 where a large GPU is, else BLIP; the other one if only that is on this machine. Of BLIP-2 the terms have
    to be among those `accepted`."""
    large = torch.cuda.is_available() and torch.cuda.mem_get_info()[1] >= LARGE_GPU
    free = [spec for spec in table.of_role("captions") if not spec.terms or spec.name in accepted]
    preferred = [spec.name for spec in sorted(free, key=lambda spec: spec.download_bytes, reverse=large)]
    return next((name for name in preferred if hub.at_hand(name) is not None), preferred[0])


def caption(
    picture: Float[Tensor, "3 H W"],
    model: str | None = None,
    accepted: Collection[str] = (),
    *,
    device: str | torch.device | None = None,
) -> Caption:
    """What a picture in [0, 1] shows, in a few words.

    model: a name of `table.MODELS`, a folder or a hub id of a BLIP or BLIP-2 model; None for `default_captioner`.
    accepted: names of models whose terms the user has accepted. Raises `InputError` if the model's are not among them,
    if it is not on this machine, or if it is another kind of model.
    """
    name = model or default_captioner(accepted)
    table.check_accepted(name, accepted)
    title = table.title_of(name)
    try:
        folder = hub.locate(name)
    except InputError as error:
        raise InputError(f"{error}; or write the prompt yourself.") from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        network, processor, tokenizer = _load(folder, title, device)
        shown = (rearrange(picture, "c H W -> H W c").clamp(0, 1) * 255).round().byte().cpu().numpy()
        pixels = processor(images=shown, return_tensors="pt")["pixel_values"].to(device, network.dtype)
        with torch.no_grad():
            tokens = network.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS, num_beams=3, do_sample=False)
        words = " ".join(tokenizer.decode(tokens[0], skip_special_tokens=True).split())
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"The memory of the device is not enough for {title} at the moment; try again when no render runs, or "
            "write the prompt yourself."
        ) from error
    finally:
        network = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not words:
        raise InputError(f"{title} has no words for this picture; write the prompt yourself.")
    return Caption(words, title)


def middle_frame(path: str | Path) -> Float[Tensor, "3 H W"]:
    """The middle frame of a clip. Raises `InputError` for a file that is no video."""
    return read_video(path, start=probe(path).frames // 2, frames=1).frames[0]


def _load(folder: Path, title: str, device: torch.device) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer. bfloat16 on CUDA, float32 on the CPU."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kinds = {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}
    try:
        kind = transformers.AutoConfig.from_pretrained(folder).model_type
        if kind not in kinds:
            raise InputError(f"The model {title} is of the kind {kind}; a captioning model is a BLIP or a BLIP-2.")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        network = getattr(transformers, kinds[kind]).from_pretrained(folder, dtype=dtype, use_safetensors=True)
        # The plain (PIL) class where there are two: the other one needs torchvision.
        processor = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
        parts = processor.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The captioning model {title} cannot be loaded: {str(error).splitlines()[0]} Download it again."
        ) from error
    return network.eval().requires_grad_(False).to(device), *parts
