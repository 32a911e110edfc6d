"""Suggested prompts: tiny random captioners of the real classes, end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.media.video import Clip, write_video
from pipeline.models import caption, hub, table

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "</s>", "<image>"]
WORDS = [*SPECIAL, "a", "red", "ball", "on", "the", "grass", "near", "two", "trees"]


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    special["additional_special_tokens"] = ["</s>", "<image>"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_processor(folder: Path) -> None:
    import transformers

    processor = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    processor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture(scope="session")
def blip(tmp_path_factory) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": len(WORDS), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 16})
    folder = tmp_path_factory.mktemp("blip") / "tiny-blip"
    BlipForConditionalGeneration(config).save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder)
    return folder


@pytest.fixture(scope="session")
def blip2(tmp_path_factory) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    torch.manual_seed(1)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer = vision | {"vocab_size": len(WORDS), "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    text = {
        "model_type": "opt", "vocab_size": len(WORDS), "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "bos_token_id": 4,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=vision | {"image_size": 32, "patch_size": 16}, qformer_config=qformer, text_config=text,
        num_query_tokens=4, image_token_index=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("blip2") / "tiny-blip-2"
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder)
    return folder


@pytest.fixture(params=["blip", "blip2"])
def model(request) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_a_picture_in_words(model):
    generator = torch.Generator().manual_seed(0)
    found = caption.caption(torch.rand(3, 40, 60, generator=generator), model, device="cpu")
    assert found.by == Path(model).name
    words = found.words.split()
    assert 0 < len(words) <= caption.MAX_TOKENS and set(words) <= set(WORDS) - set(SPECIAL) | {"[UNK]"}


def test_the_words_depend_on_the_picture(blip):
    """As the classes do it by themselves: the same tokens from the same normalised pixels."""
    from transformers import BlipForConditionalGeneration

    picture = torch.zeros(3, 32, 32)
    picture[0] = 1.0
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's, which BLIP uses
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    network = BlipForConditionalGeneration.from_pretrained(blip).eval()
    tokens = network.generate(((picture - mean) / deviation)[None], max_new_tokens=caption.MAX_TOKENS, num_beams=3)
    wanted = [WORDS[token] for token in tokens[0] if token not in (0, 1, 2, 4, 5)]
    assert caption.caption(picture, str(blip), device="cpu").words.split() == wanted


@pytest.mark.parametrize("spec", table.of_role("captions"), ids=lambda spec: spec.name)
def test_a_model_that_is_not_here_is_named_with_what_gets_it(spec, nothing_cached):
    with pytest.raises(InputError, match="write the prompt yourself") as raised:
        caption.caption(torch.zeros(3, 8, 8), spec.name, [spec.name])
    assert hub.command_for(spec) in str(raised.value) and spec.title in str(raised.value)


def test_terms_are_accepted_first(nothing_cached):
    for ref in ("blip-2", table.MODELS["blip-2"].ref):
        with pytest.raises(InputError, match=r"research only.*--accept blip-2"):
            caption.caption(torch.zeros(3, 8, 8), ref)


def test_the_default_is_what_suits_the_machine(monkeypatch):
    here: set[str] = set()
    monkeypatch.setattr(hub, "at_hand", lambda ref: Path(ref) if ref in here else None)
    gigabytes = 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gigabytes > 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, gigabytes * 2**30))
    default = lambda: caption.default_captioner(["blip-2"])
    assert default() == "blip"
    gigabytes = 8
    assert default() == "blip"
    gigabytes = 80
    assert default() == "blip-2"
    assert caption.default_captioner() == "blip", "of the other the terms are not accepted"
    here.add("blip")
    assert default() == "blip", "the one that is here rather than none"
    here.add("blip-2")
    assert default() == "blip-2"


def test_another_kind_of_model_is_refused(tiny_backbone_folder):
    with pytest.raises(InputError, match="a captioning model is a BLIP"):
        caption.caption(torch.zeros(3, 8, 8), str(tiny_backbone_folder / "text_encoder"))
    with pytest.raises(InputError, match="cannot be loaded"):
        caption.caption(torch.zeros(3, 8, 8), str(tiny_backbone_folder / "tokenizer"))


def test_the_command_describes_the_middle_frame(blip, tmp_path, capsys, nothing_cached):
    frames = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 32, 48)
    write_video(tmp_path / "clip.mp4", Clip(frames.contiguous(), 12.0))
    middle = caption.middle_frame(tmp_path / "clip.mp4")
    assert math.isclose(middle.mean().item(), 0.5, abs_tol=0.02)
    assert main(["caption", str(tmp_path / "clip.mp4"), "--model", str(blip)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == caption.caption(middle, str(blip), device="cpu").words and "tiny-blip" in said.err
    assert main(["caption", str(tmp_path / "clip.mp4")]) == 2
    assert "models --download blip" in capsys.readouterr().err
    assert main(["caption", str(tmp_path / "nowhere.mp4")]) == 2
