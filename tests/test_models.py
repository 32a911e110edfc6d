"""The table, the hub's cache, Wan's own layout, and the configurations of the real models on the meta device."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_backbone
from safetensors.torch import load_file, save_file

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.models import hub, table
from pipeline.prior.backbone import Conditions
from pipeline.prior.load import fetch_parts, load_backbone, skeleton
from pipeline.prior.wan_layout import diffusers_key, load_original, original_config

CONFIGS = Path(__file__).parent / "configs"
CPU = {"device": "cpu", "dtype": torch.float32}

# --- the real models --------------------------------------------------------------------------------------------------

# tensors and parameters that each model has; and the size of a published file of its weights with bytes a parameter
PUBLISHED = {
    # alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP, diffusion_pytorch_model.safetensors
    "wan2.1-fun-1.3b-inp-transformer": (983, 1_564_428_608, 3_128_957_992, 2),
    "wan2.1-i2v-14b-transformer": (1303, 16_394_878_784, None, 4),
    # Wan-AI/Wan2.1-T2V-1.3B-Diffusers, vae/diffusion_pytorch_model.safetensors
    "wan2.1-vae": (194, 126_892_531, 507_591_892, 4),
    # Wan-AI/Wan2.2-TI2V-5B-Diffusers, text_encoder: three files
    "umt5-xxl-encoder": (242, 5_680_910_336, 4_935_812_536 + 4_983_103_192 + 1_442_935_480, 2),
    # as counted by the Wan team: 5.0 and 0.7 billion
    "wan2.2-ti2v-5b-transformer": (825, 4_999_787_712, None, 4),
    "wan2.2-vae": (196, 704_688_668, None, 4),
    "clip-vit-h-vision": (519, 630_766_080, None, 2),
    # stabilityai/stable-video-diffusion-img2vid-xt, each .fp16.safetensors
    "svd-image-encoder": (520, 632_076_800, 1_264_217_240, 2),
    "svd-vae": (374, 97_742_847, 195_531_910, 2),
    "depthcrafter-unet": (1428, 1_524_623_082, 3_049_435_868, 2),
    # depth-anything/Depth-Anything-V2-Small-hf, model.safetensors
    "depth-anything-v2-small": (287, 24_785_089, 99_173_660, 4),
    "sam2-hiera-tiny": (464, 38_945_986, None, 4),  # 38.9 M in facebookresearch/sam2's README
}


def on_meta(name: str) -> torch.nn.Module:
    """The model of a configuration in tests/configs, without memory for its weights."""
    import diffusers
    import transformers

    config = json.loads((CONFIGS / f"{name}.json").read_text())
    assert config.pop("_source")
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config.pop("_class_name"))(**config)
        cls = getattr(transformers, config["architectures"][0])
        return cls(cls.config_class.from_dict(config))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_real_models_have_the_published_sizes(name):
    tensors, parameters, file_bytes, each = PUBLISHED[name]
    found = [parameter.numel() for parameter in on_meta(name).parameters()]  # those that are shared count once
    assert (len(found), sum(found)) == (tensors, parameters)
    if file_bytes is not None:
        header = file_bytes - each * parameters  # a safetensors header names each tensor, in about 100 bytes
        assert 50 * tensors < header < 200 * tensors


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PUBLISHED)


# --- Wan's own layout -------------------------------------------------------------------------------------------------


def original_shapes(*, dim, ffn, layers, channels, image=True, first_last=False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of WanModel in Wan-Video/Wan2.1, wan/modules/model.py."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def layer_norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    shapes["patch_embedding.weight"], shapes["patch_embedding.bias"] = (dim, channels, 1, 2, 2), (dim,)
    for name, *size in (
        ("text_embedding.0", 4096, dim), ("text_embedding.2", dim, dim), ("time_embedding.0", 256, dim),
        ("time_embedding.2", dim, dim), ("time_projection.1", dim, 6 * dim), ("head.head", dim, 64),
    ):  # fmt: skip
        linear(name, *size)
    shapes["head.modulation"] = (1, 2, dim)
    for block in (f"blocks.{index}" for index in range(layers)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for name in "qkvo":
                linear(f"{attention}.{name}", dim, dim)
            shapes[f"{attention}.norm_q.weight"] = shapes[f"{attention}.norm_k.weight"] = (dim,)
        if image:
            linear(f"{block}.cross_attn.k_img", dim, dim)
            linear(f"{block}.cross_attn.v_img", dim, dim)
            shapes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        layer_norm(f"{block}.norm3", dim)
        linear(f"{block}.ffn.0", dim, ffn)
        linear(f"{block}.ffn.2", ffn, dim)
        shapes[f"{block}.modulation"] = (1, 6, dim)
    if image:
        layer_norm("img_emb.proj.0", 1280)
        linear("img_emb.proj.1", 1280, 1280)
        linear("img_emb.proj.3", 1280, dim)
        layer_norm("img_emb.proj.4", dim)
    if first_last:
        shapes["img_emb.emb_pos"] = (1, 514, 1280)
    return shapes


SMALL, LARGE = dict(dim=1536, ffn=8960, layers=30), dict(dim=5120, ffn=13824, layers=40)
# By these fingerprints of names and shapes modelscope/DiffSynth-Studio (diffsynth/configs/model_configs.py) tells the
# published checkpoints apart: so the names and shapes above are those of the real files.
FINGERPRINTS = {
    "PAI/Wan2.1-Fun-1.3B-InP": ("6d6ccde6845b95ad9114ab993d917893", dict(SMALL, channels=36)),
    "PAI/Wan2.1-Fun-14B-InP": ("6bfcfb3b342cb286ce886889d519a77e", dict(LARGE, channels=36)),
    "Wan-AI/Wan2.1-T2V-1.3B": ("9269f8db9040a9d860eaca435be61814", dict(SMALL, channels=16, image=False)),
    "Wan-AI/Wan2.1-T2V-14B": ("aafcfd9672c3a2456dc46e1cb6e52c70", dict(LARGE, channels=16, image=False)),
    "Wan-AI/Wan2.1-FLF2V-14B-720P": (
        "3ef3b1f8e1dab83d5b71fd7b617f859f",
        dict(LARGE, channels=36, first_last=True),
    ),
}


@pytest.mark.parametrize("checkpoint", FINGERPRINTS)
def test_the_original_names_and_shapes_are_those_of_the_published_files(checkpoint):
    fingerprint, arguments = FINGERPRINTS[checkpoint]
    shapes = original_shapes(**arguments)
    named = [*shapes, *(f"{key}:{'_'.join(map(str, shape))}" for key, shape in shapes.items())]
    assert hashlib.md5(",".join(sorted(named)).encode()).hexdigest() == fingerprint


@pytest.mark.parametrize(
    ("checkpoint", "config"),
    [
        ("PAI/Wan2.1-Fun-1.3B-InP", "wan2.1-fun-1.3b-inp-transformer"),
        ("PAI/Wan2.1-Fun-14B-InP", "wan2.1-i2v-14b-transformer"),
    ],
)
def test_every_original_tensor_has_its_place_and_none_is_left_over(checkpoint, config):
    shapes = original_shapes(**FINGERPRINTS[checkpoint][1])
    transformer = on_meta(config)
    renamed = {diffusers_key(key): torch.Size(shape) for key, shape in shapes.items()}
    assert len(renamed) == len(shapes)
    assert renamed == {key: tensor.shape for key, tensor in transformer.state_dict().items()}
    found = original_config("it", shapes)
    expected = json.loads((CONFIGS / f"{config}.json").read_text())
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}.items() <= (
        expected.items()
    )


def test_the_renaming_is_that_of_diffusers():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    shapes = original_shapes(dim=8, ffn=16, layers=2, channels=36)
    theirs = convert_wan_transformer_to_diffusers({key: key for key in shapes})
    assert {diffusers_key(key): key for key in shapes} == theirs


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", "text-to-video model: it takes 16 channels"),
        ("Wan-AI/Wan2.1-FLF2V-14B-720P", "first and last frames.*img_emb.emb_pos"),
    ],
)
def test_other_checkpoints_are_refused_by_what_they_are(checkpoint, message):
    with pytest.raises(InputError, match=message) as caught:
        original_config(checkpoint, original_shapes(**FINGERPRINTS[checkpoint][1]))
    assert "wan2.1-fun-1.3b-inp" in str(caught.value)


def test_strange_tensors_are_named():
    shapes = original_shapes(dim=8, ffn=16, layers=1, channels=48)
    with pytest.raises(InputError, match=r"a control model.*ref_conv.weight"):
        original_config("control", shapes | {"ref_conv.weight": (8, 16, 2, 2)})
    with pytest.raises(InputError, match="no Wan transformer"):
        original_config("bert", {"embeddings.weight": (3, 3)})
    assert diffusers_key("blocks.0.norm2.weight") is None and diffusers_key("blocks.x.norm3.weight") is None


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """The same tiny random weights, with an image branch, in the diffusers layout and in Wan's own."""
    diffusers_layout = make_backbone(tmp_path_factory.mktemp("diffusers"), text_tokens=512, image_branch=True)
    original = shutil.copytree(diffusers_layout, tmp_path_factory.mktemp("original") / "model")
    (original / "model_index.json").unlink()
    shutil.rmtree(original / "transformer")
    weights = load_file(diffusers_layout / "transformer" / "diffusion_pytorch_model.safetensors")
    shapes = original_shapes(dim=24, ffn=48, layers=2, channels=36)
    old = {diffusers_key(key): key for key in shapes}
    save_original(original, {old[key]: tensor for key, tensor in weights.items()})
    # as VideoX-Fun writes it
    config = {"_class_name": "WanModel", "dim": 24, "num_heads": 2, "eps": 1e-06, "model_type": "i2v", "in_dim": 36}
    (original / "config.json").write_text(json.dumps(config))
    return diffusers_layout, original


def save_original(folder: Path, weights: dict[str, torch.Tensor], files: int = 1) -> None:
    keys = sorted(weights)
    for index in range(files):
        name = f"-{index + 1:05}-of-{files:05}" if files > 1 else ""
        part = {key: weights[key].contiguous() for key in keys[index::files]}
        save_file(part, folder / f"diffusion_pytorch_model{name}.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_layouts_give_the_same_velocity(pair, dtype):
    results, weights = [], []
    for folder in pair:
        backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
        weights.append(backbone.transformer.state_dict())
        for tensor in backbone.transformer.parameters():  # as read from a file they may lie at odd addresses
            tensor.data = tensor.data.clone()
        video = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        condition = backbone.condition(video, torch.ones(5, 1, 32, 48))
        text, image = backbone.embed("a red ball"), backbone.embed_image(video[0])
        z = backbone.noise(5, 32, 48, 0)
        results.append(backbone.velocity(z, 0.7, Conditions(condition, text, backbone.embed(""), 3.0, image)))
        assert backbone.settings.frames == 5 and backbone.shift == 3.0  # of recapture.json and the scheduler
        kinds = {name: tensor.dtype for name, tensor in backbone.transformer.state_dict().items()}
        assert kinds["blocks.0.attn1.to_q.weight"] == dtype and kinds["scale_shift_table"] == torch.float32
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert torch.equal(*results) and results[0].abs().max() > 0


def test_an_original_transformer_in_several_files(pair, tmp_path):
    _, original = pair
    weights = load_file(original / "diffusion_pytorch_model.safetensors")
    shutil.copy(original / "config.json", tmp_path)
    save_original(tmp_path, weights, files=3)
    files = sorted(tmp_path.glob("*.safetensors"))
    loaded = load_original("three", files, torch.float32).state_dict()
    assert all(torch.equal(loaded[diffusers_key(key)], tensor) for key, tensor in weights.items())
    with pytest.raises(InputError, match=r"diffusion_pytorch_model-00003-of-00003\.safetensors are missing"):
        files[2].unlink()
        load_original("two", files[:2], torch.float32)
    save_original(tmp_path, {key: tensor for key, tensor in weights.items() if ".1.self_attn." not in key})
    for file in files[:2]:
        file.unlink()
    with pytest.raises(InputError, match=r"not complete.*blocks\.1\.attn1.* and 7 more; fetch them again"):
        load_original("one", [tmp_path / "diffusion_pytorch_model.safetensors"], torch.float32)


def test_misshapen_and_broken_weights_are_refused(pair, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "copy")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_original(folder, weights | {"blocks.1.self_attn.q.weight": torch.zeros(24, 23)})
    with pytest.raises(InputError, match=r"another shape.*blocks\.1\.self_attn\.q\.weight"):
        load_backbone(str(folder), **CPU)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(str(folder), **CPU)


def test_missing_weights_are_not_filled_with_noise(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "copy")
    for component, name in (("text_encoder", "model"), ("transformer", "diffusion_pytorch_model")):
        file = folder / component / f"{name}.safetensors"
        weights = load_file(file)
        weights.pop(next(key for key in weights if key.startswith(("encoder.block.1.", "blocks.1."))))
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"transformer.*not complete.*fetch"):
        load_backbone(str(folder), **CPU)
    shutil.copytree(pair[0] / "transformer", folder / "transformer", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"text_encoder.*not complete.*fetch"):
        load_backbone(str(folder), **CPU)


def test_the_image_encoder_of_the_hub_brings_a_projection_that_is_not_used(pair, tmp_path):
    # diffusers' conversion script saves CLIPVisionModelWithProjection; only hidden states are read.
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = shutil.copytree(pair[0], tmp_path / "copy")
    config = CLIPVisionConfig.from_pretrained(folder / "image_encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    seen = load_backbone(str(folder), **CPU).embed_image(torch.rand(3, 40, 60))
    assert seen is not None and seen.shape == (5, 32) and seen.any()


# --- the hub's cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, and a hub that is never asked."""
    import huggingface_hub
    from huggingface_hub import constants

    cache, ask = tmp_path / "hub", huggingface_hub.snapshot_download

    def only_local(*given, local_files_only=False, **options):
        if not local_files_only:
            raise OSError("no network")
        return ask(*given, local_files_only=True, cache_dir=cache, **options)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", only_local)
    return cache


def put(cache: Path, part: table.Part, source: Path) -> Path:
    """Files into a cache as the hub's client keeps them, links to blobs left aside."""
    revision = part.revision or "0" * 40
    repository = cache / f"models--{part.repo.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    folder = repository / "snapshots" / revision
    for file in (file for pattern in part.files for file in source.glob(pattern)):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


def fill(cache: Path, spec: table.ModelSpec, source: Path) -> None:
    for part in spec.parts:
        put(cache, part, source)


FUN = table.MODELS["wan2.1-fun-1.3b-inp"]


def test_the_default_model_loads_from_parts_of_three_repositories(hub_cache, pair):
    fill(hub_cache, FUN, pair[1])
    assert hub.at_hand(FUN.name) and len({part.repo for part in FUN.parts}) == 3
    backbone = load_backbone(FUN.name, **CPU)
    assert backbone.has_image_branch and backbone.image_encoder is not None
    assert (backbone.name, backbone.frames, backbone.steps, backbone.shift) == (FUN.name, 81, 50, 3.0)
    assert hub.loading(FUN.name) == f"Loading the model {FUN.name}"
    assert fetch_parts(FUN.ref) == fetch_parts(FUN.name)  # its hub id means the same


def test_what_is_not_in_the_cache_is_named_with_size_and_command(hub_cache, pair):
    fill(hub_cache, FUN, pair[1])
    shutil.rmtree(hub_cache / "models--Wan-AI--Wan2.2-TI2V-5B-Diffusers")
    assert hub.at_hand(FUN.name) is None
    assert hub.loading(FUN.name) == f"Downloading the model {FUN.name} (11.4 GB, Apache-2.0), then loading it"
    message = r"11\.4 GB are missing.*python -m pipeline models --download wan2\.1-fun-1\.3b-inp\..*no network"
    with pytest.raises(InputError, match=message):
        load_backbone(FUN.name, **CPU)


def test_a_part_counts_only_when_it_is_whole(hub_cache, tmp_path):
    part = table.Part("a/b", ("config.json", "*.safetensors"), 1)
    for name in ("config.json", "m-00001-of-00003.safetensors", "m-00002-of-00003.safetensors"):
        (tmp_path / name).write_text("{}")
    assert hub.cached(part) is None
    folder = put(hub_cache, part, tmp_path)
    assert hub.cached(part) is None
    (folder / "m-00003-of-00003.safetensors").write_text("")
    assert hub.cached(part) == folder
    (folder / "config.json").unlink()
    assert hub.cached(part) is None
    assert hub.cached(table.Part("a/b", ("*.safetensors",), 1, revision="1" * 40)) is None


def test_a_lone_original_transformer_takes_the_encoders_from_the_cache(hub_cache, pair, tmp_path):
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(pair[1] / file, tmp_path)
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"Wan-AI/Wan2\.2-TI2V-5B-Diffusers.*hf download"):
        load_backbone(str(tmp_path), **CPU)
    for part in table.WAN_ENCODERS:
        put(hub_cache, part, pair[1])
    root, folders = fetch_parts(str(tmp_path))
    assert folders["transformer"] == root == tmp_path and folders["vae"].is_relative_to(hub_cache)
    assert load_backbone(str(tmp_path), **CPU).has_image_branch


@pytest.mark.slow  # another process has to import the libraries
def test_offline_with_a_filled_cache(pair, tmp_path):
    cache = tmp_path / "hub"
    fill(cache, FUN, pair[1])
    code = (
        "import sys, torch\nfrom pipeline.prior.load import load_backbone\n"
        "for name in sys.argv[1:]:\n    print(load_backbone(name, device='cpu', dtype=torch.float32).name)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, FUN.name, "wan2.1-fun-14b-inp"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.stdout.split() == [FUN.name]
    assert "InputError: The model 'wan2.1-fun-14b-inp' is not on this machine; 32.8 GB are missing" in done.stderr


def test_a_full_disk_is_noticed_before_the_download(hub_cache, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(InputError, match=r"needs 16\.3 GB on the disk, and 1\.0 GB are free.*HF_HOME"):
        hub.download(FUN)


def test_gated_models_say_where_to_log_in(monkeypatch, hub_cache):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    class Gated(GatedRepoError):
        def __init__(self):
            OSError.__init__(self, "gated")

    def refuse(*_, local_files_only=False, **__):
        raise OSError if local_files_only else Gated()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"huggingface\.co/black-forest-labs/FLUX\.1-Fill-dev.*hf auth login"):
        hub.download(table.MODELS["flux-fill"], ["flux-fill"])


# --- the table --------------------------------------------------------------------------------------------------------


def test_terms_are_accepted_before_anything_is_fetched(hub_cache):
    for name in ("depthcrafter", "flux-fill", "blip-2"):
        spec = table.MODELS[name]
        with pytest.raises(InputError, match=f"accept its terms.*--accept {name}") as caught:
            hub.download(spec)
        assert spec.terms in str(caught.value)
        table.check_accepted(spec.ref, [name])
        with pytest.raises(InputError, match="accept its terms"):
            table.check_accepted(spec.ref.upper(), ["another"])
    table.check_accepted("nano", [])
    table.check_accepted("someone/else", [])


def test_the_table_is_complete():
    assert {spec.role for spec in table.MODELS.values()} == set(table.ROLES)
    for name, spec in table.MODELS.items():
        assert spec.name == name and spec.classes and spec.licence and spec.note
        assert [spec.local, bool(spec.parts), bool(spec.by_hand)].count(True) == 1
        assert spec.local == (spec.download_bytes == 0)
        assert all(part.files and part.download_bytes > 0 for part in spec.parts)
        assert not any(pattern.endswith((".bin", ".pt", ".pth")) for part in spec.parts for pattern in part.files)
        free = spec.licence in ("Apache-2.0", "MIT", "BSD-3-Clause")
        assert free != bool(spec.terms), "what a licence forbids has to be said, and accepted"
    for spec in table.of_role("backbone"):
        if not spec.local:
            parts = [component for part in spec.parts for component in part.components]
            wanted = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
            if spec.configs["transformer"]["image_dim"] is not None:
                wanted = ["image_encoder", "image_processor", *wanted]
            assert sorted(parts) == wanted


def test_download_sizes_are_those_of_the_weights():
    for name, parts in {
        "wan2.1-fun-1.3b-inp": (("wan2.1-fun-1.3b-inp-transformer", 2),),
        "wan2.1-fun-14b-inp": (("wan2.1-i2v-14b-transformer", 2),),
        "wan2.1-i2v-14b-480p": (("wan2.1-i2v-14b-transformer", 4),),
        "wan2.2-ti2v-5b": (("wan2.2-ti2v-5b-transformer", 4), ("wan2.2-vae", 4), ("umt5-xxl-encoder", 2)),
        "depthcrafter": (("depthcrafter-unet", 2), ("svd-vae", 2), ("svd-image-encoder", 2)),
        "depth-anything-v2-small": (("depth-anything-v2-small", 4),),
        "sam2-hiera-tiny": (("sam2-hiera-tiny", 4),),
    }.items():
        if name.startswith("wan2.1"):
            parts += (("umt5-xxl-encoder", 2), ("wan2.1-vae", 4), ("svd-image-encoder", 2))
        weights = sum(PUBLISHED[config][1] * each for config, each in parts)
        assert math.isclose(table.MODELS[name].download_bytes, weights, rel_tol=0.01)
    # of rank 32 and 16 bits, for eight layers as wide as the model and two of the feed-forward network in each block
    lora = 30 * 32 * 2 * (8 * (1536 + 1536) + 2 * (1536 + 8960))
    assert math.isclose(table.MODELS["causvid-lora"].download_bytes, lora, rel_tol=0.01)


@pytest.mark.parametrize("name", ["wan2.1-fun-1.3b-inp", "wan2.1-fun-14b-inp", "wan2.1-i2v-14b-480p"])
def test_the_configurations_of_the_table_are_the_published_ones(name):
    transformer = "wan2.1-fun-1.3b-inp-transformer" if "1.3b" in name else "wan2.1-i2v-14b-transformer"
    published = (transformer, "wan2.1-vae", "umt5-xxl-encoder", "clip-vit-h-vision")
    parts = skeleton(table.MODELS[name])
    for part, config in zip(("transformer", "vae", "text_encoder", "image_encoder"), published, strict=True):
        found = [parameter.numel() for parameter in parts[part].parameters()]
        assert (len(found), sum(found)) == PUBLISHED[config][:2]


def test_the_configuration_of_ti2v_is_the_published_one():
    parts = skeleton(table.MODELS["wan2.2-ti2v-5b"])
    for part, config in (("transformer", "wan2.2-ti2v-5b-transformer"), ("vae", "wan2.2-vae")):
        found = {name: value.shape for name, value in parts[part].named_parameters()}
        assert found == {name: value.shape for name, value in on_meta(config).named_parameters()}
    assert set(parts) == {"transformer", "vae", "text_encoder"}


def test_models_of_wan_2_2_say_why_not(tmp_path):
    for ref, reason in {
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers": "two transformers",
        "alibaba-pai/Wan2.2-Fun-A14B-InP": "two transformers",
        "Wan-AI/Wan2.2-TI2V-5B": "diffusers layout is, as wan2.2-ti2v-5b",
    }.items():
        with pytest.raises(InputError, match=f"not served: .*{reason}.*wan2.1-fun-1.3b-inp"):
            hub.resolve(ref)
    (tmp_path / "high_noise_model").mkdir()
    with pytest.raises(InputError, match="two transformers"):
        hub.resolve(str(tmp_path))


def test_models_of_other_roles_are_no_backbones():
    with pytest.raises(InputError, match="is for masks, not a video model"):
        load_backbone("sam2-hiera-tiny", **CPU)
    from pipeline.depth.load import load_depth_model

    with pytest.raises(InputError, match="is for masks, not for depth"):
        load_depth_model("sam2-hiera-tiny")


def test_the_default_backbone_needs_a_gpu_and_its_weights(hub_cache, pair):
    name, why = hub.default_backbone(cuda=False)
    assert name == "nano" and "no CUDA GPU" in why
    name, why = hub.default_backbone(cuda=True)
    assert name == "nano" and "16.3 GB, Apache-2.0" in why
    assert why.endswith("python -m pipeline models --download wan2.1-fun-1.3b-inp")
    fill(hub_cache, FUN, pair[1])
    assert hub.default_backbone(cuda=True)[0] == FUN.name


def test_the_command_prints_the_table_and_gets_models(hub_cache, pair, capsys):
    fill(hub_cache, FUN, pair[1])
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line and not line.startswith(" ")}
    assert rows["wan2.1-fun-1.3b-inp"].split() == ["wan2.1-fun-1.3b-inp", "backbone", "Apache-2.0", "16.3", "GB", "yes"]
    assert rows["depthcrafter"].endswith("4.5 GB    no") and "comes with the program" in rows["nano"]
    assert table.MODELS["depthcrafter"].terms in said
    assert main(["models", "--download", FUN.name]) == 0
    assert capsys.readouterr().out.splitlines() == [str(hub.cached(part)) for part in FUN.parts]
    assert main(["models", "--download", "depthcrafter"]) == 2
    assert "--accept depthcrafter" in capsys.readouterr().err
    assert main(["models", "--download", "depthcrafter", "--accept", "depthcrafter"]) == 2
    assert "4.5 GB are missing" in capsys.readouterr().err
    assert main(["models", "--download", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_model_is_offered_only_where_it_can_be_had(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from huggingface_hub import constants

    from pipeline.models import hub

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, "at_hand", lambda ref: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    hub.hub_answers.cache_clear()
    assert hub.obtainable("depth-anything-v2-small")
    server.shutdown()
    server.server_close()
    hub.hub_answers.cache_clear()
    assert not hub.obtainable("depth-anything-v2-small")
    monkeypatch.setattr(hub, "at_hand", Path)
    assert hub.obtainable("depth-anything-v2-small") and not hub.obtainable("no such model")
    hub.hub_answers.cache_clear()
