"""DepthCrafter (arXiv 2409.02095): disparity of a whole video by diffusion, on the classes of Stable Video Diffusion.

What the model was trained and published with is taken from its authors' code (github.com/Tencent/DepthCrafter:
`depth_crafter_ppl.py`, `run.py`, `utils.py`): every frame has its own image embedding; the latents of the frames are
not scaled, those of the result are; noise of strength 0.02 on the frames before they are encoded, the added time ids
(7, 127, 0.02); windows of 110 frames that share 25, of which each begins with what the last one found; the mean of the
three decoded channels, brought to [0, 1] over the whole video. No classifier-free guidance, 5 steps.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError, relayed
from pipeline.media.video import resize
from pipeline.models import hub, table

WINDOW, OVERLAP = 110, 25  # frames that are denoised together, and how many of them the next window shares
STEPS = 5
LONGEST, MULTIPLE = 1024, 64  # of the sides in pixels
_SEED = 42  # depth is to come out alike each time
_NOISE = 0.02
_TIME_IDS = (7, 127, _NOISE)  # frames a second, motion bucket, noise on the frames
_CHUNK = 8  # frames that are encoded or decoded at once
_CLIP_SIDE = 224

Progress = tuple[str, float]  # what is being done, in plain words; how much of all is done, in [0, 1]


class DepthCrafter:
    """The parts of the model. Each is on the device only while it works, so that the largest alone must fit there."""

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        image_encoder: Any,
        scheduler: Any,
        image_mean: list[float],
        image_std: list[float],
        device: torch.device | str = "cpu",
    ):
        self.unet, self.vae, self.image_encoder, self.scheduler = unet, vae, image_encoder, scheduler
        self.device = torch.device(device)
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (image_mean, image_std))
        self._free = threading.Lock()  # hooks, devices and the scheduler are one run's own

    @torch.no_grad()
    def disparity(self, frames: Float[Tensor, "T 3 H W"]) -> Generator[Progress, None, Float[Tensor, "T h w"]]:
        """Progress; returns disparity in [0, 1] over the clip, up to an affine map, at `network_size`, on the CPU.

        frames: in [0, 1], any number, size and device. Raises `InputError` if the device's memory does not do.
        """
        while not self._free.acquire(timeout=1.0):
            yield "Waiting for the depth of another clip", 0.0
        try:
            return (yield from self._disparity(frames))
        except torch.OutOfMemoryError as error:
            height, width = network_size(*frames.shape[-2:])
            raise InputError(
                f"The GPU has not the memory for DepthCrafter on {min(len(frames), WINDOW)} frames of "
                f"{width}x{height}; take fewer frames or a smaller clip, or the depth model depth-anything-v2-small."
            ) from error
        finally:
            self._free.release()

    def _disparity(self, frames: Tensor) -> Generator[Progress, None, Tensor]:
        size, count = network_size(*frames.shape[-2:]), len(frames)
        chunks = [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        random = torch.Generator().manual_seed(_SEED)  # on the CPU: the same noise on any device

        def pictures(chunk: slice) -> Tensor:
            """At the network's size, in [-1, 1]."""
            return 2 * resize(frames[chunk].float().to(self.device), size) - 1

        embeddings, latents = [], []
        with self._at_work(self.image_encoder) as encoder:
            for chunk in chunks:
                seen = clip_size(pictures(chunk)) / 2 + 0.5
                seen = (seen - self._mean.to(seen)) / self._std.to(seen)
                embeddings.append(encoder(seen.to(encoder.dtype)).image_embeds)
                yield f"Estimating depth: looking at frame {chunk.stop} of {count}", 0.05 * chunk.stop / count
        with self._at_work(self.vae, torch.float32) as vae:  # too large numbers for 16 bits (its `force_upcast`)
            for chunk in chunks:
                video = pictures(chunk)
                video = video + _NOISE * torch.randn(video.shape, generator=random).to(video)
                latents.append(vae.encode(video).latent_dist.mode())
                yield f"Estimating depth: encoding frame {chunk.stop} of {count}", 0.05 + 0.1 * chunk.stop / count
        embedding, known = torch.cat(embeddings), torch.cat(latents)

        noise = torch.randn(min(count, WINDOW), *known.shape[1:], generator=random).to(self.device)
        with self._at_work(self.unet):
            denoise = lambda span, before: self._denoise(span, before, known, embedding, noise)
            say = lambda told: (f"Estimating depth: {told[0]}", 0.15 + 0.75 * told[1])
            z = yield from relayed(in_windows(count, denoise), say)

        found = []
        with self._at_work(self.vae) as vae:
            for chunk in chunks:
                part = (z[chunk] / vae.config.scaling_factor).to(vae.dtype)
                decoded = vae.decode(part, num_frames=len(part)).sample.float()
                found.append((decoded / 2 + 0.5).clamp(0, 1).mean(1).cpu())
                yield f"Estimating depth: decoding frame {chunk.stop} of {count}", 0.9 + 0.1 * chunk.stop / count
        disparity = torch.cat(found)
        low, high = disparity.aminmax()
        return (disparity - low) / (high - low) if high > low else torch.zeros_like(disparity)

    def _denoise(
        self, span: range, before: Tensor | None, known: Tensor, embedding: Tensor, noise: Tensor
    ) -> Generator[Progress, None, Tensor]:
        """The latents of the frames in `span`. before: of its first frames, as the window before found them."""
        scheduler, dtype, picked = self.scheduler, self.unet.dtype, slice(span.start, span.stop)
        scheduler.set_timesteps(STEPS, device=self.device)
        own = noise[[frame % len(noise) for frame in span]]  # a frame has the same noise in both of its windows
        z = own * scheduler.init_noise_sigma
        if before is not None:
            z[: len(before)] = before + own[: len(before)] * scheduler.sigmas[0]
        for step, t in enumerate(scheduler.timesteps):
            x = torch.cat([scheduler.scale_model_input(z, t), known[picked]], 1)
            v = predict(self.unet, x.to(dtype), t, embedding[picked].to(dtype))
            z = scheduler.step(v.float(), t, z).prev_sample
            yield f"step {step + 1} of {STEPS}", (step + 1) / STEPS
        return z

    @contextmanager
    def _at_work(self, model: Any, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """The model on the device, in the precision of the UNet or another one."""
        model.to(device=self.device, dtype=dtype or self.unet.dtype)
        try:
            yield model
        finally:
            model.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def predict(
    unet: Any, x: Float[Tensor, "T 8 h w"], t: Tensor, embedding: Float[Tensor, "T D"]
) -> Float[Tensor, "T 4 h w"]:
    """What the UNet says of noisy latents beside those of the frames, of which each attends to its own embedding.

    Stable Video Diffusion has one embedding for the whole clip, and repeats it for the frames; DepthCrafter's UNet is
    the same but for that, so the blocks are given another context than the one that the class makes.
    """
    context = embedding[:, None]

    def use(_: Any, args: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, options | ({"encoder_hidden_states": context} if "encoder_hidden_states" in options else {})

    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    hooks = [block.register_forward_pre_hook(use, with_kwargs=True) for block in blocks]
    ids = torch.tensor([_TIME_IDS], device=x.device, dtype=x.dtype)
    try:
        return unet(x[None], t, encoder_hidden_states=context[:1], added_time_ids=ids, return_dict=False)[0][0]
    finally:
        for hook in hooks:
            hook.remove()


def windows(frames: int, window: int = WINDOW, overlap: int = OVERLAP) -> list[range]:
    """Frames that are denoised together: all, or windows of which each shares `overlap` frames with the one before."""
    if frames <= window:
        return [range(frames)]
    return [range(start, min(start + window, frames)) for start in range(0, frames - overlap, window - overlap)]


def in_windows(
    frames: int,
    denoise: Callable[[range, Tensor | None], Generator[Progress, None, Tensor]],
    window: int = WINDOW,
    overlap: int = OVERLAP,
) -> Generator[Progress, None, Float[Tensor, "T c h w"]]:
    """Progress; returns the latents of any number of frames. Shared frames fade from one window's to the next one's.

    denoise(span, before): progress, returning the latents of the frames in span; before: those of its first `overlap`
    frames as found so far, None in the first window.
    """
    spans, whole = windows(frames, window, overlap), None
    for number, span in enumerate(spans):
        before = None if whole is None else whole[-overlap:]
        part = "" if len(spans) == 1 else f"part {number + 1} of {len(spans)}, "
        say = lambda told, part=part, number=number: (part + told[0], (number + told[1]) / len(spans))
        found = yield from relayed(denoise(span, before), say)
        if whole is None or before is None:
            whole = found
            continue
        fade = torch.linspace(0, 1, overlap, device=found.device)[:, None, None, None]
        shared = torch.lerp(before, found[:overlap], fade)
        whole = torch.cat([whole[:-overlap], shared, found[overlap:]])
    assert whole is not None
    return whole


def network_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) at which the model looks at pictures: multiples of 64 near their own, or near 1024 on the longer
    side where that is beyond."""
    scale = min(1.0, LONGEST / max(height, width))
    h, w = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return h, w


def clip_size(pictures: Float[Tensor, "T 3 h w"]) -> Float[Tensor, "T 3 224 224"]:
    """As Stable Video Diffusion shrinks what it shows to CLIP: a Gaussian of half the excess scale, cut at about two
    standard deviations, then bicubic with the corner pixels in the corners."""
    for axis in (-2, -1):
        sigma = max((pictures.shape[axis] / _CLIP_SIDE - 1) / 2, 0.001)
        reach = int(max(4 * sigma, 3)) // 2
        x = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
        kernel = torch.exp(-(x**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).reshape((1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1))
        pad = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
        flat = rearrange(F.pad(pictures, pad, mode="reflect"), "t c h w -> (t c) 1 h w")
        pictures = rearrange(F.conv2d(flat, kernel), "(t c) 1 h w -> t c h w", c=3)
    return F.interpolate(pictures, (_CLIP_SIDE, _CLIP_SIDE), mode="bicubic", align_corners=True)


def load_depthcrafter(folder: Path | None = None, device: torch.device | str = "cpu") -> DepthCrafter:
    """The model of the hub, or of a folder with its parts (unet, vae, image_encoder, scheduler, feature_extractor).

    In float16 on CUDA, as published, else in float32. Weights are read from safetensors only. Raises `InputError`.
    """
    from diffusers import (
        AutoencoderKLTemporalDecoder,  # pyright: ignore[reportPrivateImportUsage]
        EulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
        UNetSpatioTemporalConditionModel,  # pyright: ignore[reportPrivateImportUsage]
    )
    from transformers import CLIPVisionModelWithProjection

    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    if folder is None:
        spec = table.MODELS["depthcrafter"]
        unet, base = hub.download(spec, [spec.name])  # that the terms are accepted is for the caller to see to
    else:
        unet, base = folder / "unet", folder

    def load(cls: Any, path: Path, **precision: Any) -> Any:
        half = any(path.glob("*.fp16.safetensors"))
        model = cls.from_pretrained(path, use_safetensors=True, variant="fp16" if half else None, **precision)
        return model.eval().requires_grad_(False)

    try:
        preprocessor = json.loads((base / "feature_extractor" / "preprocessor_config.json").read_text(encoding="utf-8"))
        return DepthCrafter(
            unet=load(UNetSpatioTemporalConditionModel, unet, torch_dtype=dtype),
            vae=load(AutoencoderKLTemporalDecoder, base / "vae", torch_dtype=dtype),
            image_encoder=load(CLIPVisionModelWithProjection, base / "image_encoder", dtype=dtype),
            scheduler=EulerDiscreteScheduler.from_pretrained(base / "scheduler"),
            image_mean=preprocessor["image_mean"],
            image_std=preprocessor["image_std"],
            device=device,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"DepthCrafter cannot be read from {folder or 'the hub'}: {str(error).splitlines()[0]}"
        ) from error
