"""The table of models: what each one is for, where it comes from, under which licence, and how large it is.

Nothing is downloaded unasked, and what is in the hub's cache is taken from there without asking the network. Weights
are fetched as safetensors only, never as pickles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import InputError

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("backbone", "scene encoder", "fast mode", "depth", "masks", "first frame", "captions", "previews", "metric")
ORIGINAL_FILES = "diffusion_pytorch_model*.safetensors"  # Wan's own layout has its transformer beside the README


@dataclass(frozen=True)
class Part:
    """What a model takes of one repository of the hub.

    files: patterns, each of which has to match; download_bytes: what they weigh, about. revision: a commit, None for
    the newest. components: which of the model's components these are, each in the sub-folder of its name or else at
    the root.
    """

    repo: str
    files: tuple[str, ...]
    download_bytes: int
    revision: str | None = None
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """One model: either a folder that comes with the program, relative to its root, or parts from the hub.

    classes: of diffusers, transformers or our own that read it. terms: what the licence forbids, in plain words, where
    the user has to accept it before the first use (see `check_accepted`); empty for licences that forbid nothing here.
    title: what it is called in sentences, where that is not its name. configs: of a backbone on the hub, what its
    components' published configurations have other than their classes' defaults. by_hand: of a model that no hub has,
    the page where its file is got by hand and the command that then converts it; by_hand_bytes: what that file weighs.
    """

    name: str
    role: str
    classes: tuple[str, ...]
    licence: str
    note: str
    folder: str | None = None
    parts: tuple[Part, ...] = ()
    terms: str = ""
    title: str = ""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    by_hand: str = ""
    by_hand_bytes: int = 0

    @property
    def local(self) -> bool:
        """Whether the model comes with the program."""
        return self.folder is not None

    @property
    def ref(self) -> str:
        """The folder, or the hub id of the first part; of a model that no hub has, its name."""
        return self.folder if self.folder is not None else self.parts[0].repo if self.parts else self.name

    @property
    def download_bytes(self) -> int:
        """What has to be fetched before the first use, about; 0 for what comes with the program."""
        return sum(part.download_bytes for part in self.parts) + self.by_hand_bytes


_WAN_CLASSES = ("AutoencoderKLWan", "WanTransformer3DModel", "UMT5EncoderModel", "CLIPVisionModel")
# The same for all of Wan 2.1. The text encoder is Wan 2.2's copy, since Wan 2.1's has been blown up from 16 to 32 bits.
_WAN_TEXT = Part(
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    ("text_encoder/*.json", "text_encoder/*.safetensors"),
    11_361_900_000,
    "b8fff7315c768468a5333511427288870b2e9635",
    ("text_encoder",),
)
_WAN_OTHERS = Part(
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    (
        "vae/*.json",
        "vae/*.safetensors",
        "image_encoder/*.json",
        "image_encoder/*.safetensors",
        "image_processor/*.json",
        "tokenizer/*",
        "scheduler/*.json",
    ),
    1_793_000_000,
    "b184e23a8a16b20f108f727c902e769e873ffc73",
    ("vae", "image_encoder", "image_processor", "tokenizer", "scheduler"),
)
WAN_ENCODERS = (_WAN_TEXT, _WAN_OTHERS)
# The same for text-to-video models, which see no image.
_WAN_PLAIN = Part(
    _WAN_OTHERS.repo,
    ("vae/*.json", "vae/*.safetensors", "tokenizer/*", "scheduler/*.json"),
    529_000_000,
    _WAN_OTHERS.revision,
    ("vae", "tokenizer", "scheduler"),
)


def _wan_configs(heads: int, layers: int, ffn_dim: int) -> dict[str, dict[str, Any]]:
    return {
        "transformer": {
            "num_attention_heads": heads, "attention_head_dim": 128, "num_layers": layers, "ffn_dim": ffn_dim,
            "in_channels": 36, "out_channels": 16, "text_dim": 4096, "image_dim": 1280,
            "added_kv_proj_dim": 128 * heads,
        },
        "vae": {},
        "text_encoder": {
            "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        },
        "image_encoder": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 224,
        },
    }  # fmt: skip


_WAN_SMALL, _WAN_LARGE = _wan_configs(12, 30, 8960), _wan_configs(40, 40, 13824)
_WAN_TEXT_ONLY = {name: config for name, config in _WAN_SMALL.items() if name != "image_encoder"} | {
    "transformer": _WAN_SMALL["transformer"] | {"in_channels": 16, "image_dim": None, "added_kv_proj_dim": None}
}
# Wan 2.2 TI2V-5B: wan/configs/wan_ti2v_5B.py and wan/modules/vae2_2.py of Wan-Video/Wan2.2.
_WAN_TOKENS = {"text_encoder": _WAN_SMALL["text_encoder"]} | {
    "transformer": {
        "num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48,
        "out_channels": 48, "text_dim": 4096, "image_dim": None,
    },
    "vae": {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    },
}  # fmt: skip

SPECS = (
    ModelSpec(
        name="nano",
        role="backbone",
        classes=("AutoencoderKLWan", "WanTransformer3DModel", "UMT5EncoderModel"),
        licence="Apache-2.0",
        note="Our own small model of a procedural world; runs without a GPU.",
        folder="assets/nano",
    ),
    ModelSpec(
        name="wan2.1-fun-1.3b-inp",
        role="backbone",
        classes=_WAN_CLASSES,
        licence="Apache-2.0",
        note="The backbone of the InverseCrafter paper, 480x832, 81 frames. The default where there is a GPU.",
        configs=_WAN_SMALL,
        parts=(
            Part(
                "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP",
                ("config.json", ORIGINAL_FILES),
                3_128_958_000,
                "fc913c34361f4ec879e2f9c78b4f11ae50a937d1",
                ("transformer",),
            ),
            *WAN_ENCODERS,
        ),
    ),
    ModelSpec(
        name="wan2.1-fun-14b-inp",
        role="backbone",
        classes=_WAN_CLASSES,
        licence="Apache-2.0",
        note="Its larger sibling, with ten times the parameters.",
        configs=_WAN_LARGE,
        parts=(
            Part(
                "alibaba-pai/Wan2.1-Fun-V1.1-14B-InP",
                ("config.json", ORIGINAL_FILES),
                32_790_000_000,
                None,
                ("transformer",),
            ),
            *WAN_ENCODERS,
        ),
    ),
    ModelSpec(
        name="wan2.1-i2v-14b-480p",
        role="backbone",
        classes=_WAN_CLASSES,
        licence="Apache-2.0",
        note="Image-to-video, trained on complete first frames only, not on holes.",
        configs=_WAN_LARGE,
        parts=(
            Part(
                _WAN_OTHERS.repo,
                ("transformer/*.json", "transformer/*.safetensors"),
                65_580_000_000,  # kept in 32 bits by its makers
                _WAN_OTHERS.revision,
                ("transformer",),
            ),
            *WAN_ENCODERS,
        ),
    ),
    ModelSpec(
        name="wan2.2-ti2v-5b",
        role="backbone",
        classes=_WAN_CLASSES[:3],
        licence="Apache-2.0",
        note="704x1280, 121 frames; a quarter of the tokens. Trained on complete first frames. Not run here so far.",
        configs=_WAN_TOKENS,
        parts=(
            Part(
                _WAN_TEXT.repo,
                (
                    "model_index.json",
                    "tokenizer/*",
                    *(f"{n}/*.json" for n in ("transformer", "vae", "scheduler")),
                    "transformer/*.safetensors",
                    "vae/*.safetensors",
                ),
                22_818_000_000,  # counted as 32 bits
                _WAN_TEXT.revision,
                ("transformer", "vae", "tokenizer", "scheduler"),
            ),
            _WAN_TEXT,
        ),
    ),
    ModelSpec(
        name="recammaster-1.3b",
        role="backbone",
        classes=_WAN_CLASSES[:3],
        licence="not checked (Wan 2.1: Apache-2.0; ReCamMaster's code: MIT)",
        note="ReCamMaster: soft conditioning by the clip and the camera path, 480x832, 81 frames. Method recammaster.",
        title="ReCamMaster",
        terms=(
            "Nobody has checked under which licence this file may be used. Wan 2.1 is under Apache-2.0, the code of "
            "ReCamMaster under MIT; find out before any use but research."
        ),
        configs=_WAN_TEXT_ONLY,
        parts=(
            Part(
                "DeepBeepMeep/Wan2.1",
                ("wan2.1_recammaster_1.3B_bf16.safetensors",),
                2_980_000_000,  # 1,490 million parameters in 16 bits
                None,
                ("transformer",),
            ),
            _WAN_TEXT,
            _WAN_PLAIN,
        ),
    ),
    ModelSpec(
        name="cut3r",
        role="scene encoder",
        classes=("our own",),
        licence="CC BY-NC-SA 4.0",
        note="CUT3R, the 4D reconstruction model whose states are LaVR's soft condition; cut3r_512_dpt_4_64.pth.",
        title="CUT3R",
        terms="It may not be used commercially; what is made of it has to name its authors and to be shared alike.",
        by_hand="github.com/CUT3R/CUT3R, then python -m pipeline.scene.weights FILE --output FOLDER --accept cut3r",
        by_hand_bytes=3_173_000_000,
    ),
    ModelSpec(
        name="causvid-lora",
        role="fast mode",
        classes=("WanImageToVideoPipeline.lora_state_dict",),
        licence="CC BY-NC-SA 4.0",
        note="A LoRA of rank 32 from CausVid for wan2.1-fun-1.3b-inp: few steps, no classifier-free guidance.",
        title="the few-step LoRA CausVid",
        terms="It may not be used commercially; what is made of it has to name its authors and to be shared alike.",
        parts=(
            Part(
                "Kijai/WanVideo_comfy",
                ("Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors",),
                87_500_000,  # two matrices for each linear layer of 30 blocks, in 16 bits
            ),
        ),
    ),
    ModelSpec(
        name="depth-anything-v2-small",
        role="depth",
        classes=("DepthAnythingForDepthEstimation",),
        licence="Apache-2.0",
        note="Depth of one frame at a time.",
        parts=(
            Part(
                "depth-anything/Depth-Anything-V2-Small-hf",
                ("config.json", "preprocessor_config.json", "model.safetensors"),
                99_175_000,
                "5426e4f0f36572d16453bbda7a8389317b1bef99",
            ),
        ),
    ),
    ModelSpec(
        name="depthcrafter",
        role="depth",
        classes=(
            "UNetSpatioTemporalConditionModel",
            "AutoencoderKLTemporalDecoder",
            "CLIPVisionModelWithProjection",
        ),
        licence="DepthCrafter licence (academic); its base: Stability AI Community License",
        note="Depth of whole clips, steady over time; the depth of the InverseCrafter paper.",
        terms=(
            "DepthCrafter may be used for academic research and education only: no commercial use, no use in a product "
            "or service. The base, Stable Video Diffusion, may not be used commercially by those who earn more than "
            "one million US dollars a year."
        ),
        parts=(
            Part("tencent/DepthCrafter", ("config.json", "diffusion_pytorch_model.safetensors"), 3_049_500_000),
            Part(
                "stabilityai/stable-video-diffusion-img2vid-xt",
                (
                    "vae/config.json",
                    "vae/diffusion_pytorch_model.fp16.safetensors",
                    "image_encoder/config.json",
                    "image_encoder/model.fp16.safetensors",
                    "feature_extractor/*.json",
                    "scheduler/*.json",
                ),
                1_460_000_000,
            ),
        ),
    ),
    ModelSpec(
        name="sam2-hiera-tiny",
        role="masks",
        classes=("Sam2VideoModel",),
        licence="Apache-2.0",
        note="Follows an object through a clip.",
        parts=(Part("facebook/sam2-hiera-tiny-hf", ("config.json", "model.safetensors"), 156_000_000),),
    ),
    ModelSpec(
        name="flux-fill",
        role="first frame",
        classes=("FluxFillPipeline",),
        licence="FLUX.1 [dev] Non-Commercial License",
        note="Fills the holes of the first frame. The hub gives it only to those who are logged in and agreed there.",
        title="FLUX.1 Fill [dev]",
        terms=(
            "The model may not be used commercially, nor to train another one; its pictures must be marked where the "
            "law says so. What it makes may be used, as far as the licence allows."
        ),
        parts=(
            Part(
                "black-forest-labs/FLUX.1-Fill-dev",
                (
                    "model_index.json",
                    "scheduler/*.json",
                    "text_encoder/*.json",
                    "text_encoder/*.safetensors",
                    "text_encoder_2/*.json",
                    "text_encoder_2/*.safetensors",
                    "tokenizer/*",
                    "tokenizer_2/*",
                    "transformer/*.json",
                    "transformer/*.safetensors",
                    "vae/*.json",
                    "vae/*.safetensors",
                ),
                33_700_000_000,
            ),
        ),
    ),
    ModelSpec(
        name="sdxl-inpaint",
        role="first frame",
        classes=("StableDiffusionXLInpaintPipeline",),
        licence="CreativeML Open RAIL++-M",
        note="Fills the holes of the first frame; the smaller of the two.",
        title="Stable Diffusion XL inpainting",
        terms=(
            "The model may not be used to harm: not against the law, nor to exploit, deceive, defame, harass or "
            "discriminate; commercial use is allowed. Who passes it or its pictures on has to say so."
        ),
        parts=(
            Part(
                "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
                (
                    "model_index.json",
                    "scheduler/*.json",
                    "text_encoder/config.json",
                    "text_encoder/model.fp16.safetensors",
                    "text_encoder_2/config.json",
                    "text_encoder_2/model.fp16.safetensors",
                    "tokenizer/*",
                    "tokenizer_2/*",
                    "unet/config.json",
                    "unet/diffusion_pytorch_model.fp16.safetensors",
                    "vae/config.json",
                    "vae/diffusion_pytorch_model.fp16.safetensors",
                ),
                6_940_000_000,  # 3.47e9 parameters
            ),
        ),
    ),
    ModelSpec(
        name="blip",
        role="captions",
        classes=("BlipForConditionalGeneration",),
        licence="BSD-3-Clause",
        note="Suggests a prompt from the clip's middle frame.",
        title="BLIP",
        parts=(
            Part(
                "Salesforce/blip-image-captioning-large",
                ("*.json", "vocab.txt", "model.safetensors"),
                1_880_000_000,
            ),
        ),
    ),
    ModelSpec(
        name="blip-2",
        role="captions",
        classes=("Blip2ForConditionalGeneration",),
        licence="MIT; its language model: Meta's OPT-175B licence",
        note="The captioner of the InverseCrafter paper.",
        title="BLIP-2",
        terms="Its language model, OPT, may be used for research only, not commercially.",
        parts=(Part("Salesforce/blip2-opt-2.7b", ("*.json", "merges.txt", "*.safetensors"), 15_500_000_000),),
    ),
    ModelSpec(
        name="taew2.1",
        role="previews",
        classes=("our own",),
        licence="MIT",
        note="A tiny video autoencoder for Wan 2.1's latents: sharper previews.",
        title="TAEW 2.1",
        parts=(Part("OzzyGT/taew2_1", ("taew2_1.safetensors",), 22_700_000),),
    ),
    ModelSpec(
        name="vgg16",
        role="metric",
        classes=("our own",),
        licence="BSD-3-Clause",
        note="For LPIPS, the perceptual distance.",
        title="VGG16",
        parts=(
            Part(
                "timm/vgg16.tv_in1k",
                ("model.safetensors",),
                553_434_000,
                "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
            ),
        ),
    ),
    ModelSpec(
        name="dinov2-small",
        role="metric",
        classes=("Dinov2Model",),
        licence="Apache-2.0",
        note="For the DINO distance to the source and to the truth.",
        title="DINOv2-small",
        parts=(
            Part(
                "facebook/dinov2-small",
                ("config.json", "model.safetensors"),
                88_251_000,
                "ed25f3a31f01632728cabb09d1542f84ab7b0056",
            ),
        ),
    ),
    ModelSpec(
        name="dino-vitb16",
        role="metric",
        classes=("ViTModel",),
        licence="Apache-2.0",
        note="For VBench's subject consistency.",
        title="DINO ViT-B/16",
        parts=(
            Part(
                "facebook/dino-vitb16",
                ("config.json", "model.safetensors"),
                343_200_000,
                "5d8edb1c2c6bc8f42bd159f8b53dad38f7f9a387",  # safetensors are in a pull request only
            ),
        ),
    ),
    ModelSpec(
        name="clip-vit-b32",
        role="metric",
        classes=("CLIPModel",),
        licence="MIT",
        note="For the CLIP score, and VBench's background consistency.",
        title="CLIP ViT-B/32",
        parts=(
            Part(
                "openai/clip-vit-base-patch32",
                ("config.json", "merges.txt", "vocab.json", "tokenizer*.json", "model.safetensors"),
                608_600_000,
                "c237dc49a33fc61debc9276459120b7eac67e7ef",  # safetensors are in a pull request only
            ),
        ),
    ),
    ModelSpec(
        name="pickscore",
        role="metric",
        classes=("CLIPModel",),
        licence="none stated",
        note="PickScore: which picture people would prefer for a prompt.",
        title="PickScore",
        terms="Its authors state no licence for the weights; ask them before any use but research.",
        parts=(
            Part(
                "yuvalkirstain/PickScore_v1",
                ("config.json", "merges.txt", "vocab.json", "tokenizer*.json", "model.safetensors"),
                3_948_000_000,
                "dc2ed378e35ed7046987c680120123faa75b4559",
            ),
        ),
    ),
    ModelSpec(
        name="videomae-base",
        role="metric",
        classes=("VideoMAEModel",),
        licence="CC BY-NC 4.0",
        note="For FVD, the distance between two sets of videos.",
        title="VideoMAE",
        terms="It may not be used commercially; who passes it on has to name its authors.",
        parts=(
            Part(
                "MCG-NJU/videomae-base",
                ("config.json", "model.safetensors"),
                377_000_000,
                "a6c2a8d371a8690497d78eee21fdb4fbfcf796da",
            ),
        ),
    ),
    ModelSpec(
        name="qwen2.5-vl-3b",
        role="metric",
        classes=("Qwen2_5_VLForConditionalGeneration",),
        licence="Qwen Research License",
        note="Asked whether a video shows what the prompt says, and whether it looks real.",
        title="Qwen2.5-VL 3B",
        terms="It may be used for research and evaluation only, not commercially; who passes it on names its makers.",
        parts=(
            Part(
                "Qwen/Qwen2.5-VL-3B-Instruct",
                ("*.json", "merges.txt", "*.safetensors"),
                7_521_000_000,
                "66285546d2b821cf421d4f5eb2576359d3770cd3",
            ),
        ),
    ),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in SPECS}

# Asked for by name, and not served: they differ in how the sampler has to go.
NOT_SERVED = {
    re.compile(r"wan2[._]?2.*a14b", re.I): "it has two transformers, one for each half of the noise levels",
    re.compile(r"wan2[._]?2.*(ti2v|5b)(?!.*diffusers)", re.I): "of it the diffusers layout is, as wan2.2-ti2v-5b",
}


def of_role(role: str) -> list[ModelSpec]:
    """The models for a role of `ROLES`, in the table's order."""
    return [spec for spec in SPECS if spec.role == role]


def find(ref: str) -> ModelSpec | None:
    """The entry of the table that a name or a hub id means; None for a model that is not in it."""
    named = (spec for spec in SPECS if ref.casefold() in (spec.name, spec.ref.casefold()))
    return next(named, None)


def title_of(ref: str) -> str:
    """A model in a sentence: a title of the table, else a name or hub id, or a folder's name without its place."""
    spec = find(ref)
    if spec is not None:
        return spec.title or spec.name
    return Path(ref).name if Path(ref).is_dir() else ref


def check_accepted(ref: str, accepted: Collection[str]) -> None:
    """Raises `InputError` if `ref` is a model whose terms have to be accepted, and its name is not in `accepted`."""
    spec = find(ref)
    if spec is not None and spec.terms and spec.name not in accepted:
        raise InputError(
            f"The model {spec.name} ({size(spec.download_bytes)}, {spec.licence}) waits for you to accept its terms; "
            f"nothing is fetched before. {spec.terms} To accept them, tick the box below the choice of the model; on "
            f"the command line give --accept {spec.name}."
        )


def size(count: int) -> str:
    """Bytes, for people: 16.3 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# --- for people -------------------------------------------------------------------------------------------------------
