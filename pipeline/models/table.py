"""The table of models: what each one is for, where it comes from, under which licence, and how large it is.

Nothing is downloaded unasked, and what is in the hub's cache is taken from there without asking the network. Weights
are fetched as safetensors only, never as pickles.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import InputError

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("backbone", "fast mode", "depth", "masks", "first frame", "captions", "previews", "metric")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")
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
    components' published configurations have other than their classes' defaults.
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

    @property
    def local(self) -> bool:
        """Whether the model comes with the program."""
        return self.folder is not None

    @property
    def ref(self) -> str:
        """The folder, or the hub id of the first part."""
        return self.folder if self.folder is not None else self.parts[0].repo

    @property
    def download_bytes(self) -> int:
        """What has to be fetched before the first use, about; 0 for what comes with the program."""
        return sum(part.download_bytes for part in self.parts)


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

_SPECS = (
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
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}

# Asked for by name, and not served: they differ in how the sampler has to go.
_NOT_SERVED = {
    re.compile(r"wan2[._]?2.*a14b", re.I): "it has two transformers, one for each half of the noise levels",
    re.compile(
        r"wan2[._]?2.*(ti2v|5b)", re.I
    ): "it keeps the first frame clean inside the noise (a time for each token)",
}


def of_role(role: str) -> list[ModelSpec]:
    """The models for a role of `ROLES`, in the table's order."""
    return [spec for spec in _SPECS if spec.role == role]


def find(ref: str) -> ModelSpec | None:
    """The entry of the table that a name or a hub id means; None for a model that is not in it."""
    named = (spec for spec in _SPECS if ref.casefold() in (spec.name, spec.ref.casefold()))
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


def resolve(ref: str) -> str:
    """The folder (absolute path) or hub id ("owner/name") that `ref` means; of several parts, the first.

    ref: a name of `MODELS`, a folder that holds a model_index.json or a transformer in Wan's own layout, or a hub id.
    Nothing is downloaded. Raises `InputError` for anything else, for a model that should have come with the program but
    is not there, and for models that are known not to work.
    """
    if ref in MODELS:
        spec = MODELS[ref]
        if spec.folder is None:
            return spec.ref
        folder = ROOT / spec.folder
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The weights of the model {ref!r} are missing: {folder} has no model_index.json.")
        return str(folder)
    folder = Path(ref).expanduser()
    if ref and folder.is_dir():
        if (folder / "high_noise_model").is_dir():
            raise InputError(f"The model in {ref!r} is a Wan 2.2 model with two transformers: not served. {_instead()}")
        if not (folder / "model_index.json").is_file() and not any(folder.glob(ORIGINAL_FILES)):
            raise InputError(
                f"The folder {ref!r} holds no model: it has no model_index.json, and no {ORIGINAL_FILES} as Wan's own "
                "layout has."
            )
        return str(folder.resolve())
    for pattern, reason in _NOT_SERVED.items():
        if pattern.search(ref):
            raise InputError(f"The model {ref!r} is not served: {reason}. {_instead()}")
    if _HUB_ID.fullmatch(ref):
        return ref
    raise InputError(
        f"Unknown model {ref!r}: give one of {', '.join(spec.name for spec in of_role('backbone'))}, a folder with a "
        "model_index.json, or a Hugging Face id of the form owner/name."
    )


def _instead() -> str:
    return f"Use one of {', '.join(spec.name for spec in of_role('backbone'))}."


def default_backbone(cuda: bool | None = None) -> tuple[str, str]:
    """The name of the backbone that this machine should use, and why, in plain words.

    The default on CUDA, once its weights are there; 16 GB are never downloaded because nobody said otherwise.
    cuda: whether there is a CUDA device; None to look.
    """
    if cuda is None:
        import torch

        cuda = torch.cuda.is_available()
    spec = MODELS["wan2.1-fun-1.3b-inp"]
    if not cuda:
        return "nano", "There is no CUDA GPU, so the small nano model is used."
    if in_cache(spec):
        return spec.name, f"There is a CUDA GPU, and the weights of {spec.name} are on this machine."
    return "nano", (
        f"There is a CUDA GPU, but the weights of {spec.name} ({size(spec.download_bytes)}, {spec.licence}) are not on "
        f"this machine, so the small nano model is used. This gets them: {command_for(spec)}"
    )


# --- the hub and its cache --------------------------------------------------------------------------------------------


def snapshot(part: Part) -> Path | None:
    """The folder of a part in the hub's cache, with all its files or some of them; the network is not asked."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(part.repo, revision=part.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def cached(part: Part) -> Path | None:
    """The folder of a part in the hub's cache, if all its files are there; the network is not asked."""
    folder = snapshot(part)
    return None if folder is None or lacking(folder, part.files) else folder


def in_cache(spec: ModelSpec) -> bool:
    """Whether a model can be loaded without the network."""
    return spec.local or all(cached(part) for part in spec.parts)


def at_hand(ref: str) -> Path | None:
    """The folder of a model that can be loaded without the network, of several parts the first; None if it cannot be.

    ref: a name of `MODELS`, a folder, or a hub id, of which it is not known what it should hold.
    """
    spec = find(ref)
    if spec is None:
        return Path(ref) if Path(ref).is_dir() else snapshot(Part(ref, (), 0))
    if spec.folder is not None:
        return ROOT / spec.folder
    return cached(spec.parts[0]) if in_cache(spec) else None


def locate(ref: str) -> Path:
    """As `at_hand`, for models that are not fetched unasked. Raises `InputError` that says what gets them."""
    folder = at_hand(ref)
    if folder is not None:
        return folder
    spec = find(ref)
    what = f"{title_of(ref)} ({size(spec.download_bytes)}, {spec.licence})" if spec else ref
    get = command_for(spec) if spec else f"hf download {ref}"
    raise InputError(f"The model {what} is not on this machine. This gets it: {get}")


def download(spec: ModelSpec, accepted: Collection[str] = ()) -> tuple[Path, ...]:
    """The folders of a model's parts, fetched first where they are not in the hub's cache.

    accepted: names of models whose terms the user accepted. Raises `InputError` if this model's are not among them,
    if the disk is too small, and, with the model's size and the command that gets it, if the hub cannot be reached.
    """
    if spec.folder is not None:
        return (Path(resolve(spec.name)),)
    check_accepted(spec.name, accepted)
    missing = [part for part in spec.parts if cached(part) is None]
    needed = sum(part.download_bytes for part in missing)
    if missing:
        _check_disk(spec.name, needed)
    try:
        return tuple(fetch(part.repo, part.files, part.revision) for part in spec.parts)
    except InputError as error:
        raise InputError(
            f"The model {spec.name!r} is not on this machine; {size(needed)} are missing, which this gets where there "
            f"is a network: {command_for(spec)}. {error}"
        ) from error


def fetch(hub_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder with these files (names or patterns, each has to match) of a model on the hub.

    From the hub's cache if they are all there, else downloaded; HF_HUB_OFFLINE, HF_HOME and their like are respected.
    Pickles are never fetched. Raises `InputError` that says what to do if the files cannot be had.
    """
    if folder := cached(Part(hub_id, tuple(files), 0, revision)):
        return folder
    folder = fetch_any(hub_id, files, revision)
    if missing := lacking(folder, files):
        raise InputError(f"{_unreachable(hub_id)} Missing: {', '.join(missing)}.")
    return folder


def fetch_any(hub_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """As `fetch`, of those files that match one of the patterns; for models of which it is not known what they hold."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{hub_id}"
    pickles = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=pickles))
    except GatedRepoError as error:
        raise InputError(
            f"The model {hub_id} is given only to those who accept its terms: do so on {page}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no model {hub_id} on the Hugging Face hub, or it is private; see {page}."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{_unreachable(hub_id)} {str(error).splitlines()[0]}") from error


def loading(ref: str) -> str:
    """What happens next when a model is loaded, in words; with what has to be downloaded for it first."""
    spec = find(ref)
    missing = [part for part in spec.parts if cached(part) is None] if spec else []
    if spec is None or not missing:
        return f"Loading the model {ref}"
    needed = size(sum(part.download_bytes for part in missing))
    return f"Downloading the model {ref} ({needed}, {spec.licence}), then loading it"


def command_for(spec: ModelSpec) -> str:
    """The command that gets a model of the table."""
    return f"python -m pipeline models --download {spec.name}" + (f" --accept {spec.name}" if spec.terms else "")


def size(count: int) -> str:
    """Bytes, for people: 16.3 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _unreachable(hub_id: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"The model {hub_id} is not (all) in the hub's cache ({HF_HUB_CACHE}), and could not be fetched from the "
        f"Hugging Face hub. Connect this machine, or run hf download {hub_id} on one that is connected and copy that "
        "folder."
    )


def lacking(folder: Path, files: Sequence[str]) -> list[str]:
    """The patterns that nothing in the folder matches, and the shards of weights that are missing by others' names."""
    missing = [pattern for pattern in files if not any(folder.glob(pattern))]
    for path in folder.glob("**/*.safetensors"):
        if found := _SHARD.fullmatch(path.name):
            stem, count = found.groups()
            others = (f"{stem}-{index:05}-of-{count}.safetensors" for index in range(1, int(count) + 1))
            missing += [name for name in others if not path.with_name(name).exists() and name not in missing]
    return missing


def _check_disk(name: str, needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The model {name!r} needs {size(needed)} on the disk, and {size(free)} are free in {HF_HUB_CACHE}; make "
            "room, or set HF_HOME to a folder on a larger disk."
        )


# --- for people -------------------------------------------------------------------------------------------------------


def table() -> str:
    """The table as text: name, role, licence, download, whether it is here; below, what licences forbid."""
    head = ("name", "role", "licence", "download", "here")
    rows = []
    for spec in _SPECS:
        here = "comes with the program" if spec.local else "yes" if in_cache(spec) else "no"
        rows.append((spec.name, spec.role, spec.licence, size(spec.download_bytes) if spec.parts else "none", here))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    lines += ["", "What they are:", *(f"  {spec.name}: {spec.note}" for spec in _SPECS)]
    lines += ["", "What is forbidden:", *(f"  {spec.name}: {spec.terms}" for spec in _SPECS if spec.terms)]
    lines += ["  The others may be used for anything that the law allows."]
    lines += ["", "Models may share parts, which are downloaded once. " + default_backbone()[1]]
    return "\n".join(lines)
