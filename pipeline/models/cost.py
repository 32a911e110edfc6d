"""How much computing a render takes, from a model's configuration, and how fast a device computes.

The work of the VAE is counted by running its own class on PyTorch's meta device, where shapes are all there is: neither
weights nor memory are needed. A time made of it is an estimate, and whoever shows it should say so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pipeline import InputError
from pipeline.models import hub, table

IMAGE_TOKENS = 257  # of CLIP ViT-H/14 at 224x224
CONVOLUTIONS = 0.7  # their pace over that of matrix products on a processor (128 channels, float32, an EPYC)


@dataclass(frozen=True)
class Work:
    """Floating-point operations (a multiplication and an addition are two) of the parts of a render.

    encode, decode: one pass of the VAE over the clip. velocity: one pass of the transformer, without guidance.
    """

    encode: float
    velocity: float
    decode: float


@dataclass(frozen=True)
class Pace:
    """Operations a second that a device reaches: in the transformer's precision, and in the VAE's (float32)."""

    transformer: float
    vae: float


def work_of(ref: str, frames: int, size: tuple[int, int]) -> Work | None:
    """The work for a clip of frames (4n + 1) at size = (h, w); None where the model's configuration is not at hand.

    ref: as for `hub.resolve`. Nothing is downloaded.
    """
    configs = configs_of(ref)
    if configs is None:
        return None
    return count(*configs, frames, size)


def count(
    transformer: dict[str, Any],
    vae: dict[str, Any],
    text_tokens: int,
    frames: int,
    size: tuple[int, int],
    parts: int = 1,
) -> Work:
    """As `work_of`, from the configurations of a WanTransformer3DModel and an AutoencoderKLWan.

    parts: videos that the transformer is shown one behind the other.
    """
    groups, area = (frames - 1) // 4, size[0] * size[1]
    cells = (groups + 1) * area // vae.get("scale_factor_spatial", 8) ** 2
    # linear in the groups of four frames, and in the area but for the attention in the VAE's middle, which is little
    config = json.dumps({name: value for name, value in vae.items() if not name.startswith("_")})
    (encode, decode), (more_encode, more_decode) = (_count_vae(config, 4 * n + 1) for n in (1, 2))
    return Work(
        encode=area * (encode + (groups - 1) * (more_encode - encode)),
        velocity=transformer_flops(transformer, parts * cells, text_tokens),
        decode=area * (decode + (groups - 1) * (more_decode - decode)),
    )


def transformer_flops(config: dict[str, Any], cells: int, text_tokens: int) -> float:
    """Operations of one pass of a WanTransformer3DModel of that configuration over t x h x w latent cells."""
    width = config["num_attention_heads"] * config.get("attention_head_dim", 128)
    patch = math.prod(config.get("patch_size", (1, 2, 2)))
    n = cells // patch
    images = IMAGE_TOKENS if config.get("image_dim") is not None else 0
    context = text_tokens + images
    products = n * (6 * width**2 + 2 * width * config["ffn_dim"]) + 2 * context * width**2
    attention = 2 * n * (n + context) * width
    ends = n * patch * width * (config["in_channels"] + config.get("out_channels", 16))
    ends += text_tokens * (config.get("text_dim", 4096) * width + width**2)
    return 2.0 * (config["num_layers"] * (products + attention) + ends)


def seconds_of(work: Work, pace: Pace, *, steps: int, passes: int = 2, encodes: int = 4) -> float:
    """Time that the work of a render takes at a pace. passes: of the transformer in a step, 2 with guidance."""
    return steps * passes * work.velocity / pace.transformer + (encodes * work.encode + work.decode) / pace.vae


def measure_pace(device: torch.device | str, dtype: torch.dtype, *, seconds: float = 0.5) -> Pace:
    """The pace of matrix products in dtype and of convolutions in float32 on a device, measured for that long each.

    On a processor the pace of convolutions is taken from that of matrix products in float32: measured itself, it is
    half or whole with how memory lies, which differs from process to process.
    """
    device = torch.device(device)
    if device.type == "cuda":
        x, kernel = torch.randn(1, 96, 4, 128, 128, device=device), torch.randn(96, 96, 3, 3, 3, device=device)
        convolution = lambda: torch.nn.functional.conv3d(x, kernel)
        vae = _rate(convolution, 2 * kernel.numel() * 2 * 126**2, device, seconds)
        return Pace(_rate(*_product(4096, device, dtype), device, seconds), vae)
    single = _rate(*_product(512, device, torch.float32), device, seconds)
    own = single if dtype == torch.float32 else _rate(*_product(512, device, dtype), device, seconds)
    return Pace(own, CONVOLUTIONS * single)


def _product(side: int, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A matrix product, and its operations."""
    a = torch.randn(side, side, device=device).to(dtype)
    to = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=to), 2 * side**3


def _rate(work: Callable[[], Any], operations: float, device: torch.device, seconds: float) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()  # warms up
    wait()
    begun, least = time.perf_counter(), math.inf
    while (now := time.perf_counter()) - begun < seconds:
        work()
        wait()
        least = min(least, time.perf_counter() - now)
    return operations / least  # at its best: what else runs just now may not run then


def configs_of(ref: str) -> tuple[dict[str, Any], dict[str, Any], int] | None:
    """Configurations of transformer and VAE, and the number of text tokens."""
    spec = table.find(ref)
    if spec is not None and spec.configs:
        return dict(spec.configs["transformer"]), dict(spec.configs["vae"]), 512
    try:
        folder = Path(hub.resolve(ref))
        read = lambda name: json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        settings = folder / "recapture.json"
        given = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        return read("transformer"), read("vae"), given.get("text_tokens", 512)
    except (InputError, OSError, ValueError):
        return None


@lru_cache(maxsize=16)
@torch.no_grad()
def _count_vae(config: str, frames: int) -> tuple[float, float]:
    """Operations a pixel of a frame's area to encode and to decode so many frames, at 64x64."""
    from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vae: Any = AutoencoderKLWan.from_config(json.loads(config))
        vae.eval()
        with FlopCounterMode(display=False) as encode:
            z = vae.encode(torch.zeros(1, 3, frames, 64, 64)).latent_dist.mode()
        with FlopCounterMode(display=False) as decode:
            vae.decode(z)
    return encode.get_total_flops() / 64**2, decode.get_total_flops() / 64**2
