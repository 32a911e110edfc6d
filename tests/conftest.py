"""Fixtures that several test modules share, and how the tests are shared out to three processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes fill the cores: PyTorch's threads would wait for one another. It reads this when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# What takes longest comes first, so that no process is left with it in the end. All browser tests go to one process,
# which starts the app once, but for those that start one of their own; they wait a lot, and two other processes fill
# the cores meanwhile.
LONGEST = (
    "browser", "test_live.py", "test_nano.py", "test_zerogpu.py", "test_mask_encoder.py", "test_folders.py",
    "test_evaluation.py",
    "test_doctor.py", "test_render.py", "test_memory.py", "test_cli.py", "test_training.py", "test_depth.py",
)  # fmt: skip

# Tests that start processes or threads and watch them, whose moments a busy machine can shift.
PROCESSES = ("test_app.py", "test_child.py", "test_cli.py", "test_jobs_kept.py", "test_stop.py", "test_ui.py")


def room_of(nodeid: str) -> str:
    """The tests that run in one process, one after the other: those of a file, or all that drive the same app."""
    file = nodeid.split("::")[0].removeprefix("tests/")
    return "test_live.py" if file == "browser/test_live.py" else file.split("/")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(room_of(item.nodeid), len(rank)))
    for item in items:
        if item.get_closest_marker("browser") or room_of(item.nodeid) in PROCESSES:
            item.add_marker(pytest.mark.flaky(reruns=2))  # why: docs/decisions.md. The summary names what ran again


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A busy machine shifts the moments of a page: everything else makes way for the browser and its app.
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("browser") and hasattr(os, "nice"):
        os.nice(10 - os.nice(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return room_of(nodeid)

    return Rooms(config, log)


def make_backbone(folder: Path, *, channels: int = 16, text_tokens: int = 16, image_branch: bool = False) -> Path:
    """Write a backbone of the real classes with tiny random weights, in the layout of assets/nano. About 1 MB."""
    from diffusers import (
        AutoencoderKLWan,  # pyright: ignore[reportPrivateImportUsage]
        FlowMatchEulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
        WanTransformer3DModel,  # pyright: ignore[reportPrivateImportUsage]
    )
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    from pipeline.prior.mask_encoder import MaskEncoder

    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=torch.linspace(-0.2, 0.2, channels).tolist(),
        latents_std=torch.linspace(0.5, 1.5, channels).tolist(),
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
    ).save_pretrained(folder / "vae")
    MaskEncoder(
        latent_channels=channels,
        base_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temporal_downsample=[True, True],
        patch_size=2,
    ).save_pretrained(folder / "mask_encoder")
    WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2 * channels + 4,
        out_channels=channels,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        image_dim=32 if image_branch else None,
        added_kv_proj_dim=24 if image_branch else None,
    ).save_pretrained(folder / "transformer")

    vocabulary = "<pad> </s> <unk> a red green blue cube ball moves left right to the camera of"
    words = vocabulary.split()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=text_tokens
    ).save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    ).save_pretrained(folder / "text_encoder")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")

    index = {
        "_class_name": "WanImageToVideoPipeline",
        "vae": ["diffusers", "AutoencoderKLWan"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "image_encoder": [None, None],
        "image_processor": [None, None],
    }
    if image_branch:
        _write_image_encoder(folder)
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = {
        "frames": 5,
        "length": 5,
        "pixels": 32 * 48,
        "steps": 3,
        "guidance_scale": 3.0,
        "replace_guidance_scale": 7.0,
        "text_tokens": text_tokens,
        "mask_encoder": "mask_encoder",
        "latent_rgb": {"weight": (torch.randn(channels, 3) * 0.1).tolist(), "bias": [0.5, 0.5, 0.5]},
    }
    (folder / "recapture.json").write_text(json.dumps(settings))
    return folder


def _write_image_encoder(folder: Path) -> None:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder / "image_encoder")
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "image_processor"
    )


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder with tiny random weights: 16 latent channels, 5 frames of 32x48, no image branch.

    Load it with `load_backbone(str(folder), device="cpu", dtype=torch.float32)`.
    """
    return make_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images and a clip with depth, in both splits: the left is nearer, the right invalid."""
    import av
    import cv2
    import numpy as np

    folder = tmp_path_factory.mktemp("pairs")
    (folder / "images").mkdir()
    lines = []
    disparity = np.linspace(1, 0, 64)[None].repeat(48, 0)
    for name, split, value in (("a", "train", "disparity"), ("b", "train", "depth"), ("c", "val", "disparity")):
        picture = (255 * np.stack([disparity, disparity.T[:48, :48].repeat(2, 1)[:, :64], 1 - disparity], -1)).astype(
            "u1"
        )
        grey = np.maximum(1, 65535 * disparity).astype("u2")
        grey[:, -4:] = 0
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), picture)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), grey)
        lines.append({"id": name, "kind": "image", "value": value, "quality": "high", "source": "s", "split": split})
    clip = folder / "clips" / "d"
    clip.mkdir(parents=True)
    with av.open(str(clip / "rgb.mp4"), "w") as rgb, av.open(str(clip / "depth.mp4"), "w") as depth:
        for file, name, options in ((rgb, "yuv420p", {}), (depth, "yuv420p10le", {"crf": "0"})):
            stream = file.add_stream("libx264", rate=8, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, name
        code = np.round(64 + 959 * disparity).astype("u2")
        code[:, -4:] = 0
        luma = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, values in zip(luma.planes, (code, 512, 512), strict=True):
            rows = np.zeros((plane.height, plane.line_size // 2), "u2")
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        for t in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * t, "u1"), "rgb24")
            rgb.mux(rgb.streams.video[0].encode(frame))
            luma.pts = t
            depth.mux(depth.streams.video[0].encode(luma))
        for file in (rgb, depth):
            file.mux(file.streams.video[0].encode())
    lines.append(
        {"id": "d", "kind": "clip", "value": "disparity", "quality": "medium", "source": "s", "split": "train"}
    )
    (folder / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder
