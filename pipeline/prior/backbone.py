"""The video diffusion model. The only room that knows Wan: its VAE, transformer, text and image encoders.

One code path for the small models that come with the program and for the real ones: whatever a folder in the
diffusers layout says. Ranges, normalisation, packing and time scale are converted here and nowhere else.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import InputError
from pipeline.known.warp import Measurement, fill_unknown
from pipeline.models import memory
from pipeline.models import table as models
from pipeline.prior.tiny_vae import TinyDecoder, load_tiny_decoder, tiny_decoder_file

TRAIN_TIMESTEPS = 1000  # the transformer's time is sigma * 1000
IMAGE_BRANCH_TEXT_TOKENS = 512  # with an image branch, all tokens before the last 512 are taken for the image's
# Of Wan 2.1's VAE: the mean of its latents, by which it is known, and the linear map from its normalised latents to RGB
# in [-1, 1], one row a channel and then the bias (ComfyUI, comfy/latent_formats.py, class Wan21).
WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_RGB = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip
KEPT_EMBEDDINGS = 16
FAST = ("off", "cache", "lora")
# The share by which a step's first block may differ from the last computed step's for the rest to be taken from there.
CACHE_THRESHOLD = 0.1
COMPONENTS = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")


@dataclass(frozen=True)
class FewSteps:
    """A distilled LoRA with which a model needs few steps and no classifier-free guidance.

    model: its name in `models.MODELS`. width, layers: of the transformer that it fits.
    """

    model: str
    width: int
    layers: int
    steps: int
    guidance_scale: float


# CausVid (arXiv 2412.07772), taken out as a LoRA by Kijai, who advises 4 steps or more without guidance.
FEW_STEPS = FewSteps("causvid-lora", width=1536, layers=30, steps=8, guidance_scale=1.0)


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

    frames, pixels: clip length that it was made for, and H*W. text_tokens: length of the embedded prompt. strength:
    noise level to start from. shift: of the noise levels, see `sampler.flow_sigmas`. depth: folder of the depth model
    that goes with the backbone. mask_encoder: folder of its `MaskEncoder`, if it has one. fill_condition: the
    inpainting channels were trained on unknown pixels filled smoothly from the known ones, not grey as Wan's were.
    replace_guidance_scale: in place of guidance_scale where an object is replaced, None for the same. vocabulary: what
    its prompts may say, in words for the user, if that is little. steady: over how many frames to either side what it
    paints is made to agree, see `gather.steady`; 0 for a model whose frames agree by themselves. softness: how much
    softer than film its paint is, once enlarged, in pixels of the size at which it works, see `grain`.
    """

    frames: int = 81
    pixels: int = 480 * 832
    steps: int = 50
    guidance_scale: float = 5.0
    replace_guidance_scale: float | None = None
    strength: float = 1.0
    shift: float = 3.0
    text_tokens: int = 512
    latent_rgb: LatentRgb | None = None
    depth: str | None = None
    mask_encoder: str | None = None
    fill_condition: bool = False
    vocabulary: str = ""
    steady: int = 0
    softness: float = 0.5


def _frozen(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Without gradients, unless the latents that come first ask for them (solvers that differentiate the model)."""

    @wraps(method)
    def call(self: Backbone, z: Tensor, *others: Any, **options: Any) -> Tensor:
        with torch.set_grad_enabled(z.requires_grad):
            return method(self, z, *others, **options)

    return call


class Backbone:
    """A frozen image-to-video flow model. All tensors live on `device`; results are float32, without gradients (but
    `decode` and `velocity` have them with respect to a z that asks for them).

    Shapes: video "T 3 H W" in [0, 1] with T = 4n + 1 and H, W multiples of `multiple`; latents "C t h w", normalised
    with the VAE's mean and standard deviation, t = (T - 1)/4 + 1, h = H/8, w = W/8. Not safe for use by two threads at
    once: the VAE keeps state while it runs.

    The VAE is always float32, since its errors are seen directly; `dtype` is that of the transformer and of the mask
    encoder (whose masks then move by 0.001 on nano). Where the parts stand is the business of `place`. passes: of the
    present or last `fast`.
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
        return memory.model_size(**self._parts, window=self.settings.frames)

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
        if memory.lent():
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

        spec = models.MODELS[lora.model]
        (file,) = spec.parts[0].files
        (folder,) = models.download(spec, [spec.name])  # that the terms are accepted is for the caller to see to
        try:
            state = WanImageToVideoPipeline.lora_state_dict(str(folder / file), use_safetensors=True)
        except ValueError as error:
            raise InputError(f"The few-step LoRA {file} is not in a layout that diffusers knows: {error}") from error
        _check_lora(state, self.transformer, file)
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

    def learned_mask(self, mask: Bool[Tensor, "T 1 H W"], filled: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "C t h w"]:
        """The latent mask by the model's own `MaskEncoder`. mask: True = observed; filled: the measurement in [0, 1].

        Raises `InputError` where the model has none.
        """
        if self._mask_encoder is None:
            raise InputError(
                f"The model {self.name!r} has no mask encoder: choose the latent mask training-free, or train one with "
                "python -m pipeline.training.mask_encoder and name its folder in the model's recapture.json."
            )
        return self._mask_encoder(mask.to(self.device), filled.to(self.device))

    @cached_property
    def _mask_encoder(self) -> Any:
        from pipeline.prior.mask_encoder import MaskEncoder

        folder = self.settings.mask_encoder
        if folder is None:
            return None
        try:
            model: Any = MaskEncoder.from_pretrained(folder, use_safetensors=True, torch_dtype=self.dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"The model {self.name!r} has no usable mask encoder in {folder}: {error}") from error
        return model.eval().requires_grad_(False).to(self.device)

    @_frozen
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
        known = mask.to(video.device) > 0.5  # pixels of a long clip stay where they are until they are encoded
        grouped = group_mask(known.float(), self.temporal, self.spatial).to(self.device)
        if self.settings.fill_condition and filled is not None:
            return torch.cat([grouped, filled])
        shown = torch.where(known, video, 0.5)
        if self.settings.fill_condition:
            shown = fill_unknown(Measurement(shown, known))
        return torch.cat([grouped, self.encode(shown)])

    @_frozen
    def velocity(
        self,
        z_t: Float[Tensor, "C t h w"],
        sigma: float,
        condition: Float[Tensor, "4+C t h w"],
        prompt: Float[Tensor, "L D"],
        negative: Float[Tensor, "L D"] | None,
        guidance_scale: float | Float[Tensor, "1 t h w"],
        image: Float[Tensor, "N D"] | None = None,
        context: str = "",
    ) -> Float[Tensor, "C t h w"]:
        """v = eps - z0 at z_t = (1 - sigma) z0 + sigma eps, with classifier-free guidance v = u + s (c - u).

        condition: of `condition`; prompt, negative: of `embed`, negative may be None when guidance_scale is 1, which
        costs one pass instead of two; guidance_scale may differ from place to place; image: of `embed_image`, None for
        no image. context: under which a step cache remembers, one for each window of a long clip. Never waits for the
        device, but with a cache or in groups, see `fast` and `memory.Mode`.
        """
        if image is None:
            image = self.embed_image(None)
        packed = torch.cat([z_t, condition])[None].to(self.dtype)
        timestep = torch.full((1,), sigma * TRAIN_TIMESTEPS, device=self.device)
        image = None if image is None else image[None].to(self.dtype)

        transformer = self._use("transformer")

        def predict(text: Tensor, context: str) -> Tensor:
            self.passes.asked += 1
            with transformer.cache_context(context):
                return transformer(
                    hidden_states=packed,
                    timestep=timestep,
                    encoder_hidden_states=text[None].to(self.dtype),
                    encoder_hidden_states_image=image,
                    return_dict=False,
                )[0][0].float()

        # Two passes rather than a batch of two: half the memory, and no slower where a pass fills the device.
        conditional = predict(prompt, f"cond{context}")
        if not isinstance(guidance_scale, Tensor) and guidance_scale == 1:
            return conditional
        if negative is None:
            raise ValueError("Classifier-free guidance needs a negative prompt embedding; an empty prompt will do.")
        unconditional = predict(negative, f"uncond{context}")
        return unconditional + guidance_scale * (conditional - unconditional)

    def preview(self, z0_hat: Float[Tensor, "C t h w"]) -> Float[Tensor, "t 3 n*h n*w"]:
        """A small picture of each latent frame, in [0, 1], by what `preview_by` names.

        A linear map of the latents (n = 1), which costs nothing; for Wan 2.1's latents by a tiny decoder (n = 4) where
        its weights are in the hub's cache.
        """
        if self._tiny_decoder is not None:
            return self._tiny_decoder(z0_hat)
        rgb = self.latent_rgb
        pixels = torch.einsum("cthw,cr->trhw", z0_hat.float(), rgb.weight) + rgb.bias[:, None, None]
        return pixels.clamp(0, 1)

    @property
    def preview_by(self) -> str:
        """What makes the previews, in words."""
        return "a linear map of the latents" if self._tiny_decoder is None else "TAEW 2.1"

    @cached_property
    def _tiny_decoder(self) -> TinyDecoder | None:
        path = tiny_decoder_file() if self._has_wan21_latents else None
        return None if path is None else load_tiny_decoder(path, self.device)

    @property
    def _has_wan21_latents(self) -> bool:
        mean = self.vae.config["latents_mean"]
        return len(mean) == len(WAN21_MEAN) and torch.allclose(torch.tensor(mean), torch.tensor(WAN21_MEAN))

    @cached_property
    def latent_rgb(self) -> LatentRgb:
        """The linear map of `preview`: what recapture.json gives; for Wan 2.1's latents the published one, else one
        that is fitted to the VAE on a synthetic clip (one encode)."""
        given = self.settings.latent_rgb
        if given is None and self._has_wan21_latents:
            published = torch.tensor(WAN21_RGB)
            given = LatentRgb(published[:-1] / 2, (published[-1] + 1) / 2)
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

    ref: a name of `models.MODELS`, a folder, or a hub id; in the diffusers layout, or with the transformer in Wan's own
    layout, as VideoX-Fun publishes it. device: default CUDA, else the CPU.
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
    root, folders = _fetch(ref)

    def load(cls: Any, component: str, **options: Any) -> Any:
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
    transformer = load(WanTransformer3DModel, "transformer", torch_dtype=dtype)
    has_image_encoder = "image_encoder" in folders and transformer.config["image_dim"] is not None
    image_encoder = load(CLIPVisionModel, "image_encoder", dtype=text_dtype) if has_image_encoder else None
    backbone = Backbone(
        ref,
        read_settings(root, folders.get("scheduler")),
        vae=load(AutoencoderKLWan, "vae", torch_dtype=torch.float32),
        transformer=transformer,
        text_encoder=load(UMT5EncoderModel, "text_encoder", dtype=text_dtype),
        tokenizer=AutoTokenizer.from_pretrained(folders["tokenizer"]),
        image_encoder=image_encoder,
        image_processor=_load_image_processor(folders["image_processor"]) if has_image_encoder else None,
        device=device,
    )
    backbone.place(mode(backbone) if callable(mode) else mode)
    return backbone


def skeleton(spec: models.ModelSpec) -> dict[str, Any]:
    """The parts of a backbone on the hub that need memory, by their published configurations, without weights."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    given: Any = spec.configs
    with torch.device("meta"):
        return {
            "vae": AutoencoderKLWan(**given["vae"]),
            "transformer": WanTransformer3DModel(**given["transformer"]),
            "text_encoder": UMT5EncoderModel(UMT5Config(**given["text_encoder"])),
            "image_encoder": CLIPVisionModel(CLIPVisionConfig(**given["image_encoder"])),
        }


def read_settings(folder: Path, scheduler: Path | None = None) -> Settings:
    """The settings of a backbone folder: recapture.json over the scheduler's shift over the defaults.

    scheduler: its folder, where it is another than the sub-folder of that name.
    """
    scheduling = _read_json((scheduler or folder / "scheduler") / "scheduler_config.json")
    given = _read_json(folder / "recapture.json")
    values = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    # diffusers' Euler scheduler calls it `shift`, its multistep ones `flow_shift`.
    shift = scheduling.get("shift", scheduling.get("flow_shift"))
    if shift is not None:
        values.setdefault("shift", shift)
    if factors := values.get("latent_rgb"):
        values["latent_rgb"] = LatentRgb(torch.tensor(factors["weight"]), torch.tensor(factors["bias"]))
    for name in ("depth", "mask_encoder"):
        if values.get(name):
            values[name] = str(folder / values[name])
    return Settings(**values)


def vocabulary_of(ref: str) -> str:
    """`Settings.vocabulary` of a model that is a folder on this machine, without loading it; "" of others."""
    try:
        folder = Path(models.resolve(ref))
    except InputError:  # said when it is loaded
        return ""
    return read_settings(folder).vocabulary if folder.is_dir() else ""


def _fetch(ref: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a backbone, and that of each of its components; fetched first where need be."""
    spec = models.find(ref)
    if spec is not None and spec.role != "backbone":
        raise InputError(f"The model {ref!r} is for {spec.role}, not a video model.")
    if spec is not None and not spec.local:
        downloaded = models.download(spec)
        return downloaded[0], _components(spec.parts, downloaded)
    resolved = models.resolve(ref)
    root = Path(resolved)
    if not root.is_dir():
        patterns = [f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "safetensors", "model")]
        root = models.fetch_any(resolved, ["*.json", models.ORIGINAL_FILES, *patterns])
    found = {name: root / name for name in COMPONENTS if (root / name).is_dir()}
    if (root / "model_index.json").is_file():
        _check_index(ref, root)
        return root, found
    if "transformer" not in found:
        if not original_files(root):
            raise InputError(
                f"The model {ref!r} has neither a model_index.json nor a {models.ORIGINAL_FILES} with the names of "
                "Wan's own layout; give a Wan 2.1 image-to-video or inpainting model."
            )
        found["transformer"] = root
    # In that layout the encoders are pickles, which are never read: those of the Wan team's diffusers folders stand in.
    lacking = [part for part in models.WAN_ENCODERS if not set(part.components) <= set(found)]
    fetched = _components(lacking, [models.fetch(part.repo, part.files, part.revision) for part in lacking])
    return root, fetched | found


def _components(parts: Sequence[models.Part], folders: Sequence[Path]) -> dict[str, Path]:
    """The folder of each component in the parts: the sub-folder of its name, or else the part's."""
    pairs = [(name, folder) for part, folder in zip(parts, folders, strict=True) for name in part.components]
    return {name: folder / name if (folder / name).is_dir() else folder for name, folder in pairs}


def _check_index(ref: str, folder: Path) -> None:
    index = _read_json(folder / "model_index.json")
    wanted = {"vae": "AutoencoderKLWan", "transformer": "WanTransformer3DModel", "text_encoder": "UMT5EncoderModel"}
    for component, cls in wanted.items():
        found = (index.get(component) or [None, None])[1]
        if found != cls:
            raise InputError(f"The model {ref!r} is not a Wan image-to-video model: its {component} is {found}.")
    if (index.get("transformer_2") or [None, None])[1] is not None or index.get("expand_timesteps"):
        raise InputError(
            f"The model {ref!r} is a Wan 2.2 model with two transformers or a clean first frame: not served. {_GIVE}"
        )


# --- Wan's own layout -------------------------------------------------------------------------------------------------

# What the modules are called in Wan-Video/Wan2.1 (wan/modules/model.py), which VideoX-Fun keeps, and in diffusers'
# WanTransformer3DModel, of which each is the same: {block} is the number of a block.
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in (_ATTENTION | _IMAGE_ATTENTION).items()},
    "norm3": "norm2",  # the one with weights, before the cross-attention; norm1 and the other have none
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_HEAD_DIM = 128  # of all published Wan models, where no config.json says how many heads there are


def diffusers_key(key: str) -> str | None:
    """What diffusers calls a tensor of Wan's own layout; None if a plain image-to-video transformer has no such tensor.

    A pure renaming: no tensor is changed, split or joined.
    """
    place, names, prefix = key, _OUTSIDE, ""
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        place, names, prefix = found[2], _BLOCK, f"blocks.{found[1]}."
    if place in names:  # a tensor by itself
        return prefix + names[place]
    module, _, kind = place.rpartition(".")
    return f"{prefix}{names[module]}.{kind}" if module in names and kind in ("weight", "bias") else None


def original_files(folder: Path) -> list[Path]:
    """The weight files of a transformer in Wan's own layout in a folder; none if there is no such transformer."""
    files = sorted(folder.glob(models.ORIGINAL_FILES))
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                if any(".self_attn." in key for key in list(tensors.keys())):
                    return files
        except (OSError, SafetensorError) as error:
            raise InputError(f"The weights {file} cannot be read ({error}); fetch them again.") from error
    return []


def original_config(ref: str, shapes: Mapping[str, Sequence[int]], heads: int | None = None) -> dict[str, Any]:
    """The configuration of the diffusers transformer that fits the tensors of Wan's own layout, by their shapes.

    heads: their number, if it is known. Raises `InputError` for what is no image-to-video or inpainting transformer.
    """
    try:
        dim, channels, *patch = shapes["patch_embedding.weight"]
        ffn_dim = shapes["blocks.0.ffn.0.weight"][0]
        freq_dim, text_dim = shapes["time_embedding.0.weight"][1], shapes["text_embedding.0.weight"][1]
        out_channels = shapes["head.head.weight"][0] // math.prod(patch)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"The model {ref!r} is no Wan transformer: it lacks or has misshapen {error}.") from error
    wrong = sorted(key for key in shapes if diffusers_key(key) is None)
    if wrong:
        kind = next((kind for part, kind in _RELATIVES.items() if any(part in key for key in wrong)), "another model")
        raise InputError(
            f"The model {ref!r} is {kind}, not a plain image-to-video or inpainting model: it has {len(wrong)} tensors "
            f"that those have not, such as {', '.join(wrong[:3])}. {_GIVE}"
        )
    if channels == out_channels:
        raise InputError(
            f"The model {ref!r} is a text-to-video model: it takes {channels} channels, the noisy video alone, where "
            f"an image-to-video or inpainting model takes {2 * out_channels + 4}. {_GIVE}"
        )
    has_image_branch = "img_emb.proj.1.weight" in shapes
    heads = heads or max(1, dim // _HEAD_DIM)
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": out_channels,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        "image_dim": shapes["img_emb.proj.1.weight"][1] if has_image_branch else None,
        "added_kv_proj_dim": dim if has_image_branch else None,
    }


_RELATIVES = {
    "vace": "a VACE model",
    "control_adapter": "a camera control model",
    "ref_conv": "a control model",
    "emb_pos": "a model of first and last frames",
    "scale_weight": "a model in scaled fp8",
}
_GIVE = "Give one such as wan2.1-fun-1.3b-inp."


def load_original(ref: str, files: Sequence[Path], dtype: torch.dtype) -> Any:
    """A WanTransformer3DModel on the CPU from the files of a transformer in Wan's own layout.

    dtype: of its weights, but for those that diffusers keeps in float32. Each tensor is renamed, and checked by its
    shape; none may be missing or left over. Raises `InputError`.
    """
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    if missing := models.lacking(files[0].parent, [models.ORIGINAL_FILES]):
        raise InputError(f"Of the weights of the model {ref!r} {', '.join(missing)} are missing; fetch them again.")
    given = _read_json(files[0].parent / "config.json")
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        place = {key: tensors for tensors in opened for key in list(tensors.keys())}
        shapes = {key: tensors.get_slice(key).get_shape() for key, tensors in place.items()}
        config = original_config(ref, shapes, given.get("num_heads"))
        with init_empty_weights():  # which leaves the tables of the rotary embedding alone: no file has them
            transformer: Any = WanTransformer3DModel(**config, eps=given.get("eps", 1e-6))
        wanted = {key: list(tensor.shape) for key, tensor in transformer.state_dict().items()}
        renamed = {diffusers_key(key): key for key in place}
        misfits = [key for new, key in renamed.items() if wanted.get(new) != list(shapes[key])]
        if misfits or len(wanted) != len(renamed):
            named = [*misfits, *sorted(set(wanted) - set(renamed))]
            raise InputError(
                f"The weights of the model {ref!r} are not complete, or of another shape than they should be: "
                f"{', '.join(named[:3])} and {max(0, len(named) - 3)} more; fetch them again."
            )
        kept = set(transformer._keep_in_fp32_modules or ())
        weights = {
            new: place[key].get_tensor(key).to(torch.float32 if kept.intersection(str(new).split(".")) else dtype)
            for new, key in renamed.items()
        }
    transformer.load_state_dict(weights, strict=True, assign=True)
    return transformer


def _load_image_processor(folder: Path) -> Any:
    # The plain (PIL) class where there are two: the other one needs torchvision.
    import transformers

    cls = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return cls.from_pretrained(folder)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _clean(prompt: str) -> str:
    """As Wan cleans its prompts: repaired Unicode, no HTML entities, single spaces."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
