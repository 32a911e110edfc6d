"""DepthCrafter on tiny random models of the real classes: embeddings per frame, windows, sizes, the whole path."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipeline import InputError, result_of
from pipeline.depth.depthcrafter import (
    OVERLAP,
    STEPS,
    WINDOW,
    DepthCrafter,
    clip_size,
    in_windows,
    load_depthcrafter,
    network_size,
    predict,
    windows,
)
from pipeline.depth.estimate import Depth, estimate, estimate_depth
from pipeline.depth.load import load_depth_model

# scheduler/scheduler_config.json of stabilityai/stable-video-diffusion-img2vid-xt
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The parts of DepthCrafter with the layout of the real ones, few channels and random weights."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("depthcrafter")
    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(  # the four levels and kinds of blocks of the real one
        block_out_channels=(32, 32, 64, 64), num_attention_heads=(2, 2, 4, 4), cross_attention_dim=24,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, layers_per_block=1,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
    ).save_pretrained(folder / "vae")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
            projection_dim=24,
        )
    ).save_pretrained(folder / "image_encoder")
    for name, content in {
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": {
            "image_mean": [0.48, 0.46, 0.41],
            "image_std": [0.27, 0.26, 0.28],
        },
    }.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> DepthCrafter:
    return load_depthcrafter(folder)


def clip(frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    texture = torch.rand(3, height, width + 2 * frames, generator=torch.Generator().manual_seed(1))
    return torch.stack([texture[:, :, 2 * t : 2 * t + width] for t in range(frames)])


# --- the UNet ---------------------------------------------------------------------------------------------------------


def noisy(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(frames, 8, 8, 12, generator=generator), torch.randn(frames, 24, generator=generator)


@torch.no_grad()
def test_one_embedding_for_all_frames_is_stable_video_diffusion(model):
    unet = copy.deepcopy(model.unet).double()  # no rounding hides a difference
    x, embedding = (tensor.double() for tensor in noisy(5))
    ids, t = torch.tensor([[7, 127, 0.02]]).double(), torch.tensor(1.2).double()
    plain = unet(x[None], t, encoder_hidden_states=embedding[:1, None], added_time_ids=ids).sample[0]
    ours = predict(unet, x, t, embedding[:1].expand(5, -1))
    assert torch.allclose(ours, plain, atol=1e-12)
    again = unet(x[None], t, encoder_hidden_states=embedding[:1, None], added_time_ids=ids).sample[0]
    assert torch.equal(plain, again), "the model is left as it was"


@torch.no_grad()
def test_every_frame_attends_to_its_own_embedding(model):
    """What spatial attention is given is what DepthCrafter's own forward gives: T x 1 x D, one row a frame."""
    x, embedding = noisy(4)
    seen = []
    spatial = [
        block.attn2 for name, block in model.unet.named_modules()
        if "transformer_blocks" in name and "temporal" not in name and hasattr(block, "attn2")
    ]  # fmt: skip
    hooks = [
        attention.register_forward_pre_hook(
            lambda _, args, options: seen.append(options["encoder_hidden_states"]), with_kwargs=True
        )
        for attention in spatial
    ]
    predict(model.unet, x, torch.tensor(1.2), embedding)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(spatial) > 5
    assert all(torch.equal(context, embedding[:, None]) for context in seen)


@torch.no_grad()
def test_embeddings_of_later_frames_matter(model):
    x, embedding = noisy(4)
    other = embedding.clone()
    other[3] *= -1
    found, changed = (predict(model.unet, x, torch.tensor(1.2), e) for e in (embedding, other))
    assert not torch.allclose(found[3], changed[3], atol=1e-5)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(1, [0]), (2, [0]), (109, [0]), (110, [0]), (111, [0, 85]), (195, [0, 85]), (250, [0, 85, 170])],
)
def test_windows_cover_every_frame_and_share_the_overlap(frames, starts):
    """195 frames are two whole windows, as `process_length` of the published code has it."""
    found = windows(frames)
    assert [span.start for span in found] == starts
    assert found[-1].stop == frames and all(len(span) <= WINDOW for span in found)
    assert all(a.stop - b.start == OVERLAP for a, b in pairwise(found))


@pytest.mark.parametrize("frames", [1, 2, 109, 110, 111, 250])
def test_windows_of_a_denoiser_that_finds_the_truth_return_it(frames):
    truth = torch.randn(frames, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    calls = []

    def denoise(span, before):
        assert (before is None) == (span.start == 0)
        if before is not None:
            assert torch.allclose(before, truth[span.start : span.start + OVERLAP], atol=1e-6)
        for step in range(STEPS):
            yield f"step {step + 1} of {STEPS}", (step + 1) / STEPS
        calls.append(span)
        return truth[span.start : span.stop]

    progress = []
    found = result_of(in_windows(frames, denoise), progress.append)
    assert found.shape == truth.shape and torch.allclose(found, truth, atol=1e-6)
    assert calls == windows(frames)
    shares = [share for _, share in progress]
    assert len(shares) == STEPS * len(calls) and shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert ("part 2 of" in progress[-1][0]) == (len(calls) == 2)


def test_between_two_windows_that_disagree_the_latents_fade():
    def denoise(span, before):
        yield "a step", 1.0
        return torch.full((len(span), 1, 1, 1), 0.0 if before is None else 1.0)

    found = result_of(in_windows(20, denoise, window=12, overlap=4))
    assert found[:9].eq(0).all() and found[11:].eq(1).all()
    assert found[8:12].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((576, 1024), (576, 1024)), ((480, 832), (512, 832)), ((1080, 1920), (576, 1024)), ((1920, 1080), (1024, 576)),
     ((51, 75), (64, 64)), ((5, 9), (64, 64))],
)  # fmt: skip
def test_sizes_are_multiples_of_64_and_bounded(size, wanted):
    assert network_size(*size) == wanted


@pytest.mark.parametrize("size", [(576, 1024), (448, 512), (64, 96), (224, 224)])
def test_pictures_for_clip_are_shrunk_as_stable_video_diffusion_does(size):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    pictures = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(clip_size(pictures), _resize_with_antialiasing(pictures, (224, 224)), atol=1e-5)


# --- the whole path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_clip_end_to_end(model, frames):
    progress = []
    disparity = result_of(model.disparity(clip(frames)), progress.append)
    assert disparity.shape == (frames, 64, 128)
    assert disparity.isfinite().all() and disparity.min() == 0 and disparity.max() == 1
    shares = [share for _, share in progress]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == pytest.approx(1)
    assert sum("step" in words for words, _ in progress) == STEPS


def test_one_frame_is_what_the_stock_pipeline_makes_of_a_picture(model):
    """Stable Video Diffusion of a single frame, without guidance and with the same noise, is the same computation."""
    import transformers
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    picture = (clip(1, 64, 64) * 255).round().byte()
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    stock = StableVideoDiffusionPipeline(
        vae=model.vae, image_encoder=model.image_encoder, unet=model.unet, scheduler=model.scheduler,
        feature_extractor=processor(image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28]),
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    frames = stock(
        Image.fromarray(picture[0].permute(1, 2, 0).numpy()), height=64, width=64, num_frames=1, fps=8,
        num_inference_steps=STEPS, min_guidance_scale=1.0, max_guidance_scale=1.0, output_type="pt",
        generator=torch.Generator().manual_seed(42),
    ).frames[0]  # fmt: skip
    expected = frames.mean(1)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = result_of(model.disparity(picture / 255))
    assert torch.allclose(found, expected, atol=1e-3)


def test_more_frames_than_a_window(model, monkeypatch):
    """With short windows, so that it takes seconds: the second one continues what the first one found."""
    from pipeline.depth import depthcrafter as room

    short = lambda frames, denoise: in_windows(frames, denoise, window=6, overlap=2)
    monkeypatch.setattr(room, "in_windows", short)
    monkeypatch.setattr(room, "WINDOW", 6)
    progress = []
    disparity = result_of(model.disparity(clip(9)), progress.append)
    assert len(disparity) == 9 and sum("part 2 of 2" in words for words, _ in progress) == STEPS


def test_depth_is_near_where_disparity_is_large(model):
    frames = clip(3)
    depth = estimate_depth(frames, model)
    assert depth.z.shape == (3, 64, 96) and not depth.metric
    assert depth.z.isfinite().all() and (depth.z > 0).all() and depth.z.median() == pytest.approx(4, rel=0.1)
    disparity = result_of(model.disparity(frames))
    disparity = torch.nn.functional.interpolate(disparity[:, None], (64, 96), mode="nearest-exact")[:, 0]
    ranks = [values.flatten().argsort().argsort().float() for values in (disparity, 1 / depth.z)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.95


def test_the_same_clip_has_the_same_depth(model):
    first, again = (estimate_depth(clip(2), model).z for _ in range(2))
    assert torch.equal(first, again)


def test_a_folder_of_its_parts_is_known_as_such(folder, tmp_path):
    assert isinstance(load_depth_model(str(folder)), DepthCrafter)
    (tmp_path / "unet").mkdir()
    (tmp_path / "image_encoder").mkdir()
    with pytest.raises(InputError, match="DepthCrafter cannot be read"):
        load_depth_model(str(tmp_path))


def test_progress_comes_with_the_depth_last_and_at_another_size(model):
    progress = []
    depth = result_of(estimate(clip(2), model, (32, 48)), progress.append)
    assert isinstance(depth, Depth) and depth.z.shape == (2, 32, 48)
    assert all(words.startswith("Estimating depth: ") and 0 < share <= 1 for words, share in progress)


def test_what_ends_a_run_early_leaves_the_model_free(model):
    run = model.disparity(clip(2))
    next(run)
    waiting = model.disparity(clip(2))
    assert next(waiting)[0].startswith("Waiting"), "one clip at a time"
    waiting.close()
    run.close()
    assert result_of(model.disparity(clip(1))).shape[0] == 1


def test_too_little_memory_names_the_remedy(model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.unet, "forward", full)
    with pytest.raises(InputError, match="fewer frames"):
        list(model.disparity(clip(2)))


# --- through the requests ---------------------------------------------------------------------------------------------


def test_terms_are_accepted_before_anything_else():
    from pipeline.render.request import RenderRequest

    for ref in ("depthcrafter", "tencent/DepthCrafter"):
        with pytest.raises(InputError, match=r"academic.*--accept depthcrafter"):
            RenderRequest.of("clip.mp4", depth_model=ref)
        assert RenderRequest.of("clip.mp4", depth_model=ref, depth="depth.npz"), "a file of one's own needs no model"
    request = RenderRequest.of("clip.mp4", depth_model="depthcrafter", accepted=("depthcrafter",))
    assert "accepted" not in json.loads(request.to_json()), "everyone accepts for themselves"
    with pytest.raises(InputError, match="accept"):
        RenderRequest.from_json(request.to_json())
    assert RenderRequest.from_json(request.to_json(), ("depthcrafter",)) == request
    assert RenderRequest.of("clip.mp4", depth_model="depth-anything-v2-small").accepted == ()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, an empty cache, and what was asked for."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def snapshot_download(repo, **_):
        asked.append(repo)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECAPTURE_ACCEPT", raising=False)
    return asked


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_command_line_accepts_by_name_and_says_what_is_missing(
    offline, how, tmp_path, tiny_backbone_folder, monkeypatch, capsys
):
    from synthetic import write_clip

    from pipeline.__main__ import main

    given = [str(write_clip(tmp_path / "clip.mp4")), "--backbone", str(tiny_backbone_folder)]
    command = ["warp", *given, "--depth-model", "depthcrafter", "--output", str(tmp_path / "out.mp4")]
    assert main(command) == 2
    assert "--accept depthcrafter" in capsys.readouterr().err and not offline, "nothing was fetched"
    if how == "option":
        command += ["--accept", "depthcrafter"]
    else:
        monkeypatch.setenv("RECAPTURE_ACCEPT", "flux-fill, depthcrafter")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "could not be fetched" in error and "4.5 GB are missing" in error and "tencent/DepthCrafter" in offline
    assert "depth model nano" in error and "as a file" in error


def test_an_analysis_shows_the_steps_and_keeps_the_depth(folder, tmp_path, tiny_backbone_folder, monkeypatch):
    from synthetic import write_clip

    from pipeline.render.analysis import Analysis, analyse
    from pipeline.render.events import StageEvent
    from pipeline.render.request import RenderRequest

    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip_file = str(write_clip(tmp_path / "clip.mp4"))
    request = RenderRequest.of(clip_file, backbone=str(tiny_backbone_folder), depth_model=str(folder))
    stages = []
    analysis = result_of(analyse(request), stages.append)
    assert isinstance(analysis, Analysis) and all(isinstance(stage, StageEvent) for stage in stages)
    assert sum("step" in stage.message for stage in stages) == STEPS
    shares = [stage.fraction for stage in stages]
    assert shares == sorted(shares) and shares[-1] <= 0.08
    assert analysis.depth.z.shape == (5, *analysis.clip.frames.shape[-2:])
    stages = []
    again = result_of(analyse(request), stages.append)
    assert not any("step" in stage.message for stage in stages), "it is kept"
    assert torch.equal(again.depth.z, analysis.depth.z)
