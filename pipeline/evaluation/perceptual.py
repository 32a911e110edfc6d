"""What can be measured of a video with the weights of others: likeness, consistency, whether the prompt is followed.

Weights have to be on this machine; nothing is downloaded. A `model` is a name of `table.MODELS`, a folder, or a hub id
that is in the cache; each function raises `InputError` with the command that gets it where it is not. Whether the user
has accepted its terms is for the caller to ask. `device`: None for CUDA where there is any. Loaded models are kept
until `release`. Frames are resized by torch (bicubic, antialiased), where their authors resized by PIL or, as VBench,
without antialiasing: the last digits differ from theirs.
"""

from __future__ import annotations

import gc
import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import InputError
from pipeline.depth.network import IMAGENET
from pipeline.models import hub, table

LPIPS_LAYERS = table.ROOT / "assets" / "lpips" / "vgg.safetensors"
AT_ONCE = 8  # frames that go through a network together
FOLLOWED = 'These are frames of one video, in order. Does it show "{prompt}"? Answer with yes or no only.'
REAL = (
    "These are frames of one video, in order. Does it look like a real recording, without broken, distorted or smeared "
    "things? Answer with yes or no only."
)
ASKED_OF = 4  # frames that the vision-language model is shown

Device = str | torch.device | None
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# --- LPIPS ------------------------------------------------------------------------------------------------------------


class Lpips(nn.Module):
    """The perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924), version 0.1 with VGG16.

    `features` are named as in timm/vgg16.tv_in1k, which is torchvision's VGG16; `layers` are assets/lpips.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, widths = 3, (64, 128, 256, 512, 512)
        for width, count in zip(widths, (2, 2, 3, 3, 3), strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.layers = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)

    def forward(self, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B 1 h w"]]:
        """Distance maps of frames in [0, 1], one a layer, at the layer's resolution; their sum is the distance."""
        shift, scale = a.new_tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, None, :, None, None]
        x = (2 * torch.cat([a, b]) - 1 - shift) / scale
        maps = []
        for layer in [*self.features, nn.MaxPool2d(2)]:
            if isinstance(layer, nn.MaxPool2d):
                one, other = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)).chunk(2)
                maps.append(self.layers[len(maps)]((one - other).square()))
            x = layer(x)
        return maps


@torch.no_grad()
def lpips(
    a: Float[Tensor, "T 3 H W"],
    b: Float[Tensor, "T 3 H W"],
    mask: Bool[Tensor, "T 1 H W"] | None = None,
    *,
    model: str = "vgg16",
    device: Device = None,
) -> float:
    """LPIPS of two videos in [0, 1], frame by frame: 0 if they are equal; lower is more alike.

    With a mask the mean of the distance map, upsampled to the frames, over the pixels where it is True; what stands
    beyond its edge is seen by the network and tells a little. Frames have 16 pixels or more a side.
    """
    if a.shape != b.shape or (mask is not None and (mask.shape != (len(a), 1, *a.shape[2:]) or not mask.any())):
        raise InputError("LPIPS takes two videos of one shape, and a mask T 1 H W that is True somewhere.")
    device = _device(device)
    network = _lpips(hub.locate(model), device)
    total, count = 0.0, 0
    for i in range(0, len(a), AT_ONCE):
        some = slice(i, i + AT_ONCE)
        maps = network(a[some].to(device).float(), b[some].to(device).float())
        if mask is None:
            total += sum(m.double().mean((1, 2, 3)).sum().item() for m in maps)
            count += len(maps[0])
        else:
            size, chosen = (a.shape[2], a.shape[3]), mask[some].to(device)
            map_ = sum(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps)
            total += torch.as_tensor(map_)[chosen].double().sum().item()
            count += int(chosen.sum())
    return total / count


@lru_cache(maxsize=1)
def _lpips(folder: Path, device: torch.device) -> Lpips:
    network = Lpips()
    try:
        vgg = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("features.")}
        layers = {f"layers.{k[3]}.weight": v for k, v in load_file(LPIPS_LAYERS).items()}
        network.load_state_dict(vgg | layers)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The weights of LPIPS in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return network.eval().requires_grad_(False).to(device)


# --- features of frames -----------------------------------------------------------------------------------------------


@torch.no_grad()
def dino_features(
    video: Float[Tensor, "T 3 H W"], model: str = "dinov2-small", *, device: Device = None
) -> Float[Tensor, "T D"]:
    """What DINO (arXiv 2104.14294) or DINOv2 (arXiv 2304.07193) says of each frame in [0, 1]: its class token, of
    length one. The shorter side is made 224 pixels, as VBench does."""
    network = network_of(hub.locate(model), _device(device), ("vit", "dinov2"))
    told = {"interpolate_pos_encoding": True} if network.config.model_type == "vit" else {}
    found = [network(x, **told).last_hidden_state[:, 0] for x in _batches(video, network, IMAGENET, 224, crop=False)]
    return F.normalize(torch.cat(found).float(), dim=-1).cpu()


def dino_distance(
    a: Float[Tensor, "T 3 H W"], b: Float[Tensor, "T 3 H W"], model: str = "dinov2-small", *, device: Device = None
) -> float:
    """1 less the cosine of the DINO features of two videos, mean over frames: 0 if they are equal, at most 2."""
    one, other = (dino_features(video, model, device=device) for video in (a, b))
    return 1 - (one * other).sum(-1).mean().item()


@torch.no_grad()
def clip_features(
    video: Float[Tensor, "T 3 H W"], model: str = "clip-vit-b32", *, device: Device = None
) -> Float[Tensor, "T D"]:
    """CLIP's (arXiv 2103.00020) embeddings of frames in [0, 1], of length one. Their middle square is looked at."""
    network = network_of(hub.locate(model), _device(device), ("clip",))
    side = network.config.vision_config.image_size
    found = [_pooled(network.get_image_features(pixel_values=x)) for x in _batches(video, network, CLIP, side)]
    return F.normalize(torch.cat(found).float(), dim=-1).cpu()


@torch.no_grad()
def clip_score(
    video: Float[Tensor, "T 3 H W"], prompt: str, model: str = "clip-vit-b32", *, device: Device = None
) -> float:
    """How well frames in [0, 1] fit a prompt: cosine of CLIP's embeddings times its learned scale, mean over frames.

    The scale of OpenAI's CLIP is 100: then this is the CLIP score. With the model "pickscore" it is PickScore (arXiv
    2305.01569). Prompts are cut at 77 tokens.
    """
    folder, device = hub.locate(model), _device(device)
    network = network_of(folder, device, ("clip",))
    length = network.config.text_config.max_position_embeddings
    tokens = _tokenizer(folder)([prompt], truncation=True, max_length=length, return_tensors="pt").to(device)
    words = _pooled(network.get_text_features(tokens["input_ids"], tokens["attention_mask"])).float().cpu()
    frames = clip_features(video, model, device=device)
    return network.logit_scale.exp().item() * (frames @ F.normalize(words, dim=-1).T).mean().item()


def consistency(features: Float[Tensor, "T D"]) -> float:
    """VBench's consistency (arXiv 2311.17982): mean cosine of each frame's features with the frame before and with the
    first one, where negative ones count as 0; 1 is the most. Of the subject with DINO ViT-B/16, of the background with
    CLIP ViT-B/32."""
    features = F.normalize(features, dim=-1)
    later = features[1:]
    likeness = (later * features[:-1]).sum(-1).clamp_min(0) + (later @ features[0]).clamp_min(0)
    return likeness.mean().item() / 2 if len(later) else 1.0


# --- sets of videos ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def video_features(
    video: Float[Tensor, "T 3 H W"], model: str = "videomae-base", *, device: Device = None
) -> Float[Tensor, " D"]:
    """What VideoMAE (arXiv 2203.12602) says of a video in [0, 1]: the mean of its tokens, for 16 frames spread evenly
    (repeated, if there are fewer), squeezed into a square.

    With `frechet` this is an FVD with VideoMAE's features, which look less at single frames than I3D's (arXiv
    2404.12391). There the features are those of a larger model, so the figures do not compare.
    """
    network = network_of(hub.locate(model), _device(device), ("videomae",))
    config = network.config
    chosen = video[torch.linspace(0, len(video) - 1, config.num_frames).round().long()]
    shown = F.interpolate(chosen.float(), (config.image_size,) * 2, mode="bicubic", antialias=True, align_corners=False)
    tokens = network(_normal(shown, IMAGENET)[None].to(network.device, network.dtype)).last_hidden_state
    return tokens[0].mean(0).float().cpu()


def frechet(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """The Fréchet distance of two sets of features, each taken for a Gaussian: |μ - ν|² + tr(A + B - 2 (AB)^½).

    0 for equal sets. With fewer videos than features it says more about their number than about them: compare only sets
    of the same sizes. Raises `InputError` for fewer than two videos in a set.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise InputError("A Fréchet distance takes two videos or more on each side.")
    # tr (AB)^½ is the nuclear norm of the product of the centred features: no square root of a singular matrix
    centred = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    x, y = centred
    product = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * product)


# --- questions --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def yes_share(
    video: Float[Tensor, "T 3 H W"], question: str, model: str = "qwen2.5-vl-3b", *, device: Device = None
) -> float:
    """How sure Qwen2.5-VL (arXiv 2502.13923) is that a question about a video in [0, 1] is answered by yes: the
    probability of yes among yes and no as the first word of its answer, from 0 to 1, as VQAScore (arXiv 2404.01291).

    Nothing is drawn at random. It sees `ASKED_OF` frames, spread evenly.
    """
    folder, device = hub.locate(model), _device(device)
    network, tokenizer, processor = network_of(folder, device, ("qwen2_5_vl",)), _tokenizer(folder), _processor(folder)
    chosen = video[torch.linspace(0, len(video) - 1, ASKED_OF).round().long()]
    pictures = list((chosen.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    seen = processor(images=pictures, return_tensors="pt")
    pads = [int(grid.prod()) // processor.merge_size**2 for grid in seen["image_grid_thw"]]
    shown = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in pads)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = tokenizer([text], add_special_tokens=False, return_tensors="pt").to(device)
    inputs = {"pixel_values": seen["pixel_values"].to(device, network.dtype)}
    inputs |= {"image_grid_thw": seen["image_grid_thw"].to(device), "attention_mask": tokens["attention_mask"]}
    if "mm_token_type_ids" in inspect.signature(network.forward).parameters:
        inputs["mm_token_type_ids"] = (tokens["input_ids"] == network.config.image_token_id).int()
    logits = network(tokens["input_ids"], **inputs, logits_to_keep=1).logits[0, -1].float()
    first = lambda words: sorted({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})
    yes, no = (logits[first(words)].logsumexp(0) for words in (("Yes", "yes"), ("No", "no")))
    return torch.sigmoid(yes - no).item()


# --- loading ----------------------------------------------------------------------------------------------------------


def release() -> None:
    """Forget the loaded models."""
    for loaded in (_lpips, network_of, _tokenizer, _processor):
        loaded.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(device: Device) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@lru_cache(maxsize=8)
def network_of(folder: Path, device: torch.device, kinds: tuple[str, ...]) -> Any:
    """A network of transformers, with all of its weights from the file. float32, but for the large ones."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    classes = {
        "vit": "ViTModel", "dinov2": "Dinov2Model", "clip": "CLIPModel", "videomae": "VideoMAEModel",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    }  # fmt: skip
    try:
        kind = transformers.AutoConfig.from_pretrained(folder).model_type
        if kind not in kinds:
            raise InputError(f"The model in {folder} is of the kind {kind}; wanted is {' or '.join(kinds)}.")
        options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}
        options["dtype"] = "auto" if kind == "qwen2_5_vl" else torch.float32
        network, report = getattr(transformers, classes[kind]).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    # some versions of transformers drop VideoMAE's q_bias and v_bias, and miss nothing
    dropped = {key for key in report["unexpected_keys"] if "encoder.layer" in key and key.endswith("_bias")}
    if lost := sorted({*report["missing_keys"], *dropped}):
        raise InputError(f"The model in {folder} lacks weights, or they are not understood: {', '.join(lost[:4])}.")
    return network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@lru_cache(maxsize=1)
def _processor(folder: Path) -> Any:
    import transformers

    # The plain (PIL) class where there are two: the other one needs torchvision.
    processor = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    return processor.from_pretrained(folder)


def _batches(video: Tensor, network: Any, statistics: tuple, side: int, *, crop: bool = True):
    """Some frames at a time as a network wants them: the shorter side of that length, normalised."""
    height, width = (max(side, round(length * side / min(video.shape[2:]))) for length in video.shape[2:])
    top, left = ((height - side) // 2, (width - side) // 2) if crop else (0, 0)
    for frames in video.split(AT_ONCE):
        shown = F.interpolate(frames.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
        if crop:
            shown = shown[..., top : top + side, left : left + side]
        yield _normal(shown, statistics).to(network.device, network.dtype)


def _normal(frames: Tensor, statistics: tuple) -> Tensor:
    mean, deviation = (frames.new_tensor(values).view(3, 1, 1) for values in statistics)
    return (frames.clamp(0, 1) - mean) / deviation


def _pooled(output: Any) -> Tensor:
    """The projected embedding, which older versions of transformers return by itself."""
    return getattr(output, "pooler_output", output)
