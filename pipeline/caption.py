"""A picture in a few words, as a suggestion for the prompt: by BLIP or BLIP-2, the captioner of the paper.

The weights have to be on this machine, in a folder or in the hub's cache; nothing is downloaded. They are loaded, used
once, and released.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.video import probe, read_video

LARGE_GPU = 20 * 2**30  # bytes of a GPU's memory from which BLIP-2 is preferred; it takes 8 GB beside the video model
MAX_TOKENS = 40


@dataclass(frozen=True)
class Captioner:
    """One captioning model. title, licence: for the user. download_bytes: about. fetch: arguments of `hf download`."""

    ref: str
    title: str
    licence: str
    download_bytes: int
    fetch: str


CAPTIONERS: dict[str, Captioner] = {
    # The large one: of the base one only other branches than the main one hold safetensors.
    "blip": Captioner(
        ref="Salesforce/blip-image-captioning-large",
        title="BLIP",
        licence="BSD-3-Clause",
        download_bytes=1_880_000_000,
        fetch='Salesforce/blip-image-captioning-large --exclude "*.bin" "*.h5"',
    ),
    "blip-2": Captioner(
        ref="Salesforce/blip2-opt-2.7b",
        title="BLIP-2",
        licence="MIT; its language model, OPT, comes under Meta's OPT licence, for research",
        download_bytes=15_500_000_000,
        fetch='Salesforce/blip2-opt-2.7b --exclude "*.bin"',
    ),
}


@dataclass(frozen=True)
class Caption:
    """words: what the picture shows. by: the model, in words."""

    words: str
    by: str


def default_captioner() -> str:
    """BLIP-2 where a large GPU is, else BLIP; the other one if only that is on this machine."""
    large = torch.cuda.is_available() and torch.cuda.mem_get_info()[1] >= LARGE_GPU
    preferred = ("blip-2", "blip") if large else ("blip", "blip-2")
    return next((name for name in preferred if _find(CAPTIONERS[name].ref) is not None), preferred[0])


def caption(
    picture: Float[Tensor, "3 H W"], model: str | None = None, *, device: str | torch.device | None = None
) -> Caption:
    """What a picture in [0, 1] shows, in a few words.

    model: a name of `CAPTIONERS`, a folder or a hub id of a BLIP or BLIP-2 model; None for `default_captioner`.
    Raises `InputError` if it is not on this machine or is another kind of model.
    """
    name = model or default_captioner()
    spec = CAPTIONERS.get(name)
    title = spec.title if spec else Path(name).name if Path(name).is_dir() else name
    folder = _find(spec.ref if spec else name)
    if folder is None:
        size = f" ({spec.download_bytes / 1e9:.1f} GB, {spec.licence})" if spec else ""
        raise InputError(
            f"The captioning model {title} is not on this machine. Get it with `hf download "
            f"{spec.fetch if spec else name}`{size}, or write the prompt yourself."
        )
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


def _find(ref: str) -> Path | None:
    """The folder of a model on this machine, if it is there with its weights as safetensors."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(ref) if Path(ref).is_dir() else Path(snapshot_download(ref, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


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
