"""The tiny decoder: as published, weight for weight; causal; and used for previews only where its weights are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save, save_file

from pipeline import InputError
from pipeline.prior import backbone, tiny_vae
from pipeline.prior.load import load_backbone
from pipeline.prior.tiny_vae import SCALE, TinyDecoder, load_tiny_decoder

PUBLISHED_BYTES = 22_642_902  # of taew2_1.safetensors, in float16 (huggingface.co/OzzyGT/taew2_1)
PUBLISHED_TENSORS = 128


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
        shapes |= {f"{name}.conv.{layer}.weight": (width, inputs, 3, 3), f"{name}.conv.{layer}.bias": (width,)}
    return shapes


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes in taew2_1.safetensors, from the layers that github.com/madebyollin/taehv lists."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.0.weight": (64, 3, 3, 3), "encoder.0.bias": (64,)}
    for first, moments in ((2, 2), (7, 2), (12, 1)):
        shapes[f"encoder.{first}.conv.weight"] = (64, 64 * moments, 1, 1)
        shapes[f"encoder.{first + 1}.weight"] = (64, 64, 3, 3)
        for index in range(first + 2, first + 5):
            shapes |= block(f"encoder.{index}", 64)
    shapes |= {"encoder.17.weight": (16, 64, 3, 3), "encoder.17.bias": (16,)}
    shapes |= {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for first, width, moments, following in ((3, 256, 1, 128), (9, 128, 2, 64), (15, 64, 2, 64)):
        for index in range(first, first + 3):
            shapes |= block(f"decoder.{index}", width)
        shapes[f"decoder.{first + 4}.conv.weight"] = (width * moments, width, 1, 1)
        shapes[f"decoder.{first + 5}.weight"] = (following, width, 3, 3)
    return shapes | {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}


def test_the_list_of_weights_makes_the_published_file():
    shapes = published()
    assert len(shapes) == PUBLISHED_TENSORS
    assert len(save({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()})) == (
        PUBLISHED_BYTES
    )


def test_weights_are_named_and_shaped_as_published():
    own = {name: tuple(value.shape) for name, value in TinyDecoder().state_dict().items()}
    assert own == {name: shape for name, shape in published().items() if name.startswith("decoder.")}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as the published one, with random weights."""
    torch.manual_seed(0)
    scaled = lambda shape: torch.randn(shape) / math.sqrt(math.prod(shape[1:]) or 1)
    path = tmp_path_factory.mktemp("taew") / "taew2_1.safetensors"
    save_file({name: scaled(shape).half() for name, shape in published().items()}, path)
    return path


def test_one_picture_a_latent_frame_and_none_sees_the_future(file):
    decoder = load_tiny_decoder(file)
    z = torch.randn(16, 4, 3, 5)
    pictures = decoder(z)
    assert pictures.shape == (4, 3, SCALE * 3, SCALE * 5)
    assert 0 <= pictures.min() < pictures.max() <= 1
    changed = z.clone()
    changed[:, 2] += 1
    after = decoder(changed)
    assert torch.equal(after[:2], pictures[:2])
    assert not torch.equal(after[2], pictures[2]) and not torch.equal(after[3], pictures[3]), "the past is remembered"
    assert torch.equal(decoder(z[:, :1]), pictures[:1])


def test_memory_is_what_a_block_saw_of_the_frame_before(file):
    """Against all frames at once, with the memory as one shift in time, as the published code also does it."""
    decoder, z = load_tiny_decoder(file), torch.randn(16, 3, 2, 2)
    x = torch.tanh(z.movedim(1, 0) / 3) * 3
    for layer in decoder.decoder:
        before = (torch.cat([torch.zeros_like(x[:1]), x[:-1]]),) if isinstance(layer, tiny_vae.Block) else ()
        x = layer(x, *before)
    assert torch.allclose(decoder(z), x.clamp(0, 1), atol=1e-5)


def test_another_file_is_refused_in_words(tmp_path):
    save_file({"decoder.1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "none.safetensors").write_text("nothing")
    for name in ("other", "none", "gone"):
        with pytest.raises(InputError, match=r"models --download taew2\.1"):
            load_tiny_decoder(tmp_path / f"{name}.safetensors")


def wan(tiny_backbone_folder):
    """The tiny backbone, made to say that its latents are those of Wan 2.1."""
    loaded = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)
    loaded.vae.register_to_config(latents_mean=list(backbone.WAN21_MEAN))
    return loaded


def test_previews_are_by_the_tiny_decoder_where_its_weights_are(tiny_backbone_folder, file, monkeypatch):
    monkeypatch.setattr(backbone, "tiny_decoder_file", lambda: file)
    other = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)
    z = torch.randn(16, 2, 4, 6)
    assert other.preview_by == "a linear map of the latents" and other.preview(z).shape == (2, 3, 4, 6)
    loaded = wan(tiny_backbone_folder)
    assert loaded.preview_by == "TAEW 2.1" and loaded.preview(z).shape == (2, 3, 16, 24)
    monkeypatch.setattr(backbone, "tiny_decoder_file", lambda: None)
    loaded = wan(tiny_backbone_folder)
    assert loaded.preview_by == "a linear map of the latents" and loaded.preview(z).shape == (2, 3, 4, 6)


def test_the_published_linear_map_is_for_wan21_alone(tiny_backbone_folder, monkeypatch):
    monkeypatch.setattr(backbone, "tiny_decoder_file", lambda: None)
    loaded = wan(tiny_backbone_folder)
    loaded.settings = replace(loaded.settings, latent_rgb=None)
    grey = loaded.preview(torch.zeros(16, 1, 1, 1)).flatten()
    assert torch.allclose(grey, torch.tensor([1 - 0.1835, 1 - 0.0868, 1 - 0.3360]) / 2), "bias, from [-1, 1] to [0, 1]"
    one = torch.zeros(16, 1, 1, 1)
    one[2] = 1.0
    assert torch.allclose(loaded.preview(one).flatten() - grey, torch.tensor([0.3568, 0.2548, 0.1747]) / 2)
    other = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)
    other.settings = replace(other.settings, latent_rgb=None)
    assert not torch.allclose(other.preview(torch.zeros(16, 1, 1, 1)).flatten(), grey, atol=1e-3)
