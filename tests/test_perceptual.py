"""Metrics with weights: laws, on tiny random models of the real classes, loaded as the real ones are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from torch.nn import functional as F

from pipeline import InputError
from pipeline.evaluation import perceptual
from pipeline.evaluation.scores import FVD_WEIGHTS, METRICS, Case, absent, fvd, measure, set_features
from pipeline.known.measurement import Measurement
from pipeline.models import hub, table

BLOCK = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["a", "red", "ball", "rolls", "yes", "no", "Yes", "No"]


def video(seed: int = 0, frames: int = 3) -> torch.Tensor:
    """Smooth colours, and not a whole number of patches."""
    coarse = torch.rand(frames, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (40, 64), mode="bilinear").contiguous()


def noisy(clip: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    return (clip + amount * noise).clamp(0, 1)


def write_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted(set("".join(WORDS).lower()))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: i for i, word in enumerate(vocabulary)}, []).save_pretrained(folder)
    start = len(vocabulary) - 2
    text = BLOCK | {"vocab_size": len(vocabulary), "max_position_embeddings": 12, "projection_dim": 24}
    text |= {"bos_token_id": start, "eos_token_id": start + 1, "pad_token_id": start + 1}
    vision = BLOCK | {"image_size": 32, "patch_size": 16, "projection_dim": 24}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)


def write_videomae(network, folder: Path) -> None:
    """With the biases named as in the published weights, which newer classes rename while they read."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    network.save_pretrained(folder)
    renamed = {"query.bias": "q_bias", "value.bias": "v_bias"}
    weights = {}
    for key, value in load_file(folder / "model.safetensors").items():
        ending = next((end for end in renamed if key.endswith(f"attention.attention.{end}")), "")
        weights[key.removesuffix(ending) + renamed.get(ending, "")] = value
    assert sum(key.endswith("q_bias") for key in weights) >= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_qwen(folder: Path) -> None:
    import transformers
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    special = ["[UNK]", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    named = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(named, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    text = BLOCK | {
        "vocab_size": len(named), "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=named["<|image_pad|>"],
        vision_start_token_id=named["<|vision_start|>"], vision_end_token_id=named["<|vision_end|>"],
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    processor(min_pixels=28 * 28, max_pixels=56 * 56, patch_size=14, merge_size=2).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of tiny weights for each model of the role "metric", by its name."""
    import transformers

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vgg = perceptual.Lpips().state_dict()
    vgg = {key: value for key, value in vgg.items() if key.startswith("features.")} | {"head.fc.bias": torch.zeros(3)}
    (root / "vgg16").mkdir()
    save_file(vgg, root / "vgg16" / "model.safetensors")
    dino = {**BLOCK, "image_size": 32}
    transformers.Dinov2Model(transformers.Dinov2Config(**dino, patch_size=14)).save_pretrained(root / "dinov2-small")
    vit = transformers.ViTModel(transformers.ViTConfig(**dino, patch_size=16), add_pooling_layer=False)
    vit.save_pretrained(root / "dino-vitb16")
    write_clip(root / "clip-vit-b32")
    write_clip(root / "pickscore")
    config = transformers.VideoMAEConfig(
        **dino, patch_size=16, num_frames=4, decoder_hidden_size=16, decoder_intermediate_size=16,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, use_mean_pooling=False,
    )  # fmt: skip
    write_videomae(transformers.VideoMAEForPreTraining(config), root / "videomae-base")
    write_qwen(root / "qwen2.5-vl-3b")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def here(folders, monkeypatch) -> dict[str, Path]:
    """The tiny weights stand where the real ones would."""
    there = dict(folders)
    monkeypatch.setattr(hub, "at_hand", lambda ref: there.get(ref))
    return there


def test_there_are_weights_of_each_model_in_the_table(folders):
    assert set(folders) == {spec.name for spec in table.of_role("metric")}
    assert {metric.weights for metric in METRICS.values()} | {FVD_WEIGHTS} == {*folders, None}


# --- LPIPS ------------------------------------------------------------------------------------------------------------


def test_vgg16_has_the_names_and_sizes_of_the_published_weights():
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in perceptual.Lpips().state_dict().items() if k.startswith("features.")}
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    expected: dict[str, tuple[int, ...]] = {}
    for i, index in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)):  # torchvision's, which timm keeps
        expected[f"features.{index}.weight"] = (widths[i + 1], widths[i], 3, 3)
        expected[f"features.{index}.bias"] = (widths[i + 1],)
    assert found == expected
    classifier = sum(n * m + m for n, m in ((25088, 4096), (4096, 4096), (4096, 1000)))
    parameters = sum(math.prod(shape) for shape in found.values()) + classifier
    assert parameters == 138_357_544  # of vgg16 as published
    assert 0 < table.MODELS["vgg16"].download_bytes - 4 * parameters < 10_000


def test_download_sizes_are_those_of_the_weights():
    """Parameters of the published configurations in bytes, up to tokenizers and headers of files."""
    import transformers as hf

    huge = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    small = hf.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
    qwen = {
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    seen = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    with torch.device("meta"):
        published = {
            "dinov2-small": (hf.Dinov2Model(small), 4),
            "dino-vitb16": (hf.ViTModel(hf.ViTConfig(), add_pooling_layer=False), 4),
            "clip-vit-b32": (hf.CLIPModel(hf.CLIPConfig()), 4),
            "pickscore": (
                hf.CLIPModel(
                    hf.CLIPConfig(text_config=text, vision_config={**huge, "patch_size": 14}, projection_dim=1024)
                ),
                4,
            ),
            "videomae-base": (hf.VideoMAEForPreTraining(hf.VideoMAEConfig()), 4),
            "qwen2.5-vl-3b": (
                hf.Qwen2_5_VLForConditionalGeneration(
                    hf.Qwen2_5_VLConfig(text_config=qwen, vision_config=seen, tie_word_embeddings=True)
                ),
                2,
            ),
        }
    for name, (network, each) in published.items():
        weights = each * sum(parameter.numel() for parameter in network.parameters())
        assert weights == pytest.approx(table.MODELS[name].download_bytes, rel=0.01), name


def test_the_linear_layers_are_those_of_lpips():
    layers = load_file(perceptual.LPIPS_LAYERS)
    assert [tuple(layers[f"lin{i}.model.1.weight"].shape) for i in range(5)] == [
        (1, width, 1, 1) for width in (64, 128, 256, 512, 512)
    ]
    assert len(layers) == 5 and all((layer >= 0).all() for layer in layers.values())


def test_lpips_is_a_distance_that_grows_with_noise(here):
    a = video()
    assert perceptual.lpips(a, a) == 0
    little, more = (perceptual.lpips(a, noisy(a, amount)) for amount in (0.05, 0.2))
    assert 0 < little < more
    assert perceptual.lpips(noisy(a, 0.2), a) == pytest.approx(more, rel=1e-5)


def test_lpips_as_written_down(here):
    """Directly from the weights, layer by layer."""
    a, b = video(0, 1), video(1, 1)
    vgg, lins = load_file(here["vgg16"] / "model.safetensors"), load_file(perceptual.LPIPS_LAYERS)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    one, other = ((2 * x - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (a, b))
    total, index = 0.0, 0
    for level, count in enumerate((2, 2, 3, 3, 3)):
        for _ in range(count):
            weight, bias = (vgg[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            one, other = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (one, other))
            index += 2
        apart = (F.normalize(one, dim=1) - F.normalize(other, dim=1)) ** 2
        total += (apart * lins[f"lin{level}.model.1.weight"]).sum(1).mean().item()
        one, other, index = F.max_pool2d(one, 2), F.max_pool2d(other, 2), index + 1
    assert perceptual.lpips(a, b) == pytest.approx(total, rel=1e-4)


def test_lpips_under_a_mask(here):
    a, b = video(0)[..., :32, :64], video(1)[..., :32, :64]
    everywhere = torch.ones(3, 1, 32, 64, dtype=torch.bool)
    assert perceptual.lpips(a, b, everywhere) == pytest.approx(perceptual.lpips(a, b), rel=1e-3)
    left = everywhere.clone()
    left[..., 32:] = False
    half = torch.where(left, b, a)  # they differ on the left
    assert perceptual.lpips(a, half, left) > 2 * perceptual.lpips(a, half, ~left) > 0
    with pytest.raises(InputError, match="True somewhere"):
        perceptual.lpips(a, b, ~everywhere)
    with pytest.raises(InputError, match="one shape"):
        perceptual.lpips(a, b[:2])


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["dinov2-small", "dino-vitb16"])
def test_dino_distance(here, model):
    a = video()
    assert perceptual.dino_distance(a, a, model) == pytest.approx(0, abs=1e-6)
    near, far = (perceptual.dino_distance(a, b, model) for b in (noisy(a, 0.02), noisy(a, 0.3)))
    assert 0 < near < far <= 2
    assert perceptual.dino_distance(noisy(a, 0.3), a, model) == pytest.approx(far, rel=1e-3)
    assert perceptual.dino_features(a, model).norm(dim=-1) == pytest.approx(torch.ones(3))


def test_dino_sees_what_its_class_sees(here):
    from transformers import Dinov2Model

    a = video()
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    shown = F.interpolate(a, (224, 358), mode="bicubic", antialias=True).clamp(0, 1)
    network = Dinov2Model.from_pretrained(here["dinov2-small"])
    expected = network((shown - mean) / deviation).last_hidden_state[:, 0]
    assert torch.allclose(perceptual.dino_features(a), F.normalize(expected, dim=-1), atol=1e-5)


def test_consistency():
    still = torch.randn(1, 8).expand(5, 8)
    assert perceptual.consistency(still) == pytest.approx(1)
    assert perceptual.consistency(still[:1]) == 1
    x, y = torch.eye(2)
    assert perceptual.consistency(torch.stack([x, 2 * y, 3 * y])) == pytest.approx((0 + 0 + 1 + 0) / 4)
    assert perceptual.consistency(torch.stack([x, -x])) == 0  # what is negative counts as nothing


def test_clip_score(here):
    from transformers import CLIPModel, CLIPTokenizer

    a, prompt = video(), "a red ball rolls"
    score = perceptual.clip_score(a, prompt)
    network, tokenizer = (kind.from_pretrained(here["clip-vit-b32"]) for kind in (CLIPModel, CLIPTokenizer))
    tokens = tokenizer([prompt], truncation=True, max_length=12, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, 12) and tokens["input_ids"][0, -1] == tokenizer.eos_token_id
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in perceptual.CLIP)
    shown = F.interpolate(a, (32, 51), mode="bicubic", antialias=True).clamp(0, 1)[..., 9:41]
    logits = network(**tokens, pixel_values=(shown - mean) / deviation).logits_per_image
    assert score == pytest.approx(logits.mean().item(), rel=1e-4)
    assert perceptual.clip_score(a, "no ball") != pytest.approx(score, rel=1e-3)
    assert perceptual.clip_features(a).shape == (3, 24)


def test_a_model_that_cannot_serve_is_refused(here, folders, tmp_path):
    here["dinov2-small"] = folders["clip-vit-b32"]
    with pytest.raises(InputError, match="kind clip; wanted is vit or dinov2"):
        perceptual.dino_features(video())
    here["dinov2-small"] = tmp_path
    (tmp_path / "config.json").write_text((folders["dinov2-small"] / "config.json").read_text())
    with pytest.raises(InputError, match="cannot be loaded"):
        perceptual.dino_features(video())
    weights = load_file(folders["dinov2-small"] / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layer.1" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks weights"):
        perceptual.dino_features(video())
    here["vgg16"] = tmp_path
    with pytest.raises(InputError, match="weights of LPIPS"):
        perceptual.lpips(video(), video())
    del here["vgg16"]
    with pytest.raises(InputError, match="models --download vgg16"):
        perceptual.lpips(video(), video())


# --- sets of videos ---------------------------------------------------------------------------------------------------


def test_video_features(here):
    a = video(frames=9)
    features = perceptual.video_features(a)
    assert features.shape == (32,) and torch.equal(features, perceptual.video_features(a))
    assert not torch.allclose(features, perceptual.video_features(a.flip(0)))
    assert perceptual.video_features(a[:1]).isfinite().all()  # fewer frames than it looks at
    given = Case(a, a.flip(0), Measurement(a, torch.ones_like(a[:, :1]) > 0))
    assert set_features(given) == {}
    kept = set_features(given, accepted=[FVD_WEIGHTS])
    assert kept["features"] == features.tolist() != kept["features_other"]
    assert set_features(replace(given, truth=a), accepted=[FVD_WEIGHTS])["features_other"] == features.tolist()


def test_fvd_of_rows():
    rng = np.random.default_rng(0)
    rows = [{"features": rng.normal(size=4).tolist(), "features_other": rng.normal(size=4).tolist()} for _ in range(6)]
    results, others = (np.array([row[key] for row in rows]) for key in ("features", "features_other"))
    assert fvd([*rows, {"psnr": 1.0}]) == perceptual.frechet(results, others) > 0
    assert fvd(rows[:1]) is None and fvd([{}, {}]) is None
    mirrored = [row | {"features_other": row["features"]} for row in rows]
    assert fvd(mirrored) == pytest.approx(0, abs=1e-9)


def test_no_bias_of_videomae_is_lost(here):
    network = perceptual.network_of(here["videomae-base"], torch.device("cpu"), ("videomae",))
    weights = load_file(here["videomae-base"] / "model.safetensors")
    found = dict(network.named_parameters())
    for key, value in weights.items():
        if key.startswith("videomae."):
            name = key.removeprefix("videomae.").replace("q_bias", "query.bias").replace("v_bias", "value.bias")
            assert torch.equal(found[name], value), key


def test_frechet_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), 1 + rng.normal(size=(50, 6))
    assert perceptual.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert perceptual.frechet(a, a + np.array([3, 4, 0, 0, 0, 0])) == pytest.approx(25)
    assert perceptual.frechet(a, b) == pytest.approx(perceptual.frechet(b, a))
    one, other = np.cov(a.T), np.cov(b.T)
    closed = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert perceptual.frechet(a, b) == pytest.approx(closed)
    # (σ - τ)² for one-dimensional Gaussians, also where there are fewer videos than features
    line = np.outer([-1, 0, 1], np.eye(8)[0])
    assert perceptual.frechet(3 * line, 5 * line) == pytest.approx(4)
    with pytest.raises(InputError, match="two videos"):
        perceptual.frechet(a[:1], b)


# --- questions --------------------------------------------------------------------------------------------------------


def test_a_question_has_one_answer(here):
    a, question = video(frames=6), perceptual.FOLLOWED.format(prompt="a red ball")
    share = perceptual.yes_share(a, question)
    assert 0 < share < 1 and share == perceptual.yes_share(a, question)
    assert share != pytest.approx(perceptual.yes_share(a, perceptual.FOLLOWED.format(prompt="no ball rolls")), abs=1e-6)
    assert share != pytest.approx(perceptual.yes_share(1 - a, question), abs=1e-6)


def test_yes_and_no_change_places(here, folders, tmp_path):
    """In a model whose output layer has the two words exchanged."""
    from transformers import AutoTokenizer

    a, share = video(), perceptual.yes_share(video(), perceptual.REAL)
    for file in folders["qwen2.5-vl-3b"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    (words,) = (value for key, value in weights.items() if key.endswith("embed_tokens.weight"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    yes, no = (tokenizer.convert_tokens_to_ids(both) for both in (["Yes", "yes"], ["No", "no"]))
    head = words.clone()
    head[yes], head[no] = words[no], words[yes]
    save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    here["qwen2.5-vl-3b"] = tmp_path
    assert perceptual.yes_share(a, perceptual.REAL) == pytest.approx(1 - share, abs=1e-5)
    assert abs(share - 0.5) > 1e-4


# --- the table --------------------------------------------------------------------------------------------------------


def case(**changes) -> Case:
    result = video(frames=5)
    mask = torch.ones(5, 1, 40, 64, dtype=torch.bool)
    mask[..., 40:] = False
    known = Measurement(noisy(result, 0.02) * mask, mask)
    return Case(**{"result": result, "source": video(1, 5), "measurement": known} | changes)


def test_all_of_it(here):
    """Everything that has weights, where they are at hand and their terms accepted."""
    named = [spec.name for spec in table.of_role("metric")]
    weighed = [name for name, metric in METRICS.items() if metric.weights]
    whole = case(truth=video(2, 5), prompt="a red ball")
    figures = measure(whole, weighed, accepted=named)
    assert list(figures) == weighed and all(math.isfinite(value) for value in figures.values())
    assert figures["lpips_observed"] < figures["lpips_whole"]
    assert measure(case(truth=whole.result), ["lpips_holes", "lpips_whole", "dino_truth"]) == pytest.approx(
        {"lpips_holes": 0, "lpips_whole": 0, "dino_truth": 0}, abs=1e-6
    )
    free = measure(whole, weighed)
    assert set(weighed) - set(free) == {"pickscore", "vlm_prompt", "vlm_real"} == set(absent()) - {"fvd"}
    assert absent(named) == {}
    without = measure(case(), weighed, accepted=named)
    gone = {"lpips_holes", "lpips_whole", "dino_truth", "clip_score", "pickscore", "vlm_prompt"}
    assert set(weighed) - set(without) == gone


def test_what_is_not_here_is_absent_and_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    missing = absent([spec.name for spec in table.of_role("metric")])
    assert set(missing) == {name for name, metric in METRICS.items() if metric.weights} | {"fvd"}
    assert missing["lpips_holes"] == "python -m pipeline models --download vgg16"
    assert missing["fvd"] == "python -m pipeline models --download videomae-base --accept videomae-base"
    weighed = [name for name, metric in METRICS.items() if metric.weights]
    assert measure(case(truth=video(), prompt="a ball"), weighed) == {}
    assert set_features(case(), accepted=[FVD_WEIGHTS]) == {}
