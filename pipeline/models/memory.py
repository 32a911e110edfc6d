"""GPU memory: the ways to place a model's parts, how much each of them needs, and which one fits what is free.

Needs are estimated: weights from the numbers of parameters, activations from formulas whose factors were counted on the
real configurations without their weights (the largest sum of live tensors, as tests/test_memory.py counts them again).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import InputError

BYTES = 2  # of a transformer's or an encoder's weight on a GPU: bfloat16
TEXT_TOKENS = 512  # Wan's, and at most what smaller models have
TILE = 256  # pixels: the side of a tile of AutoencoderKLWan
# What the counted tensors do not show: the allocator's gaps, workspaces of convolutions. Not yet measured on a GPU.
MARGIN, WORKSPACE = 1.1, 500_000_000


@dataclass(frozen=True)
class Mode:
    """One way to place a model's parts.

    words: for the user. in_turn: each part is on the device only while it is used, the text encoder layer by layer.
    groups: of the transformer, too, only the block in use and the next one are there. eight_bits: the transformer's
    weights are stored as float8 (e4m3) and computed with in its own precision. tiles: the VAE works in tiles of 256
    pixels, blended where they overlap. automatic: may be chosen for the user.
    """

    name: str
    words: str
    in_turn: bool = True
    groups: bool = False
    eight_bits: bool = False
    tiles: bool = False
    automatic: bool = True


WHOLE = Mode("whole", "everything stays on the device", in_turn=False)
# From the one that needs most to the most frugal one. Eight bits come last: they alone change what the model computes.
_MODES = (
    WHOLE,
    Mode("offload", "each part of the model is on the GPU only while it is used"),
    Mode("tiles", "each part is on the GPU only while it is used, and pictures are encoded in tiles", tiles=True),
    Mode("fp8", "as with tiles, and the transformer in 8 bits", tiles=True, eight_bits=True, automatic=False),
    Mode("groups", "the transformer is fetched block by block, and pictures are encoded in tiles", tiles=True,
         groups=True),
    Mode("fp8-groups", "the transformer in 8 bits is fetched block by block, and pictures are encoded in tiles",
         tiles=True, groups=True, eight_bits=True),
)  # fmt: skip
MODES: dict[str, Mode] = {mode.name: mode for mode in _MODES}
CHOICES = ("auto", *MODES)


@dataclass(frozen=True)
class ModelSize:
    """What a model's need for memory depends on. Weights in bytes as they are on a GPU.

    transformer, block, linear: all of it, the largest of its blocks, and all of its blocks, which 8 bits halve.
    text_leaf, text_work: the largest layer of the text encoder, and its activations in bytes. width, ffn: of the
    transformer. text_tokens: length of what it attends to beside the video. patch: frames and pixels of one token,
    t, h, w. vae_width: channels of the VAE at full size; vae_patch: side in pixels of what it takes as one. latents:
    bytes a token of all that a render keeps in the latent space. window: frames that the transformer sees at once,
    None for all of a clip. parts: videos that the transformer is shown one behind the other.
    """

    transformer: int
    block: int
    linear: int
    text: int
    text_leaf: int
    text_work: int
    image: int
    vae: int
    width: int
    ffn: int
    text_tokens: int
    patch: tuple[int, int, int]
    vae_width: int
    vae_patch: int
    latents: int
    window: int | None = None
    parts: int = 1


def model_size(
    *, vae: Any, transformer: Any, text_encoder: Any, image_encoder: Any = None, window: int | None = None
) -> ModelSize:
    """The size of a model from its parts, which may be on the meta device. window: see `ModelSize`."""
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    config, vae_config, text = transformer.config, vae.config, text_encoder.config
    blocks = list(transformer.blocks)
    t, h, w = config["patch_size"]
    spatial = vae_config["scale_factor_spatial"]
    image_tokens = 0 if config["image_dim"] is None else 257
    return ModelSize(
        transformer=BYTES * count(transformer),
        block=BYTES * max(map(count, blocks)),
        linear=BYTES * sum(map(count, blocks)),
        text=BYTES * count(text_encoder),
        text_leaf=BYTES * max(parameter.numel() for parameter in text_encoder.parameters()),
        # scores of all heads in float32, four times, and the feed-forward layer
        text_work=4 * (4 * text.num_heads * TEXT_TOKENS**2 + 6 * TEXT_TOKENS * max(text.d_ff, text.d_model)),
        image=BYTES * count(image_encoder) if image_encoder is not None else 0,
        vae=4 * count(vae),
        width=config["num_attention_heads"] * config["attention_head_dim"],
        ffn=config["ffn_dim"],
        text_tokens=TEXT_TOKENS + image_tokens,
        patch=(t * vae_config["scale_factor_temporal"], h * spatial, w * spatial),
        vae_width=max(vae_config["base_dim"], vae_config.get("decoder_base_dim") or 0),
        vae_patch=vae_config.get("patch_size") or 1,
        # float32, in numbers of input channels: 6.5 were counted with dds, 8.7 with dds_cg
        latents=4 * 9 * config["in_channels"] * t * h * w,
        window=window,
    )


def lent() -> bool:
    """Whether the GPU is lent for one call at a time (ZeroGPU): what is loaded stays whole, placed once for all."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def _tokens(size: ModelSize, frames: int, height: int, width: int) -> int:
    t, h, w = size.patch
    return (math.ceil((frames - 1) / t) + 1) * math.ceil(height / h) * math.ceil(width / w)


def sampling_bytes(size: ModelSize, frames: int, height: int, width: int, *, cache: bool = False) -> int:
    """Activations of one pass through the transformer, over one window of a long clip. cache: those that a first-block
    cache keeps, too, of all windows."""
    tokens = size.parts * _tokens(size, min(frames, size.window or frames), height, width) + size.text_tokens
    # the larger of a block's two halves: attention with its queries turned in float32, or the feed-forward layer
    each = max(23 * size.width, 9 * size.width + 4 * size.ffn) + 1024
    # the windows of a long clip overlap by a quarter or more, and are all remembered
    all_windows = tokens if frames <= (size.window or frames) else 2 * size.parts * _tokens(size, frames, height, width)
    kept = 2 * 3 * BYTES * size.width if cache else 0
    return tokens * each + all_windows * kept


def vae_bytes(size: ModelSize, frames: int, height: int, width: int, *, tiles: bool) -> int:
    """Activations of decoding, which takes more than encoding: float32, four frames at a time, and the whole video."""
    video = 4 * 3 * frames * height * width
    area = min(height, TILE * size.vae_patch) * min(width, TILE * size.vae_patch) if tiles else height * width
    work = 4 * 52 * size.vae_width * area // size.vae_patch**2
    # tiles overlap by a quarter each way, and all are kept until they are put together
    return max(work + 2 * video, 5 * video) if tiles else work + 2 * video


def needs(size: ModelSize, frames: int, height: int, width: int, mode: Mode, *, cache: bool = False) -> dict[str, int]:
    """Bytes that each stage of a render needs on the GPU at its peak, with margins. Their maximum is what is needed."""
    transformer = size.transformer - (size.linear // 2 if mode.eight_bits else 0)
    block = size.block // 2 if mode.eight_bits else size.block
    linear = size.linear // 2 if mode.eight_bits else size.linear
    if mode.groups:
        # the block in use and the next one, and what belongs to no block
        transformer = min(transformer, transformer - linear + 2 * block)
    # a block's weights are widened one layer after the other
    widened = size.block // 2 if mode.eight_bits else 0
    latents = _tokens(size, frames, height, width) * size.latents
    work = {
        "text": size.text_work,
        "vae": vae_bytes(size, frames, height, width, tiles=mode.tiles) + latents,
        "sampling": sampling_bytes(size, frames, height, width, cache=cache) + latents + widened,
    }
    if mode.in_turn:
        weights = {"text": max(size.text_leaf, size.image), "vae": size.vae, "sampling": transformer}
    else:
        weights = dict.fromkeys(work, size.text + size.image + size.vae + transformer)
    return {stage: round(MARGIN * (weights[stage] + work[stage])) + WORKSPACE for stage in work}


def need(size: ModelSize, frames: int, height: int, width: int, mode: Mode, *, cache: bool = False) -> int:
    """Bytes of GPU memory that a render needs in a mode."""
    return max(needs(size, frames, height, width, mode, cache=cache).values())


@dataclass(frozen=True)
class Plan:
    """A chosen mode. need: bytes; None on the CPU. free: bytes that the GPU has free; None there, or if it is lent."""

    mode: Mode
    need: int | None = None
    free: int | None = None

    @property
    def words(self) -> str:
        """What will happen, for the user."""
        if self.need is None:
            return "No GPU: everything is computed on the processor, in main memory."
        if self.free is None:
            return f"About {_gb(self.need)} of the GPU that is lent are needed: {self.mode.words}."
        short = "" if self.need <= self.free else ", which may not be enough"
        return f"About {_gb(self.need)} of the {_gb(self.free)} free on the GPU are needed{short}: {self.mode.words}."


def check_wanted(wanted: str, *, cpu: bool | None = None) -> None:
    """Raises `InputError` for a mode that cannot be had, whatever the model. cpu: None for what the machine has."""
    if wanted not in CHOICES:
        raise InputError(f"memory must be one of {', '.join(CHOICES)}; it is {wanted!r}.")
    if wanted in ("auto", WHOLE.name):
        return
    if lent():
        raise InputError("On a GPU that is lent (ZeroGPU) the model stays whole; leave memory at auto.")
    if not torch.cuda.is_available() if cpu is None else cpu:
        raise InputError(f"The memory mode {wanted} is for a CUDA GPU, and this machine has none; leave it at auto.")


def choose(
    size: ModelSize,
    frames: int,
    height: int,
    width: int,
    *,
    free: int | None,
    wanted: str = "auto",
    cache: bool = False,
) -> Plan:
    """The least frugal mode that fits into `free` bytes of GPU memory (None: on the CPU, where nothing is moved).

    wanted: a name of `MODES` instead, which is taken as it is. Raises `InputError` where nothing fits, saying how much
    is missing and what would fit.
    """
    check_wanted(wanted, cpu=free is None)
    if lent():
        return Plan(WHOLE, need(size, frames, height, width, WHOLE, cache=cache))
    if free is None:
        return Plan(WHOLE)
    if wanted != "auto":
        mode = MODES[wanted]
        return Plan(mode, need(size, frames, height, width, mode, cache=cache), free)
    for mode in (mode for mode in _MODES if mode.automatic):
        needed = need(size, frames, height, width, mode, cache=cache)
        if needed <= free:
            return Plan(mode, needed, free)
    frugal = _MODES[-1]
    needed = need(size, frames, height, width, frugal, cache=cache)
    raise InputError(
        f"{frames} frames of {height}x{width} need about {_gb(needed)} of GPU memory in the most frugal way; "
        f"{_gb(free)} are free, {_gb(needed - free)} are missing. "
        + _remedy(size, frames, height, width, free, frugal, cache)
    )


def _remedy(size: ModelSize, frames: int, height: int, width: int, free: int, mode: Mode, cache: bool) -> str:
    fits = lambda frames, height, width: need(size, frames, height, width, mode, cache=cache) <= free
    step, h, w = size.patch
    fewer = next((n for n in range(frames - 1, 0, -1) if n % step == 1 % step and fits(n, height, width)), None)
    smaller = next(
        (
            (round(height * part / h) * h, round(width * part / w) * w)
            for part in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
            if fits(frames, round(height * part / h) * h, round(width * part / w) * w)
        ),
        None,
    )
    ways = [f"at most {fewer} frames"] if fewer else []
    if smaller and min(smaller) > 0:
        ways.append(f"the size {smaller[0]}x{smaller[1]}")
    if not ways:
        return "Close other programs that use the GPU, or choose a smaller model."
    return f"Choose {' or '.join(ways)}, or close other programs that use the GPU."


def free_memory(device: torch.device | str) -> int | None:
    """Bytes of GPU memory that a model can have: what is free, and what this process holds already. None on the CPU,
    and where the GPU is lent: there it is nobody's between two calls.

    What this process holds counts as free, since a model that is loaded is replaced by the next one; so drop other
    models first.
    """
    device = torch.device(device)
    if device.type != "cuda" or lent():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def place(parts: dict[str, Any], mode: Mode, device: torch.device) -> None:
    """Bring a model's parts, loaded on the CPU, to where the mode wants them. Once: eight bits cannot be taken back.

    parts: vae, transformer, text_encoder and perhaps image_encoder. In the modes that take turns, those without groups
    stay on the CPU, to be moved by who uses them.
    """
    transformer, text_encoder = parts["transformer"], parts["text_encoder"]
    if mode.eight_bits:
        dtype = transformer.patch_embedding.weight.dtype
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if mode.tiles:
        parts["vae"].enable_tiling()
    if not mode.in_turn:
        for part in parts.values():
            part.to(device)
        return
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(text_encoder, onload_device=device, offload_type="leaf_level")
    if mode.groups:
        streams = device.type == "cuda"  # the next block is fetched while one computes
        transformer.enable_group_offload(
            onload_device=device,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=streams,
            record_stream=streams,
        )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
