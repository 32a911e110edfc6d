"""First frames by an image model: tiny random pipelines of the real classes, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import write_depth

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.known import first_frame
from pipeline.known.first_frame import inpaint, locate
from pipeline.media.video import Clip, write_video
from pipeline.models import hub, table
from pipeline.render.events import DoneEvent, FailedEvent, StageEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

SIZE = (64, 96)


def clip_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "ball"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip


def text_encoder(width: int = 32):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=7,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            projection_dim=width,
        )
    )  # fmt: skip


def image_vae(latent_channels: int, cells: int):
    from diffusers import AutoencoderKL

    down, up = ["DownEncoderBlock2D"] * cells, ["UpDecoderBlock2D"] * cells
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=down, up_block_types=up, block_out_channels=[8] * cells,
        latent_channels=latent_channels, norm_num_groups=4, layers_per_block=1, sample_size=32, shift_factor=0.1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion inpainting pipeline: 9 input channels, made for 64x64."""
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=9, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    pipe = StableDiffusionInpaintPipeline(
        vae=image_vae(4, 2), text_encoder=text_encoder(), tokenizer=clip_tokenizer(), unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # type: ignore # fmt: skip
    folder = tmp_path_factory.mktemp("sd") / "tiny-inpainting"
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory) -> Path:
    """A FLUX Fill pipeline: packed latents, their mask and the masked picture in one row of channels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    packed = 4 * 4
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=2 * packed + 4 * 4, out_channels=packed, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=7, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0))
    pipe = FluxFillPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=image_vae(4, 2), text_encoder=text_encoder(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5, tokenizer_2=clip_tokenizer(), transformer=transformer,
    )  # type: ignore # fmt: skip
    folder = tmp_path_factory.mktemp("flux") / "tiny-fill"
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(params=["sd_folder", "flux_folder"])
def model(request) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("pipeline.known.first_frame.DEFAULT_PIXELS", 64 * 64)


def test_known_pixels_come_back_exactly_and_the_rest_is_painted(model):
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 50, 70, generator=generator)
    known = torch.ones(1, 50, 70, dtype=torch.bool)
    known[:, 10:30, 20:50] = False
    picture = picture * known
    painted = inpaint(picture, known, "a red ball", model, seed=1, steps=2, device="cpu")
    assert painted.shape == picture.shape and painted.min() >= 0 and painted.max() <= 1
    assert torch.equal(painted[known.expand_as(painted)], picture[known.expand_as(picture)])
    hole = painted[:, 12:28, 22:48]
    assert torch.isfinite(hole).all() and hole.std() > 1e-3
    same = inpaint(picture, known, "a red ball", model, seed=1, steps=2, device="cpu")
    assert torch.equal(painted, same), "a seed means the same"
    other = inpaint(picture, known, "a red ball", model, seed=2, steps=2, device="cpu")
    assert not torch.equal(painted, other)


class Spy:
    """A pipeline that remembers what it was called with."""

    def __init__(self, pipe: Any, seen: dict):
        self._pipe, self._seen = pipe, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, **given: Any) -> Any:
        self._seen.update(given)
        return self._pipe(**given)


def test_the_model_works_at_its_own_size(model, monkeypatch):
    """Near the number of pixels that it was made for, at the picture's proportions, half known pixels painted too."""
    load, seen = first_frame.load_inpainter, {}
    monkeypatch.setattr(first_frame, "load_inpainter", lambda *given: Spy(load(*given), seen))
    known = torch.ones(1, 120, 240, dtype=torch.bool)
    known[:, :, 101:] = False
    inpaint(torch.rand(3, 120, 240) * known, known, "", model, steps=1, device="cpu")
    height, width = seen["height"], seen["width"]
    assert height % 4 == width % 4 == 0 and 0.7 * 64 * 64 < height * width < 1.2 * 64 * 64
    assert abs(width / height - 2) < 0.3
    assert seen["image"].shape == (1, 3, height, width) and seen["mask_image"].shape == (1, 1, height, width)
    column = int(101 / 240 * width)
    assert seen["mask_image"][..., column:].min() == 1, "a pixel that is partly unknown is painted"
    assert seen["mask_image"][..., : column - 3].max() == 0


def test_weights_that_are_not_here_are_named_with_what_gets_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for spec in table.of_role("first frame"):
        with pytest.raises(InputError, match="or give a picture of it") as raised:
            locate(spec.name)
        assert hub.command_for(spec) in str(raised.value) and spec.title in str(raised.value)
    with pytest.raises(InputError, match="hf download someone/no-such-inpainting"):
        locate("someone/no-such-inpainting")


def test_what_is_no_inpainting_model_is_refused(tmp_path, tiny_backbone_folder):
    (tmp_path / "empty").mkdir()
    picture, known = torch.zeros(3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.bool)
    for folder in (tmp_path / "empty", tiny_backbone_folder):
        with pytest.raises(InputError, match="cannot be loaded as an inpainting model"):
            inpaint(picture, known, "", str(folder), device="cpu")


def test_a_restricted_licence_has_to_be_accepted():
    with pytest.raises(InputError, match="--accept flux-fill") as raised:
        RenderRequest.of("clip.mp4", first_frame_model="flux-fill")
    assert "not be used commercially" in str(raised.value) and "33.7 GB" in str(raised.value)
    with pytest.raises(InputError, match="--accept flux-fill"):
        RenderRequest.of("clip.mp4", first_frame_model=table.MODELS["flux-fill"].ref)
    request = RenderRequest.of("clip.mp4", first_frame_model="flux-fill", accepted=("flux-fill",))
    assert "accepted" not in json.loads(request.to_json()), "everyone accepts for themselves"
    with pytest.raises(InputError, match="--accept"):
        RenderRequest.from_json(request.to_json())
    assert RenderRequest.from_json(request.to_json(), ("flux-fill",)) == request
    with pytest.raises(InputError, match=r"RAIL.*to harm.*--accept sdxl-inpaint"):
        RenderRequest.of("clip.mp4", first_frame_model="sdxl-inpaint")


# --- in a render ------------------------------------------------------------------------------------------------------


@pytest.fixture
def request_(tmp_path, tiny_backbone_folder, sd_folder, monkeypatch) -> RenderRequest:
    """A clip with an object in its middle, which is to be replaced, the first frame by an image model."""
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    frames = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 2)
    write_video(tmp_path / "clip.mp4", Clip(frames.repeat_interleave(8, 3), 12.0))
    mask = np.zeros((5, *SIZE), bool)
    mask[:, 16:40, 30:60] = True
    np.savez(tmp_path / "mask.npz", mask=mask)
    write_depth(tmp_path / "depth.npz", 5, *SIZE)
    return RenderRequest.of(
        str(tmp_path / "clip.mp4"), camera="still", backbone=str(tiny_backbone_folder), size=SIZE, frames=5, steps=2,
        depth=str(tmp_path / "depth.npz"), mask=str(tmp_path / "mask.npz"), grow=0, first_frame_model=str(sd_folder),
    )  # fmt: skip


@pytest.fixture
def few_steps(monkeypatch):
    from functools import partial

    monkeypatch.setattr("pipeline.render.run.inpaint", partial(inpaint, steps=2))


def test_a_render_with_a_painted_first_frame(request_, tmp_path, few_steps):
    folder = tmp_path / "out"
    *events, last = render(request_, folder, keep=tmp_path / "kept")
    assert isinstance(last, DoneEvent), last
    report = last.result.report.to_dict()
    stages = [event.message for event in events if isinstance(event, StageEvent)]
    assert "Inpainting the first frame by tiny-inpainting" in stages
    assert report["first_frame"]["from"] == "inpainted by tiny-inpainting" and report["first_frame"]["complete"]
    assert "What was unknown of the first frame was inpainted by tiny-inpainting." in report["notes"]
    assert report["seconds"]["first-frame"] > 0 and report["request"]["first_frame_model"]
    kept = np.load(tmp_path / "kept" / "measurement.npz")
    assert kept["mask"][0].all() and not kept["mask"][1].all(), "known, as a picture of the user's is"
    given = np.load(request_.mask)["mask"]
    plain = request_.changed(first_frame_model=None)
    *_, last = render(plain, tmp_path / "plain", keep=tmp_path / "plain-kept")
    before = np.load(tmp_path / "plain-kept" / "measurement.npz")
    assert np.array_equal(kept["video"][0][~given[0]], before["video"][0][~given[0]]), "known pixels are untouched"
    assert kept["video"][0][given[0]].std() > 1


def test_a_complete_first_frame_needs_no_model(request_, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.render.run.inpaint", lambda *_, **__: pytest.fail("it is complete"))
    *_, last = render(request_.changed(mask=None), tmp_path / "out")
    assert isinstance(last, DoneEvent), last
    assert last.result.report.to_dict()["first_frame"]["from"] == "the clip"
    assert any("not needed" in note for note in last.result.report.to_dict()["notes"])


def test_what_cannot_be_had_is_said_before_any_work(request_, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lacking = request_.changed(first_frame_model="sdxl-inpaint", accepted=("sdxl-inpaint",))
    events = list(render(lacking, tmp_path / "out"))
    assert len(events) == 1 and isinstance(events[0], FailedEvent) and "models --download" in events[0].message
    with pytest.raises(InputError, match="picture of the first frame"):
        request_.changed(first_frame="picture.png")


def test_on_the_command_line(request_, tmp_path, capsys, few_steps):
    given = ["--mask", request_.mask, "--backbone", request_.backbone, "--depth", request_.depth, "--size", "64x96"]
    given += ["--frames", "5", "--steps", "2", "--output", str(tmp_path / "out.mp4")]
    model = ["--first-frame-model", request_.first_frame_model]
    assert main(["replace", request_.clip, *given, *model]) == 0
    assert "inpainted by tiny-inpainting" in capsys.readouterr().out
    assert main(["replace", request_.clip, *given, "--first-frame-model", "flux-fill"]) == 2
    assert "--accept flux-fill" in capsys.readouterr().err
