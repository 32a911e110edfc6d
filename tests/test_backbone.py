"""The Wan adapter: against the stock diffusers image-to-video pipeline on the same tiny random components."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_backbone
from PIL import Image

from pipeline import InputError
from pipeline.method.latent_mask import difference_mask
from pipeline.method.sampler import flow_sigmas, sample
from pipeline.method.solvers import dds, dds_cg
from pipeline.models import hub, table
from pipeline.prior.backbone import Backbone, Conditions, group_mask
from pipeline.prior.load import default_dtype, load_backbone
from pipeline.prior.preview import fit_latent_rgb
from pipeline.prior.settings import LatentRgb, Settings, vocabulary_of

T, H, W = 9, 32, 48
PROMPT, NEGATIVE = "A red cube &amp; a  blue ball", "camera moves"
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder) -> Backbone:
    return load_backbone(str(tiny_backbone_folder), **CPU)


@pytest.fixture
def video():
    coarse = torch.rand(1, 3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(T, H, W), mode="trilinear")[0].transpose(0, 1).contiguous()


def first_frame_mask():
    mask = torch.zeros(T, 1, H, W, dtype=torch.bool)
    mask[0] = True
    return mask


def picture_of(frame):
    return Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy())


def stock_pipeline(folder) -> Any:
    from diffusers import WanImageToVideoPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("channels", "text_tokens", "image_branch"), [(16, 16, False), (48, 16, False), (16, 512, True)]
)
def test_without_guidance_we_are_the_stock_pipeline(tmp_path, video, channels, text_tokens, image_branch):
    folder = make_backbone(tmp_path, channels=channels, text_tokens=text_tokens, image_branch=image_branch)
    backbone, pipe = load_backbone(str(folder), **CPU), stock_pipeline(folder)
    picture = picture_of(video[0])
    common = dict(
        image=picture,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=H,
        width=W,
        num_frames=T,
        num_inference_steps=4,
        guidance_scale=5.0,
        max_sequence_length=text_tokens,
    )
    latents = pipe(**common, output_type="latent", generator=torch.Generator().manual_seed(7)).frames[0]
    frames = pipe(**common, output_type="pt", generator=torch.Generator().manual_seed(7)).frames[0]

    video[0] = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    condition = backbone.condition(video, first_frame_mask())
    prompt, negative, image = backbone.embed(PROMPT), backbone.embed(NEGATIVE), backbone.embed_image(video[0])
    assert (image is not None) == image_branch
    velocity = lambda z, sigma: backbone.velocity(z, sigma, Conditions(condition, prompt, negative, 5.0, image))
    *_, last = sample(velocity, backbone.noise(T, H, W, seed=7), flow_sigmas(4, backbone.shift))
    print(f"latents differ by {(last.z - latents).abs().max():.1e} of {latents.abs().max():.1f}")
    print(f"frames differ by {(backbone.decode(last.z) - frames).abs().max():.1e}")
    torch.testing.assert_close(last.z, latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(backbone.decode(last.z), frames, atol=1e-4, rtol=0)
    assert frames.std() > 1e-3


def test_data_consistency_end_to_end(backbone, video):
    # Two thirds of the picture are measured: there the result is the measurement, which the prior alone misses.
    mask = torch.ones(T, 1, H, W, dtype=torch.bool)
    mask[..., 32:] = False
    h = difference_mask(backbone.encode, video, mask).h
    y_full = backbone.encode(torch.where(mask, video, 0.5))
    condition, prompt = backbone.condition(video, mask), backbone.embed(PROMPT)
    velocity = lambda z, sigma: backbone.velocity(z, sigma, Conditions(condition, prompt))

    def result(solver, **options):
        consistency = solver and (lambda z0_hat, sigma: solver(z0_hat, y_full, h, **options))
        *_, last = sample(velocity, backbone.noise(T, H, W, seed=1), flow_sigmas(3, backbone.shift), consistency)
        return last.z

    free, guided = result(None), result(dds, gamma=1e-4)
    known = h > 0.9
    assert 0 < known.float().mean() < 1 and not h[..., 4:].any()
    assert (guided - y_full)[known].abs().max() < 0.01 < (free - y_full)[known].abs().mean()
    by_cg = result(dds_cg, gamma=0.5, iterations=20)
    torch.testing.assert_close(by_cg, result(dds, gamma=0.5), atol=1e-4, rtol=0)
    assert backbone.decode(guided).shape == video.shape


def test_gradients_flow_only_where_they_are_asked_for(backbone, video):
    z, prompt = backbone.encode(video), backbone.embed(PROMPT)
    condition = backbone.condition(video, first_frame_mask())
    functions = {
        "decode": backbone.decode,
        "velocity": lambda z: backbone.velocity(z, 0.5, Conditions(condition, prompt)),
    }
    for function in functions.values():
        plain, asked = function(z), z.clone().requires_grad_()
        assert not plain.requires_grad
        (gradient,) = torch.autograd.grad(function(asked).sum(), asked)
        step = 1e-3 * gradient / gradient.norm()
        slope = (function(z + step).double().sum() - function(z - step).double().sum()) / 2e-3
        torch.testing.assert_close(slope.float(), gradient.norm(), rtol=0.05, atol=0.02)


def test_first_frame_condition_is_the_stock_one_bit_for_bit(tiny_backbone_folder, backbone, video):
    pipe = stock_pipeline(tiny_backbone_folder)
    image = video[:1] * 2 - 1
    _, wanted = pipe.prepare_latents(
        image, 1, backbone.latent_channels, H, W, T, torch.float32, torch.device("cpu"), torch.Generator()
    )
    assert torch.equal(backbone.condition(video, first_frame_mask()), wanted[0])


def test_embedding_equals_the_stock_one_and_is_padded_with_zeros(tiny_backbone_folder, backbone):
    wanted = stock_pipeline(tiny_backbone_folder)._get_t5_prompt_embeds(PROMPT, max_sequence_length=16)[0]
    embedded = backbone.embed(PROMPT)
    torch.testing.assert_close(embedded, wanted, atol=1e-6, rtol=0)
    assert embedded.shape == (16, 32) and (embedded[:5] != 0).all() and (embedded[12:] == 0).all()


def test_shapes_and_ranges(backbone, video):
    z = backbone.encode(video)
    assert z.shape == backbone.latent_shape(T, H, W) == (16, 3, 4, 6)
    decoded, preview = backbone.decode(z), backbone.preview(z)
    assert decoded.shape == (T, 3, H, W) and decoded.min() >= 0 and decoded.max() <= 1
    assert preview.shape == (3, 3, 4, 6) and preview.min() >= 0 and preview.max() <= 1
    assert backbone.condition(video, first_frame_mask()).shape == (20, 3, 4, 6)
    assert not any(tensor.requires_grad for tensor in (z, decoded, preview))


def test_latents_are_normalised(backbone, video):
    raw = backbone.vae.encode((video * 2 - 1).transpose(0, 1)[None]).latent_dist.mode()[0]
    config = backbone.vae.config
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(backbone.encode(video), (raw - mean) / std)


def test_unknown_pixels_do_not_reach_the_condition(backbone, video):
    mask = torch.rand(T, 1, H, W, generator=torch.Generator().manual_seed(3)) > 0.5
    other = torch.where(mask, video, torch.rand_like(video))
    assert torch.equal(backbone.condition(video, mask), backbone.condition(other, mask))


def test_mask_channels_by_hand():
    mask = torch.zeros(9, 1, 8, 16)
    mask[0, ..., 8:] = 1
    mask[3] = 1
    mask[5, ..., :8] = 1
    groups = group_mask(mask)[:, :, 0]
    assert groups.shape == (4, 3, 2)
    assert groups[:, 0].tolist() == [[0, 1]] * 4
    assert groups[:, 1].tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert groups[:, 2].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]


def test_guidance_is_linear_and_off_at_one(backbone, video):
    condition = backbone.condition(video, first_frame_mask())
    prompt, negative, z = backbone.embed(PROMPT), backbone.embed(NEGATIVE), backbone.noise(T, H, W, 0)
    v = lambda scale, uncond=negative: backbone.velocity(z, 0.7, Conditions(condition, prompt, uncond, scale))
    torch.testing.assert_close(v(3.0), v(0.0) + 3 * (v(1.0) - v(0.0)), atol=1e-5, rtol=1e-4)
    calls = []
    hook = backbone.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.isfinite(v(1.0, None)).all() and len(calls) == 1
    v(2.0)
    hook.remove()
    assert len(calls) == 3
    with pytest.raises(ValueError, match="negative"):
        v(2.0, None)


def test_no_image_is_a_zero_embedding(tmp_path):
    folder = make_backbone(tmp_path, text_tokens=512, image_branch=True)
    backbone = load_backbone(str(folder), **CPU)
    image = backbone.embed_image(None)
    assert image is not None and image.shape == (5, 32) and not image.any()
    seen = backbone.embed_image(torch.rand(3, 40, 60))
    assert seen is not None and seen.shape == image.shape and seen.any()


@pytest.mark.parametrize(
    ("frames", "height", "width", "message"),
    [
        (8, 32, 48, r"4n \+ 1 frames.*has 8.*nearest is 9"),
        (9, 40, 48, "multiples of 16"),
        (9, 32, 50, "50 wide"),
    ],
)
def test_sizes_that_do_not_fit_are_named(backbone, frames, height, width, message):
    with pytest.raises(ValueError, match=message):
        backbone.encode(torch.zeros(frames, 3, height, width))
    with pytest.raises(InputError, match=message):
        backbone.condition(torch.zeros(frames, 3, height, width), torch.ones(frames, 1, height, width))


def test_settings_are_read(backbone):
    assert (backbone.frames, backbone.pixels, backbone.steps) == (5, 32 * 48, 3)
    assert (backbone.guidance_scale, backbone.shift, backbone.multiple) == (3.0, 3.0, 16)
    assert backbone.depth is None


def test_preview_without_given_factors_is_fitted(tiny_backbone_folder, tmp_path, video):
    folder = shutil.copytree(tiny_backbone_folder, tmp_path / "copy")
    settings = json.loads((folder / "recapture.json").read_text())
    del settings["latent_rgb"]
    (folder / "recapture.json").write_text(json.dumps(settings))
    backbone = load_backbone(str(folder), **CPU)
    preview = backbone.preview(backbone.encode(video))
    assert preview.shape == (3, 3, 4, 6) and torch.isfinite(preview).all()


def test_fit_latent_rgb_recovers_a_linear_encoder():
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(9, 3, 32, 64, generator=generator)
    small = torch.nn.functional.avg_pool2d(video, 8)
    colour = torch.cat([small[:1], small[1:].unflatten(0, (2, 4)).mean(1)])
    z = torch.einsum("trhw,rc->cthw", colour, torch.randn(3, 6, generator=generator)) + 0.3
    rgb = fit_latent_rgb(z, video)
    assert isinstance(rgb, LatentRgb)
    fitted = torch.einsum("cthw,cr->trhw", z, rgb.weight) + rgb.bias[:, None, None]
    torch.testing.assert_close(fitted, colour, atol=0.01, rtol=0)


def test_bfloat16_stays_close(tiny_backbone_folder, backbone, video):
    rough = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.bfloat16)
    condition, z = backbone.condition(video, first_frame_mask()), backbone.noise(T, H, W, 0)
    assert torch.equal(rough.condition(video, first_frame_mask()), condition)
    text = backbone.embed(PROMPT), backbone.embed(NEGATIVE)
    exact, v = (model.velocity(z, 0.7, Conditions(condition, *text, 3.0)) for model in (backbone, rough))
    assert v.dtype == torch.float32 and (v - exact).norm() < 0.05 * exact.norm()


def test_default_dtype():
    assert default_dtype("cuda") == torch.bfloat16
    assert default_dtype("cpu") in (torch.float32, torch.bfloat16)


def test_pickles_are_refused(tiny_backbone_folder, tmp_path):
    for component in ("vae", "text_encoder"):
        folder = shutil.copytree(tiny_backbone_folder, tmp_path / component)
        (weights,) = (folder / component).glob("*.safetensors")
        name = "diffusion_pytorch_model.bin" if component == "vae" else "pytorch_model.bin"
        torch.save({}, weights.with_name(name))
        weights.unlink()
        with pytest.raises(InputError, match=component):
            load_backbone(str(folder), **CPU)


def test_hub_models_take_the_same_path(tiny_backbone_folder, monkeypatch):
    fetched = []

    def download(hub_id, allow_patterns, **_):
        fetched.append(hub_id)
        assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in allow_patterns)
        return str(tiny_backbone_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_backbone("someone/tiny", **CPU).latent_channels == 16
    assert fetched == ["someone/tiny"]

    def fail(hub_id, **_):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"someone/tiny.*no network"):
        load_backbone("someone/tiny", **CPU)


def test_other_models_are_refused(tiny_backbone_folder, tmp_path):
    folder = shutil.copytree(tiny_backbone_folder, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="AutoencoderKL"):
        load_backbone(str(folder), **CPU)


def test_text_to_video_models_are_refused(backbone):
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=16, out_channels=16, num_layers=1, ffn_dim=8
    )
    parts = {name: getattr(backbone, name) for name in ("vae", "text_encoder", "tokenizer")}
    with pytest.raises(InputError, match=r"16 input channels.*takes 36"):
        Backbone("t2v", Settings(), transformer=transformer, **parts)


def test_an_image_branch_needs_all_its_text_tokens(tmp_path):
    with pytest.raises(InputError, match=r"512 text tokens.*says 16"):
        load_backbone(str(make_backbone(tmp_path, text_tokens=16, image_branch=True)), **CPU)


def test_the_real_transformer_has_the_known_size():
    # Wan2.1-Fun-V1.1-1.3B-InP, by its published configuration; nothing is allocated on the meta device.
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=12, num_layers=30, ffn_dim=8960, in_channels=36, text_dim=4096, image_dim=1280,
            added_kv_proj_dim=1536,
        )  # fmt: skip
    state = transformer.state_dict()
    assert len(state) == 983 and sum(tensor.numel() for tensor in state.values()) == 1_564_428_608


def test_models_resolve(tmp_path, tiny_backbone_folder):
    assert hub.resolve("wan2.1-fun-1.3b-inp") == table.MODELS["wan2.1-fun-1.3b-inp"].ref
    assert hub.resolve("someone/some-model_1.0") == "someone/some-model_1.0"
    assert hub.resolve(str(tiny_backbone_folder)) == str(tiny_backbone_folder.resolve())
    for ref in ("nonsense", "", "a/b/c", "owner/"):
        with pytest.raises(InputError, match=r"nano, wan2\.1-fun-1\.3b-inp"):
            hub.resolve(ref)
    with pytest.raises(InputError, match=r"model_index\.json"):
        hub.resolve(str(tmp_path))


def test_every_model_names_its_licence_and_size():
    for name, spec in table.MODELS.items():
        assert spec.name == name and spec.licence and spec.note and spec.role
        assert spec.local == (not spec.download_bytes)


def test_what_a_small_model_knows_is_said_without_loading_it():
    assert "a red ball" in vocabulary_of("nano")
    assert vocabulary_of("wan2.1-fun-1.3b-inp") == vocabulary_of("no such model") == ""
