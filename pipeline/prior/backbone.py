"""The video diffusion model. The only room that knows Wan: its VAE, transformer, text and image encoders.

One code path for the small models that come with the program and for the real ones: whatever a folder in the
diffusers layout says. Ranges, normalisation, packing and time scale are converted here and nowhere else.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline import InputError
from pipeline.models import hub, memory, table
from pipeline.prior import token_times
from pipeline.prior.fast import FEW_STEPS, Passes, check_fast, check_lora
from pipeline.prior.posed import Beside, posed, remember
from pipeline.prior.preview import WAN21_MEAN, WAN21_RGB, fit_latent_rgb
from pipeline.prior.settings import LENGTH, LatentRgb, Settings, check_encoder
from pipeline.prior.soft import Soft, load_soft
from pipeline.prior.tiny_vae import TinyDecoder, load_tiny_decoder, tiny_decoder_file
from pipeline.stop import check_in

TRAIN_TIMESTEPS = 1000  # the transformer's time is sigma * 1000
IMAGE_BRANCH_TEXT_TOKENS = 512  # with an image branch, all tokens before the last 512 are taken for the image's
KEPT_EMBEDDINGS = 16
# The share by which a step's first block may differ from the last computed step's for the rest to be taken from there.
CACHE_THRESHOLD = 0.1


def _frozen(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Without gradients, unless the latents that come first ask for them (solvers that differentiate the model)."""

    @wraps(method)
    def call(self: Backbone, z: Tensor, *others: Any, **options: Any) -> Tensor:
        with torch.set_grad_enabled(z.requires_grad):
            return method(self, z, *others, **options)

    return call


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the model is told besides the noisy latents.

    channels: of `Backbone.condition`: those of inpainting, or of `token_times`.
    prompt, negative: of `Backbone.embed`; negative may be None where the scale is 1, which costs one pass, not two.
    scale: of classifier-free guidance; it may differ from place to place.
    image: of `Backbone.embed_image`; None for no image.
    context: the name under which a step cache remembers, one for each window of a long clip.
    beside: what is shown beside the noisy video, by a model with soft parts; None for nothing.
    """

    channels: Float[Tensor, "4+C t h w"]
    prompt: Float[Tensor, "L D"]
    negative: Float[Tensor, "L D"] | None = None
    scale: float | Float[Tensor, "1 t h w"] = 1.0
    image: Float[Tensor, "N D"] | None = None
    context: str = ""
    beside: Beside | None = None

    def within(self, span: slice) -> Conditions:
        """Those of a window of latent frames."""
        scale = self.scale[:, span] if isinstance(self.scale, Tensor) else self.scale
        beside = None if self.beside is None else self.beside.within(span)
        return replace(self, channels=self.channels[:, span], scale=scale, context=str(span.start or ""), beside=beside)


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
        soft: Soft | None = None,  # None: of the settings' folder, if they name one
        device: torch.device | None = None,  # where tensors live, and parts while they are used; None: where the VAE is
    ) -> None:
        self.name, self.settings = name, settings
        self.vae, self.transformer, self.text_encoder = vae, transformer, text_encoder
        self.tokenizer, self.image_encoder, self.image_processor = tokenizer, image_encoder, image_processor
        self.device = device or vae.device
        self.mode, self.attention = memory.WHOLE, "native"
        self.passes = Passes()
        self.compiled = False
        self._present: str | None = None
        self.texts: dict[str, Tensor] = {}
        self._images: dict[bytes, Tensor] = {}
        self.dtype = transformer.patch_embedding.weight.dtype

        self.latent_channels: int = vae.config["z_dim"]
        self.temporal: int = vae.config["scale_factor_temporal"]
        self.spatial: int = vae.config["scale_factor_spatial"]
        self.multiple: int = self.spatial * transformer.config["patch_size"][-1]
        self.frames, self.pixels, self.steps = settings.frames, settings.pixels, settings.steps
        self.length = settings.length or max(settings.frames, LENGTH)
        self.guidance_scale, self.shift, self.depth = settings.guidance_scale, settings.shift, settings.depth
        self.has_image_branch: bool = transformer.config["image_dim"] is not None

        if soft is not None:
            self.soft = soft
        wanted = 2 * self.latent_channels + self.temporal
        alone = transformer.config["in_channels"] == self.latent_channels  # the noisy video, and what stands beside it
        self.token_times: bool = settings.token_times and alone and soft is None and settings.soft is None
        self.inpaints: bool = transformer.config["in_channels"] == wanted or self.token_times
        if not self.inpaints and not (alone and (soft is not None or settings.soft is not None)):
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
        if self.device.type == "cpu":  # where a call takes seconds
            for part in self._parts.values():
                check_in(part)
        self.mean = channelwise(vae.config["latents_mean"])
        self.scale = 1 / channelwise(vae.config["latents_std"])

    @cached_property
    def size(self) -> memory.ModelSize:
        """What the need for memory depends on."""
        return memory.model_size(**self._parts, window=self.settings.frames)

    @property
    def _parts(self) -> dict[str, Any]:
        names = ("vae", "transformer", "text_encoder", "image_encoder")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def plan(
        self, frames: int, height: int, width: int, *, wanted: str = "auto", fast: str = "off", parts: int = 1
    ) -> memory.Plan:
        """How a clip would be rendered in the memory that is there now, see `memory.choose`. Raises `InputError`.

        parts: videos that the transformer is shown one behind the other, the noisy one among them.
        """
        free, frames, size = memory.free_memory(self.device), self.padded(frames), replace(self.size, parts=parts)
        return memory.choose(size, frames, height, width, free=free, wanted=wanted, cache=fast == "cache")

    def place(self, mode: memory.Mode) -> None:
        """Bring the parts, loaded on the CPU, to where the mode wants them. Once."""
        self.size  # noqa: B018  counted before eight bits and groups change what there is to count
        memory.place(self._parts, mode, self.device)
        self.mode = mode
        if self.device.type == "cuda":
            self.attention = _set_attention(self.transformer)

    def forget(self) -> None:
        """Let go of the kept embeddings."""
        self.texts.clear()
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
        self.compiled = True

    @contextmanager
    def fast(self, name: str) -> Iterator[None]:
        """Sampling inside of it is as fast as a name of `FAST` says, at some cost in quality; `passes` counts.

        "cache": a pass whose first block does much as at the last computed one ends there, and takes the rest from that
        one (first-block cache); the decision waits for the device once a pass. "lora": the few-step LoRA `FEW_STEPS`.
        Raises `InputError` if the model cannot.
        """
        self.passes = Passes()
        config = self.transformer.config
        width, layers = config["num_attention_heads"] * config["attention_head_dim"], len(self.transformer.blocks)
        check_fast(name, self.name, width, layers, self.mode)
        if name == "cache":
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

    def _load_few_steps(self) -> None:
        from diffusers import WanImageToVideoPipeline  # pyright: ignore[reportPrivateImportUsage]

        spec = table.MODELS[FEW_STEPS.model]
        (file,) = spec.parts[0].files
        (folder,) = hub.download(spec, [spec.name])  # that the terms are accepted is for the caller to see to
        try:
            state = WanImageToVideoPipeline.lora_state_dict(str(folder / file), use_safetensors=True)
        except ValueError as error:
            raise InputError(f"The few-step LoRA {file} is not in a layout that diffusers knows: {error}") from error
        check_lora(state, self.transformer, file)
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
        return (z - self.mean) * self.scale

    def learned_mask(self, mask: Bool[Tensor, "T 1 H W"], filled: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "C t h w"]:
        """The latent mask by the model's own `MaskEncoder`. mask: True = observed; filled: the measurement in [0, 1].

        Raises `InputError` where the model has none.
        """
        check_encoder(self.name, self.settings.mask_encoder)
        return self._mask_encoder(mask.to(self.device), filled.to(self.device))

    @cached_property
    def _mask_encoder(self) -> Any:
        from pipeline.prior.mask_encoder import MaskEncoder

        folder = str(self.settings.mask_encoder)
        try:
            model: Any = MaskEncoder.from_pretrained(folder, use_safetensors=True, torch_dtype=self.dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"The model {self.name!r} has no usable mask encoder in {folder}: {error}") from error
        return model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def inpaint(self, filled: Float[Tensor, "T 3 H W"], mask: Bool[Tensor, "T 1 H W"]) -> Float[Tensor, "T 3 H W"]:
        """A smoothly filled measurement in [0, 1] with its holes as the model's own `Inpainter` fills them.

        mask: True = observed, which is untouched, as are frames of which nothing is. Without an inpainter all comes
        back as it is.
        """
        if self._inpainter is None:
            return filled
        result = filled.clone()
        for t in (mask.any(dim=(1, 2, 3)) & ~mask.all(dim=(1, 2, 3))).nonzero()[:, 0].tolist():
            frame = self._inpainter(filled[t, None].to(self.device), mask[t, None].to(self.device))
            result[t] = frame[0].clamp(0, 1).to(filled)
        return result

    @cached_property
    def _inpainter(self) -> Any:
        from pipeline.prior.inpainter import Inpainter

        folder = self.settings.inpainter
        if folder is None:
            return None
        try:
            model = Inpainter(**json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
            model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(f"The model {self.name!r} has no usable inpainter in {folder}: {error}") from error
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def soft(self) -> Soft | None:
        """The model's parts for soft conditioning; None where it has none. Raises `InputError` if they are unusable."""
        folder = self.settings.soft
        if folder is None:
            return None
        soft = load_soft(folder, self.name, self.device, self.dtype)
        known = dict(self.transformer.named_parameters())
        if any(key not in known or known[key].shape != value.shape for key, value in soft.weights.items()):
            raise InputError(
                f"The soft parts in {folder} were trained for another transformer than that of {self.name!r}."
            )
        if soft.weights and (self.mode.groups or self.mode.eight_bits):
            raise InputError(
                f"The soft parts of the model {self.name!r} replace weights, which the memory mode {self.mode.name} "
                "cannot: use another device or memory mode."
            )
        return soft

    @_frozen
    def decode(self, z: Float[Tensor, "C t h w"]) -> Float[Tensor, "T 3 H W"]:
        """Normalised latents to video in [0, 1]."""
        z = z.to(self.device, torch.float32) / self.scale + self.mean
        x = self._use("vae").decode(z[None].to(self.vae.dtype)).sample[0].float()
        return rearrange(x * 0.5 + 0.5, "c T H W -> T c H W").clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "L D"]:
        """The prompt as the transformer reads it: L = `settings.text_tokens`, zero after the end of the text.

        Longer prompts are cut off. Zeros rather than a shorter tensor: so was Wan trained, and its image branch finds
        the image tokens by counting from the end. Embedded once: the last few prompts are kept.
        """
        return _kept(self.texts, prompt, lambda: self._embed(prompt))

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
        latents: Float[Tensor, "C t h w"] | None = None,
    ) -> Float[Tensor, "m+C t h w"]:
        """The inpainting channels of the transformer: the mask, then the encoded video with its unknown pixels grey.

        video: in [0, 1]. mask: 1 (or True) = known; one that is 1 on the first frame alone is image-to-video.
        latents: in place of the encoded video, for a model whose unknown pixels are filled, see `Settings`.
        A text-to-video model, whose `inpaints` is False, has none of these channels: 0 t h w. One with a time for each
        token has those of `token_times.channels_of`.
        """
        _, t, h, w = self.latent_shape(len(video), *video.shape[-2:])
        if not self.inpaints:
            return torch.zeros(0, t, h, w, device=self.device)
        if self.token_times:
            sure = mask[0].to(self.device) > 0.5
            first = self.encode(torch.where(sure, video[:1].to(self.device), 0.5))
            return token_times.channels_of(token_times.clean_cells(sure, self.multiple, self.spatial), first, t)
        known = mask.to(video.device) > 0.5  # pixels of a long clip stay where they are until they are encoded
        grouped = group_mask(known.float(), self.temporal, self.spatial).to(self.device)
        return torch.cat([grouped, self.encode(torch.where(known, video, 0.5)) if latents is None else latents])

    @_frozen
    def velocity(self, z_t: Float[Tensor, "C t h w"], sigma: float, conditions: Conditions) -> Float[Tensor, "C t h w"]:
        """v = eps - z0 at z_t = (1 - sigma) z0 + sigma eps, with classifier-free guidance v = u + s (c - u).

        Never waits for the device, but with a cache or in groups, see `fast` and `memory.Mode`. Raises ValueError if
        the scale is not 1 and there is no negative prompt, or if something is shown beside it and there are no soft
        parts.
        """
        if conditions.beside is not None and self.soft is None:
            raise ValueError("a model without soft parts is shown something beside the noisy video")
        image = self.embed_image(None) if conditions.image is None else conditions.image
        if self.token_times:
            patch = self.transformer.config["patch_size"]
            packed, timestep = token_times.shown(z_t, conditions.channels, sigma * TRAIN_TIMESTEPS, patch)
        else:
            packed = torch.cat([z_t, conditions.channels])
            timestep = torch.full((1,), sigma * TRAIN_TIMESTEPS, device=self.device)
        packed = packed[None].to(self.dtype)
        lead = lambda v: token_times.towards(v, z_t, conditions.channels, sigma) if self.token_times else v
        image = None if image is None else image[None].to(self.dtype)

        transformer = self._use("transformer")

        beside = None if conditions.beside is None else conditions.beside.to(self.dtype)

        def predict(text: Tensor, context: str) -> Tensor:
            self.passes.asked += 1
            if beside is not None and self.soft is not None:
                told: dict[str, Any] = {"text": text[None].to(self.dtype), "image": image, "name": context}
                told["weights"] = self.soft.weights
                with transformer.cache_context(f"{context} beside"):
                    self.passes.asked += remember(transformer, self.soft.layers, beside, **told)
                with transformer.cache_context(context):
                    return posed(transformer, self.soft.layers, packed, beside, timestep=timestep, **told)[0].float()
            with transformer.cache_context(context):
                return transformer(
                    hidden_states=packed,
                    timestep=timestep,
                    encoder_hidden_states=text[None].to(self.dtype),
                    encoder_hidden_states_image=image,
                    return_dict=False,
                )[0][0].float()

        # Two passes rather than a batch of two: half the memory, and no slower where a pass fills the device.
        scale, context = conditions.scale, conditions.context
        conditional = predict(conditions.prompt, f"cond{context}")
        if not isinstance(scale, Tensor) and scale == 1:
            return lead(conditional)
        if conditions.negative is None:
            raise ValueError("Classifier-free guidance needs a negative prompt embedding; an empty prompt will do.")
        unconditional = predict(conditions.negative, f"uncond{context}")
        return lead(unconditional + scale * (conditional - unconditional))

    def padded(self, frames: int) -> int:
        """The least number of frames that the model takes and that is not below this one."""
        return self.temporal * -(-(frames - 1) // self.temporal) + 1

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


def group_mask(mask: Float[Tensor, "T 1 H W"], temporal: int = 4, spatial: int = 8) -> Float[Tensor, "g t h w"]:
    """The mask channels of the inpainting condition: one channel for each frame of a temporal group (g = `temporal`).

    The first frame is repeated `temporal` times, then come groups of `temporal` frames. Space is reduced to the pixel
    at the centre of each cell.
    """
    size = (mask.shape[-2] // spatial, mask.shape[-1] // spatial)
    near = F.interpolate(mask.float(), size=size, mode="nearest-exact")
    near = torch.cat([near[:1].expand(temporal - 1, -1, -1, -1), near])
    return rearrange(near, "(t g) 1 h w -> g t h w", g=temporal)


def _clean(prompt: str) -> str:
    """As Wan cleans its prompts: repaired Unicode, no HTML entities, single spaces."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
