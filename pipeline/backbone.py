"""The video diffusion model. The only room that knows Wan: its VAE, transformer, text and image encoders.

One code path for the small models that come with the program and for the real ones: whatever a folder in the
diffusers layout says. Ranges, normalisation, packing and time scale are converted here and nowhere else.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError, memory, models
from pipeline.measurement import Measurement, fill_unknown

TRAIN_TIMESTEPS = 1000  # the transformer's time is sigma * 1000
IMAGE_BRANCH_TEXT_TOKENS = 512  # with an image branch, all tokens before the last 512 are taken for the image's
KEPT_EMBEDDINGS = 16
FAST = ("off", "cache", "lora")
# The share by which a step's first block may differ from the last computed step's for the rest to be taken from there.
CACHE_THRESHOLD = 0.1
COMPONENTS = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")


@dataclass(frozen=True)
class FewSteps:
    """A distilled LoRA with which a model needs few steps and no classifier-free guidance.

    repository, file: on the Hugging Face hub. width, layers: of the transformer that it fits.
    """

    repository: str
    file: str
    width: int
    layers: int
    steps: int
    guidance_scale: float


# CausVid (arXiv 2412.07772), taken out as a LoRA by Kijai, who advises 4 steps or more without guidance.
FEW_STEPS = FewSteps(
    "Kijai/WanVideo_comfy", "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", 1536, 30, 8, 1.0
)


@dataclass
class Passes:
    """How many passes through the transformer were asked for; with a cache, how many went through all blocks."""

    asked: int = 0
    whole: int = 0


@dataclass(frozen=True, eq=False)
class LatentRgb:
    """A linear map from normalised latents to RGB in [0, 1]: rgb = latent @ weight + bias."""

    weight: Float[Tensor, "C 3"]
    bias: Float[Tensor, " 3"]


@dataclass(frozen=True, eq=False)
class Settings:
    """What recapture.json says of a backbone; the defaults are those of Wan 2.1 at 480x832.

    frames, pixels: default clip length and H*W. text_tokens: length of the embedded prompt. strength: noise level to
    start from. shift: of the noise levels, see `sampler.flow_sigmas`. depth: folder of the depth model that goes with
    the backbone. fill_condition: the inpainting channels were trained on unknown pixels filled smoothly from the known
    ones, not grey as Wan's were.
    """

    frames: int = 81
    pixels: int = 480 * 832
    steps: int = 50
    guidance_scale: float = 5.0
    strength: float = 1.0
    shift: float = 3.0
    text_tokens: int = 512
    latent_rgb: LatentRgb | None = None
    depth: str | None = None
    fill_condition: bool = False


class Backbone:
    """A frozen image-to-video flow model. All tensors live on `device`; results are float32, without gradients.

    Shapes: video "T 3 H W" in [0, 1] with T = 4n + 1 and H, W multiples of `multiple`; latents "C t h w", normalised
    with the VAE's mean and standard deviation, t = (T - 1)/4 + 1, h = H/8, w = W/8. Not safe for use by two threads at
    once: the VAE keeps state while it runs.

    The VAE is always float32, since its errors are seen directly; `dtype` is the transformer's. Where the parts stand
    is the business of `place`. passes: of the present or last `fast`.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        vae: Any,  # AutoencoderKLWan
        transformer: Any,  # WanTransformer3DModel
        text_encoder: Any,  # UMT5EncoderModel
        tokenizer: Any,
        image_encoder: Any = None,  # CLIPVisionModel
        image_processor: Any = None,
        device: torch.device | None = None,  # where tensors live, and parts while they are used; None: where the VAE is
    ) -> None:
        self.name, self.settings = name, settings
        self.vae, self.transformer, self.text_encoder = vae, transformer, text_encoder
        self.tokenizer, self.image_encoder, self.image_processor = tokenizer, image_encoder, image_processor
        self.device = device or vae.device
        self.mode, self.attention = memory.WHOLE, "native"
        self.passes = Passes()
        self._present: str | None = None
        self._texts: dict[str, Tensor] = {}
        self._images: dict[bytes, Tensor] = {}
        self.dtype = transformer.patch_embedding.weight.dtype

        self.latent_channels: int = vae.config["z_dim"]
        self.temporal: int = vae.config["scale_factor_temporal"]
        self.spatial: int = vae.config["scale_factor_spatial"]
        self.multiple: int = self.spatial * transformer.config["patch_size"][-1]
        self.frames, self.pixels, self.steps = settings.frames, settings.pixels, settings.steps
        self.guidance_scale, self.shift, self.depth = settings.guidance_scale, settings.shift, settings.depth
        self.has_image_branch: bool = transformer.config["image_dim"] is not None

        wanted = 2 * self.latent_channels + self.temporal
        if transformer.config["in_channels"] != wanted:
            raise InputError(
                f"The model {name!r} takes {transformer.config['in_channels']} input channels; an image-to-video "
                f"(inpainting) model with {self.latent_channels} latent channels takes {wanted}."
            )
        if self.has_image_branch and settings.text_tokens != IMAGE_BRANCH_TEXT_TOKENS:
            raise InputError(
                f"The model {name!r} has an image branch and so needs {IMAGE_BRANCH_TEXT_TOKENS} text tokens; its "
                f"recapture.json says {settings.text_tokens}."
            )
        channelwise = lambda values: torch.tensor(values, device=self.device).view(-1, 1, 1, 1)
        self._mean = channelwise(vae.config["latents_mean"])
        self._scale = 1 / channelwise(vae.config["latents_std"])

    @cached_property
    def size(self) -> memory.ModelSize:
        """What the need for memory depends on."""
        return memory.model_size(**self._parts)

    @property
    def _parts(self) -> dict[str, Any]:
        names = ("vae", "transformer", "text_encoder", "image_encoder")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def plan(self, frames: int, height: int, width: int, *, wanted: str = "auto", fast: str = "off") -> memory.Plan:
        """How a clip would be rendered in the memory that is there now, see `memory.choose`. Raises `InputError`."""
        free = memory.free_memory(self.device)
        return memory.choose(self.size, frames, height, width, free=free, wanted=wanted, cache=fast == "cache")

    def place(self, mode: memory.Mode) -> None:
        """Bring the parts, loaded on the CPU, to where the mode wants them. Once."""
        self.size  # noqa: B018  counted before eight bits and groups change what there is to count
        memory.place(self._parts, mode, self.device)
        self.mode = mode
        if self.device.type == "cuda":
            self.attention = _set_attention(self.transformer)

    def forget(self) -> None:
        """Let go of the kept embeddings."""
        self._texts.clear()
        self._images.clear()

    def _use(self, name: str) -> Any:
        """A part, brought to the device first, in place of the one that was there, if the mode is to take turns."""
        part = getattr(self, name)
        if not self.mode.in_turn or self._present == name:
            return part
        if self._present is not None and not self._in_groups(self._present):
            getattr(self, self._present).to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not self._in_groups(name):
            part.to(self.device)
        self._present = name
        return part

    def _in_groups(self, name: str) -> bool:
        return name == "text_encoder" or (name == "transformer" and self.mode.groups)

    def compile(self) -> None:
        """Compile the transformer's blocks, one for all, at their first use. Raises `InputError` where it cannot be."""
        if os.environ.get("SPACES_ZERO_GPU"):
            raise InputError("ZeroGPU compiles nothing: each call runs in a process of its own. Leave out compile.")
        if self.mode.groups or self.mode.eight_bits:
            raise InputError(f"The transformer cannot be compiled in the memory mode {self.mode.name}; leave out one.")
        self.transformer.compile_repeated_blocks()

    @contextmanager
    def fast(self, name: str) -> Iterator[None]:
        """Sampling inside of it is as fast as a name of `FAST` says, at some cost in quality; `passes` counts.

        "cache": a pass whose first block does much as at the last computed one ends there, and takes the rest from that
        one (first-block cache); the decision waits for the device once a pass. "lora": the few-step LoRA `FEW_STEPS`.
        Raises `InputError` if the model cannot.
        """
        self.passes = Passes()
        if name == "cache":
            self._check_blocks()
            count = self.transformer.blocks[-1].attn1.register_forward_pre_hook(self._count_whole)
            from diffusers import FirstBlockCacheConfig  # pyright: ignore[reportPrivateImportUsage]

            self.transformer.enable_cache(FirstBlockCacheConfig(threshold=CACHE_THRESHOLD))
            try:
                yield
            finally:
                self.transformer.disable_cache()
                count.remove()
        elif name == "lora":
            self._load_few_steps()
            try:
                yield
            finally:
                self.transformer.unload_lora()
        else:
            yield

    def _count_whole(self, *_: object) -> None:
        self.passes.whole += 1

    def _check_blocks(self) -> None:
        if len(self.transformer.blocks) < 2:
            raise InputError(f"The model {self.name!r} has one block only, so that there is nothing to cache.")

    def _load_few_steps(self) -> None:
        lora, config = FEW_STEPS, self.transformer.config
        width = config["num_attention_heads"] * config["attention_head_dim"]
        if (width, config["num_layers"]) != (lora.width, lora.layers):
            raise InputError(
                f"The few-step LoRA fits Wan 2.1 1.3B, with {lora.layers} blocks {lora.width} wide; the model "
                f"{self.name!r} has {config['num_layers']}, {width} wide. Choose that model, or another fast mode."
            )
        if self.mode.eight_bits:
            raise InputError(
                f"The few-step LoRA does not work in 8 bits, the memory mode {self.mode.name}; use groups."
            )
        if find_spec("peft") is None:
            raise InputError("The few-step LoRA needs the package peft; install it with: pip install peft")
        from diffusers import WanImageToVideoPipeline  # pyright: ignore[reportPrivateImportUsage]
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(lora.repository, lora.file)
        except (OSError, ValueError) as error:
            raise InputError(
                f"The few-step LoRA {lora.file} could not be fetched from {lora.repository} on the hub: {error}"
            ) from error
        try:
            state = WanImageToVideoPipeline.lora_state_dict(path, use_safetensors=True)
        except ValueError as error:
            raise InputError(
                f"The few-step LoRA {lora.file} is not in a layout that diffusers knows: {error}"
            ) from error
        _check_lora(state, self.transformer, lora.file)
        self.transformer.load_lora_adapter(state, adapter_name="few-steps")

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, t, h, w) of a clip. Raises `InputError` when the model cannot take a clip of that size."""
        if frames % self.temporal != 1 % self.temporal or frames < 1:
            near = max(1, round((frames - 1) / self.temporal) * self.temporal + 1)
            raise InputError(
                f"The model takes {self.temporal}n + 1 frames; the clip has {frames}. The nearest is {near}."
            )
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise InputError(
                f"The model takes heights and widths that are multiples of {self.multiple}; the video is "
                f"{width} wide and {height} high."
            )
        t = (frames - 1) // self.temporal + 1
        return self.latent_channels, t, height // self.spatial, width // self.spatial

    def noise(self, frames: int, height: int, width: int, seed: int) -> Float[Tensor, "C t h w"]:
        """Unit Gaussian noise for a clip of that size; drawn on the CPU, so that a seed means the same everywhere."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.latent_shape(frames, height, width), generator=generator).to(self.device)

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "C t h w"]:
        """Video in [0, 1] to normalised latents: the mode of the VAE's posterior, no sampling."""
        self.latent_shape(len(video), *video.shape[-2:])
        x = rearrange(video.to(self.device, torch.float32) * 2 - 1, "T c H W -> 1 c T H W")
        z = self._use("vae").encode(x.to(self.vae.dtype)).latent_dist.mode()[0].float()
        return (z - self._mean) * self._scale

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "C t h w"]) -> Float[Tensor, "T 3 H W"]:
        """Normalised latents to video in [0, 1]."""
        z = z.to(self.device, torch.float32) / self._scale + self._mean
        x = self._use("vae").decode(z[None].to(self.vae.dtype)).sample[0].float()
        return rearrange(x * 0.5 + 0.5, "c T H W -> T c H W").clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "L D"]:
        """The prompt as the transformer reads it: L = `settings.text_tokens`, zero after the end of the text.

        Longer prompts are cut off. Zeros rather than a shorter tensor: so was Wan trained, and its image branch finds
        the image tokens by counting from the end. Embedded once: the last few prompts are kept.
        """
        return _kept(self._texts, prompt, lambda: self._embed(prompt))

    def _embed(self, prompt: str) -> Tensor:
        length = self.settings.text_tokens
        tokens = self.tokenizer(
            [_clean(prompt)], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        hidden = self._use("text_encoder")(ids, mask).last_hidden_state[0]
        return torch.where(mask[0, :, None] > 0, hidden, 0.0).float()

    @torch.no_grad()
    def embed_image(self, image: Float[Tensor, "3 H W"] | None) -> Float[Tensor, "N D"] | None:
        """The image (RGB in [0, 1]) as the image branch reads it; None for a model that has no such branch.

        None instead of an image gives zeros, "no image", with which Wan-Fun was trained, too. The last few are kept.
        """
        if not self.has_image_branch:
            return None
        if image is None or self.image_encoder is None:
            return torch.zeros(self._image_tokens, self.transformer.config["image_dim"], device=self.device)
        picture = (rearrange(image, "c H W -> H W c").clamp(0, 1) * 255).round().byte().cpu().numpy()
        key = b"%d %d " % picture.shape[:2] + picture.tobytes()
        return _kept(self._images, hashlib.sha256(key).digest(), lambda: self._embed_image(picture))

    def _embed_image(self, picture: np.ndarray) -> Tensor:
        inputs = self.image_processor(images=picture, return_tensors="pt").to(self.device, self.image_encoder.dtype)
        # Wan was trained on the last layer but one.
        return self._use("image_encoder")(**inputs, output_hidden_states=True).hidden_states[-2][0].float()

    @property
    def _image_tokens(self) -> int:
        if self.image_encoder is None:
            return 257  # of CLIP ViT-H/14 at 224x224, which Wan 2.1 uses
        config = self.image_encoder.config
        return (config.image_size // config.patch_size) ** 2 + 1

    @torch.no_grad()
    def condition(
        self,
        video: Float[Tensor, "T 3 H W"],
        mask: Float[Tensor, "T 1 H W"],
        filled: Float[Tensor, "C t h w"] | None = None,
    ) -> Float[Tensor, "4+C t h w"]:
        """The inpainting channels of the transformer: the mask, then the video encoded with its unknown pixels grey (or
        filled, see `Settings`).

        video in [0, 1]; mask: 1 (or True) = known. A mask that is 1 on the first frame alone is image-to-video.
        filled: latents of the same video with its unknown pixels filled, if they are at hand.
        """
        self.latent_shape(len(video), *video.shape[-2:])
        known = mask.to(self.device) > 0.5
        grouped = group_mask(known.float(), self.temporal, self.spatial)
        if self.settings.fill_condition and filled is not None:
            return torch.cat([grouped, filled])
        shown = torch.where(known, video.to(self.device), 0.5)
        if self.settings.fill_condition:
            shown = fill_unknown(Measurement(shown, known))
        return torch.cat([grouped, self.encode(shown)])

    @torch.no_grad()
    def velocity(
        self,
        z_t: Float[Tensor, "C t h w"],
        sigma: float,
        condition: Float[Tensor, "4+C t h w"],
        prompt: Float[Tensor, "L D"],
        negative: Float[Tensor, "L D"] | None,
        guidance_scale: float,
        image: Float[Tensor, "N D"] | None = None,
        part: str = "",
    ) -> Float[Tensor, "C t h w"]:
        """v = eps - z0 at z_t = (1 - sigma) z0 + sigma eps, with classifier-free guidance v = u + s (c - u).

        condition: of `condition`; prompt, negative: of `embed`, negative may be None when guidance_scale is 1, which
        costs one pass instead of two; image: of `embed_image`, None for no image. part: a name for what of a clip is
        asked for, where it is sampled in parts, so that caches keep them apart. Never waits for the device, but with a
        cache or in groups, see `fast` and `memory.Mode`.
        """
        if image is None:
            image = self.embed_image(None)
        packed = torch.cat([z_t, condition])[None].to(self.dtype)
        timestep = torch.full((1,), sigma * TRAIN_TIMESTEPS, device=self.device)
        image = None if image is None else image[None].to(self.dtype)

        transformer = self._use("transformer")

        def predict(text: Tensor, context: str) -> Tensor:
            self.passes.asked += 1
            with transformer.cache_context(context + part):
                return transformer(
                    hidden_states=packed,
                    timestep=timestep,
                    encoder_hidden_states=text[None].to(self.dtype),
                    encoder_hidden_states_image=image,
                    return_dict=False,
                )[0][0].float()

        # Two passes rather than a batch of two: half the memory, and no slower where a pass fills the device.
        conditional = predict(prompt, "cond")
        if guidance_scale == 1:
            return conditional
        if negative is None:
            raise ValueError("Classifier-free guidance needs a negative prompt embedding; an empty prompt will do.")
        unconditional = predict(negative, "uncond")
        return unconditional + guidance_scale * (conditional - unconditional)

    def preview(self, z0_hat: Float[Tensor, "C t h w"]) -> Float[Tensor, "t 3 h w"]:
        """A small picture of each latent frame, in [0, 1]: a linear map of the latents, which costs nothing."""
        rgb = self.latent_rgb
        pixels = torch.einsum("cthw,cr->trhw", z0_hat.float(), rgb.weight) + rgb.bias[:, None, None]
        return pixels.clamp(0, 1)

    @cached_property
    def latent_rgb(self) -> LatentRgb:
        """The map of `preview`: what recapture.json gives, else fitted to the VAE on a synthetic clip (one encode)."""
        given = self.settings.latent_rgb
        if given is not None:
            return LatentRgb(given.weight.to(self.device), given.bias.to(self.device))
        generator = torch.Generator().manual_seed(0)
        frames, cells = self.temporal + 1, 8 * self.multiple // self.spatial
        coarse = [torch.rand(1, 3, n, n, generator=generator) for n in (4, cells // 2, cells)]
        layers = [F.interpolate(layer, size=8 * self.multiple, mode="bilinear") for layer in coarse]
        clip = torch.cat(layers).mean(0, keepdim=True).sub(0.5).mul(2).add(0.5).clamp(0, 1)
        clip = torch.cat([clip.roll(4 * step, dims=-1) for step in range(frames)]).to(self.device)
        return fit_latent_rgb(self.encode(clip), clip)


def _kept(kept: dict[Any, Tensor], key: Any, compute: Callable[[], Tensor]) -> Tensor:
    if key not in kept:
        while len(kept) >= KEPT_EMBEDDINGS:
            kept.pop(next(iter(kept)))
        kept[key] = compute()
    return kept[key]


def _set_attention(transformer: Any) -> str:
    """Use the fastest attention kernel that is installed and exact; its name. Sage is not: it computes in 8 bits."""
    hopper = torch.cuda.get_device_capability()[0] == 9
    kernels = {"flash": "flash_attn"} | ({"_flash_3": "flash_attn_interface"} if hopper else {})
    for backend, package in reversed(kernels.items()):
        if find_spec(package) is not None:
            try:
                transformer.set_attention_backend(backend)
                return backend
            except (RuntimeError, ValueError):  # too old, or built for another version of torch
                continue
    return "native"


def _check_lora(state: Any, transformer: Any, file: str) -> None:
    """Raises `InputError` unless each pair of matrices fits its layer."""
    for key, matrix in state.items():
        layer, _, kind = key.removeprefix("transformer.").partition(".lora_")
        try:
            shape = transformer.get_submodule(layer).weight.shape
        except AttributeError:
            shape = None
        side = {"A.weight": -1, "B.weight": 0}.get(kind)
        fits = shape is not None and (side is None or matrix.shape[side] == shape[1 if side else 0])
        if not fits:
            raise InputError(f"The LoRA {file} does not fit the model: its {key} has no layer of that size.")


def fit_latent_rgb(z: Float[Tensor, "C t h w"], video: Float[Tensor, "T 3 H W"]) -> LatentRgb:
    """The linear map from latents to the mean colour of the pixels under them, by (lightly damped) least squares."""
    channels, t, h, w = z.shape
    group = (len(video) - 1) // (t - 1) if t > 1 else 1
    small = F.adaptive_avg_pool2d(video, (h, w))
    small = torch.cat([small[:1].expand(group - 1, -1, -1, -1), small])
    colour = rearrange(small, "(t g) r h w -> g (t h w) r", g=group).mean(0)
    latent = rearrange(z, "c t h w -> (t h w) c")
    mean_latent, mean_colour = latent.mean(0), colour.mean(0)
    centred = (latent - mean_latent).double()
    gram = centred.T @ centred
    damping = 1e-3 * gram.diagonal().mean() + 1e-12
    right = centred.T @ (colour - mean_colour).double()
    weight = torch.linalg.solve(gram + damping * torch.eye(channels, device=z.device), right).float()
    return LatentRgb(weight, mean_colour - mean_latent @ weight)


def group_mask(mask: Float[Tensor, "T 1 H W"], temporal: int = 4, spatial: int = 8) -> Float[Tensor, "g t h w"]:
    """The mask channels of the inpainting condition: one channel for each frame of a temporal group (g = `temporal`).

    The first frame is repeated `temporal` times, then come groups of `temporal` frames. Space is reduced to the pixel
    at the centre of each cell.
    """
    size = (mask.shape[-2] // spatial, mask.shape[-1] // spatial)
    near = F.interpolate(mask.float(), size=size, mode="nearest-exact")
    near = torch.cat([near[:1].expand(temporal - 1, -1, -1, -1), near])
    return rearrange(near, "(t g) 1 h w -> g t h w", g=temporal)


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

    ref: a name of `models.MODELS`, a folder in the diffusers layout, or a hub id. device: default CUDA, else the CPU.
    dtype: of the transformer, see `default_dtype`; the text encoder takes it on CUDA and is float32 on the CPU.
    mode: how the parts are placed, see `memory.MODES`; or what chooses it for the model, loaded on the CPU.
    Weights are read from safetensors only, never from pickles. Raises `InputError` when `ref` is no such model.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel

    for library in ("diffusers", "transformers"):
        # No bars over weights that are read in an instant; those of downloads stay.
        import_module(f"{library}.utils.logging").disable_progress_bar()

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    text_dtype = dtype if device.type == "cuda" else torch.float32
    folder = _fetch(models.resolve(ref))
    _check_index(ref, folder)

    def load(cls: Any, component: str, **options: Any) -> Any:
        try:
            model = cls.from_pretrained(folder / component, use_safetensors=True, **options)
        except OSError as error:
            raise InputError(f"The model {ref!r} has no usable {component}: {error}") from error
        return model.eval().requires_grad_(False)

    has_image_encoder = (folder / "image_encoder").is_dir()
    image_encoder = load(CLIPVisionModel, "image_encoder", dtype=text_dtype) if has_image_encoder else None
    backbone = Backbone(
        ref,
        read_settings(folder),
        vae=load(AutoencoderKLWan, "vae", torch_dtype=torch.float32),
        transformer=load(WanTransformer3DModel, "transformer", torch_dtype=dtype),
        text_encoder=load(UMT5EncoderModel, "text_encoder", dtype=text_dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        image_encoder=image_encoder,
        image_processor=_load_image_processor(folder) if has_image_encoder else None,
        device=device,
    )
    backbone.place(mode(backbone) if callable(mode) else mode)
    return backbone


def read_settings(folder: Path) -> Settings:
    """The settings of a backbone folder: recapture.json over the scheduler's shift over the defaults."""
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    given = _read_json(folder / "recapture.json")
    values = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    # diffusers' Euler scheduler calls it `shift`, its multistep ones `flow_shift`.
    shift = scheduler.get("shift", scheduler.get("flow_shift"))
    if shift is not None:
        values.setdefault("shift", shift)
    if factors := values.get("latent_rgb"):
        values["latent_rgb"] = LatentRgb(torch.tensor(factors["weight"]), torch.tensor(factors["bias"]))
    if depth := values.get("depth"):
        values["depth"] = str(folder / depth)
    return Settings(**values)


def _fetch(resolved: str) -> Path:
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", *(f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "safetensors", "model"))]
    try:
        return Path(snapshot_download(resolved, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise InputError(f"The model {resolved!r} could not be fetched from the Hugging Face hub: {error}") from error


def _check_index(ref: str, folder: Path) -> None:
    index = _read_json(folder / "model_index.json")
    wanted = {"vae": "AutoencoderKLWan", "transformer": "WanTransformer3DModel", "text_encoder": "UMT5EncoderModel"}
    for component, cls in wanted.items():
        found = (index.get(component) or [None, None])[1]
        if found != cls:
            raise InputError(f"The model {ref!r} is not a Wan image-to-video model: its {component} is {found}.")
    if (index.get("transformer_2") or [None, None])[1] is not None or index.get("expand_timesteps"):
        raise InputError(
            f"The model {ref!r} is a Wan 2.2 model with two transformers or a clean first frame: not known."
        )


def _load_image_processor(folder: Path) -> Any:
    # The plain (PIL) class where there are two: the other one needs torchvision.
    import transformers

    cls = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return cls.from_pretrained(folder / "image_processor")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _clean(prompt: str) -> str:
    """As Wan cleans its prompts: repaired Unicode, no HTML entities, single spaces."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
