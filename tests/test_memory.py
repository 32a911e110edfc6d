"""Memory modes, fast modes, cached encodings: what a machine without a GPU can show of them."""

from __future__ import annotations

import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_backbone
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.camera.geometry import default_intrinsics, follow, static_path
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import inversecrafter, tell
from pipeline.method.methods import solve
from pipeline.method.problem import prepare
from pipeline.models import memory
from pipeline.models.memory import MODES, WHOLE, choose, model_size, need, needs
from pipeline.models.table import MODELS as TABLE
from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FEW_STEPS
from pipeline.prior.load import load_backbone, skeleton
from pipeline.render.request import RenderRequest
from pipeline.render.worker import with_previews
from pipeline.world.cameras import preset_motion

CPU = {"device": "cpu", "dtype": torch.float32}
T, H, W = 9, 32, 48
GB = 10**9
AUTOMATIC = [mode for mode in MODES.values() if mode.automatic]


def load_tiny(folder: Path, **options) -> Backbone:
    loaded = load_backbone(str(folder), **CPU, **options)
    loaded.frames = T  # sampled at once
    return loaded


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return load_tiny(tiny_backbone_folder)


@pytest.fixture(scope="module")
def real() -> dict[str, torch.nn.Module]:
    """Wan2.1-Fun-V1.1-1.3B-InP by its published configurations, without weights."""
    return skeleton(TABLE["wan2.1-fun-1.3b-inp"])


def known() -> Known:
    """A clip whose right half is unknown after its first frames, seen from a camera that moves."""
    coarse = torch.rand(1, 3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    video = F.interpolate(coarse, size=(T, H, W), mode="trilinear")[0].transpose(0, 1).contiguous()
    mask = torch.ones(T, 1, H, W, dtype=torch.bool)
    mask[2:, ..., 24:] = False
    source = static_path(default_intrinsics(H, W, T))
    target = follow(source, preset_motion("orbit-left", 20, T, 4.0))
    return Known(Measurement(video * mask, mask), video, torch.full((T, H, W), 4.0), source, target)


def raw_of(backbone: Backbone, guidance: Guidance) -> Tensor:
    told = inversecrafter(backbone, known(), guidance)
    *_, last = solve(backbone, told, fast=guidance.fast)
    return backbone.decode(last.z)


GUIDANCE = Guidance(prompt="a red cube", negative_prompt="blue", steps=3)
REQUEST = RenderRequest("(none)", guidance=GUIDANCE)


# --- each mode computes the same


@pytest.mark.parametrize("name", MODES)
def test_each_mode_computes_what_the_plain_one_does(tiny_backbone_folder, backbone, name):
    mode = MODES[name]
    other = load_tiny(tiny_backbone_folder, mode=mode)
    plain, found = raw_of(backbone, GUIDANCE), raw_of(other, GUIDANCE)
    assert plain.std() > 1e-3
    if mode.eight_bits:
        kept = {parameter.dtype for parameter in other.transformer.blocks[0].ffn.parameters()}
        assert kept == {torch.float8_e4m3fn}
        assert 0 < (found - plain).norm() < 0.03 * plain.norm()
    else:
        assert torch.equal(found, plain)


def test_parts_take_turns(tiny_backbone_folder):
    other = load_tiny(tiny_backbone_folder, mode=MODES["offload"])
    moves: list[tuple[str, str]] = []
    for name in ("vae", "transformer"):
        part = getattr(other, name)
        part.to = lambda where, name=name: moves.append((name, str(where)))
    other.device = torch.device("cpu:0")  # another name than that of where they rest
    raw_of(other, GUIDANCE)
    there: set[str] = set()
    for name, where in moves:
        (there.discard if where == "cpu" else there.add)(name)
        assert len(there) <= 1
    assert [name for name, where in moves if where != "cpu"] == ["vae", "transformer", "vae"]


def test_tiles_stay_near_the_whole_picture():
    folder = Path(__file__).parents[1] / "assets" / "nano"
    coarse = torch.rand(1, 3, 2, 5, 12, generator=torch.Generator().manual_seed(0))
    video = F.interpolate(coarse, size=(5, 32, 544), mode="trilinear")[0].transpose(0, 1)
    whole, tiled = (load_backbone(str(folder), **CPU, mode=mode) for mode in (WHOLE, MODES["tiles"]))
    z, z_tiled = whole.encode(video), tiled.encode(video)
    assert not torch.equal(z, z_tiled) and (z - z_tiled).norm() < 0.05 * z.norm()
    error = (whole.decode(z) - tiled.decode(z)).square().mean().item()
    assert error > 0 and -10 * math.log10(error) > 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", MODES)
def test_each_mode_on_a_gpu(tiny_backbone_folder, name):
    plain, found = (
        raw_of(load_backbone(str(tiny_backbone_folder), "cuda", torch.float32, mode), GUIDANCE)
        for mode in (WHOLE, MODES[name])
    )
    assert (found - plain).norm() < (0.03 if MODES[name].eight_bits else 1e-3) * plain.norm()


# --- the estimate and the choice


class LargestSum(TorchDispatchMode):
    """Counts the bytes of all tensors alive that were made inside of it; `peak` is the largest sum."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        kept = (*model.parameters(), *model.buffers())
        self.seen = {tensor.untyped_storage()._cdata for tensor in kept}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self.release, key, size)
        return result

    def release(self, key: int, size: int) -> None:
        self.live -= size
        self.seen.discard(key)


class FusedAttention(TorchFunctionMode):
    """Attention as GPU kernels do it: without the matrix of all scores, which a model without a device would make."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return torch.empty_like((args or list((kwargs or {}).values()))[0])
        return function(*args, **(kwargs or {}))


def on_meta(*shape: int, dtype=torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("heads", "ffn"), [(12, 8960), (40, 13824)])
@pytest.mark.parametrize("frames", [33, 81])
def test_estimated_activations_are_those_of_a_pass(real, heads, ffn, frames):
    from diffusers import WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=heads, num_layers=2, ffn_dim=ffn, in_channels=36, image_dim=1280, text_dim=4096,
            added_kv_proj_dim=128 * heads,
        )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if not set(name.split(".")) & set(transformer._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.bfloat16()
    size = model_size(**(real | {"transformer": transformer}))
    with torch.no_grad(), FusedAttention(), LargestSum(transformer) as counted:
        transformer(
            on_meta(1, 36, (frames - 1) // 4 + 1, 60, 104), on_meta(1, dtype=torch.float32), on_meta(1, 512, 4096),
            on_meta(1, 257, 1280), return_dict=False,
        )  # fmt: skip
    estimated = memory.sampling_bytes(size, frames, 480, 832)
    print(f"{frames} frames, {heads} heads: {estimated / counted.peak:.2f} of {counted.peak / GB:.2f} GB")
    assert counted.peak <= estimated <= 1.2 * counted.peak


@pytest.mark.parametrize(
    ("tiles", "frames", "height", "width"),
    [(False, 9, 480, 832), pytest.param(True, 9, 320, 320, marks=pytest.mark.slow)],
)
def test_estimated_activations_are_those_of_the_vae(real, tiles, frames, height, width):
    from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]

    with torch.device("meta"):
        vae = AutoencoderKLWan()
    if tiles:
        vae.enable_tiling()
    peaks = []
    with torch.no_grad(), FusedAttention():
        with LargestSum(vae) as counted:
            vae.encode(on_meta(1, 3, frames, height, width, dtype=torch.float32))
        peaks.append(counted.peak)
        with LargestSum(vae) as counted:
            vae.decode(on_meta(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, dtype=torch.float32))
        peaks.append(counted.peak)
    estimated = memory.vae_bytes(model_size(**real), frames, height, width, tiles=tiles)
    print(f"{estimated / max(peaks):.2f} of {max(peaks) / GB:.2f} GB")
    assert max(peaks) <= estimated <= 1.2 * max(peaks)


def test_the_aims_hold_by_the_estimate(real):
    size = model_size(**real)
    assert size.transformer == 2 * 1_564_428_608 and size.vae == 4 * 126_892_531
    # of 12 and 8 GB, about 1 GB is the driver's and the desktop's
    assert choose(size, 49, 480, 832, free=11 * GB).mode == MODES["offload"]
    assert choose(size, 49, 480, 832, free=7 * GB).mode == MODES["tiles"]
    assert choose(size, 81, 480, 832, free=7 * GB).need <= 7 * GB
    assert choose(size, 81, 480, 832, free=80 * GB).mode == WHOLE


def test_need_grows_with_the_clip_and_falls_with_frugality(real):
    size = model_size(**real)
    for mode in MODES.values():
        for cache in (False, True):
            by_frames = [needs(size, frames, 480, 832, mode, cache=cache) for frames in (1, 5, 17, 49, 81, 121)]
            for stage in ("vae", "sampling"):
                values = [value[stage] for value in by_frames]
                assert values == sorted(values) and len(set(values)) == len(values)
            by_size = [need(size, 49, h, 832, mode, cache=cache) for h in (240, 480, 720, 1088)]
            assert by_size == sorted(by_size)
    for frames, height, width in ((1, 64, 64), (49, 480, 832), (81, 720, 1280)):
        by_mode = [need(size, frames, height, width, mode) for mode in MODES.values()]
        assert by_mode == sorted(by_mode, reverse=True)
    assert need(size, 49, 480, 832, MODES["groups"], cache=True) >= need(size, 49, 480, 832, MODES["groups"])


def test_a_long_clip_needs_the_activations_of_one_window(real):
    size = model_size(**real, window=81)
    latents = 4 * 9 * 36 * 60 * 104 * (257 - 21)  # of 1025 frames, and of 81
    for mode in MODES.values():
        short, long = (needs(size, frames, 480, 832, mode)["sampling"] for frames in (81, 1025))
        assert long - short == pytest.approx(memory.MARGIN * latents, rel=1e-6)
        assert long < needs(replace(size, window=None), 1025, 480, 832, mode)["sampling"] / 1.5
        video = 4 * 3 * 480 * 832 * (1025 - 81)
        assert needs(size, 1025, 480, 832, mode)["vae"] > needs(size, 81, 480, 832, mode)["vae"] + video
        # what a cache keeps is kept of every window
        kept = [needs(size, n, 480, 832, mode, cache=True)["sampling"] for n in (81, 161, 1025)]
        assert kept[0] < kept[1] < kept[2] and kept[2] - long > 5 * (kept[0] - short)


@pytest.mark.parametrize("solver", ["dds", "dds_cg", "replacement", "repaint"])
def test_estimated_latents_are_those_of_a_render(backbone, solver, monkeypatch):
    """All but the passes themselves, which the model is spared here."""
    guidance = replace(GUIDANCE, solver=solver, steps=3)
    problem = prepare(backbone, known(), guidance)
    larger = lambda part: part.repeat(1, 4, 4, 4)
    names = ("y_full", "h", "noise")
    channels = larger(problem.conditions.channels)
    conditions = replace(problem.conditions, channels=channels)
    problem = replace(problem, conditions=conditions, **{name: larger(getattr(problem, name)) for name in names})
    monkeypatch.setattr(Backbone, "velocity", lambda self, z, *_: torch.zeros_like(z))
    told = channels.nbytes + sum(getattr(problem, name).nbytes for name in names)
    with LargestSum(backbone.vae) as counted:
        for _ in solve(backbone, tell(backbone, problem, guidance)):
            pass
    tokens = problem.noise[0].numel() // 4
    print(f"{solver}: {(told + counted.peak) / (tokens * backbone.size.latents):.2f}")
    assert 0.6 < (told + counted.peak) / (tokens * backbone.size.latents) <= 1


def test_on_a_lent_gpu_all_stays_whole(real, monkeypatch):
    size = model_size(**real)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    plan = choose(size, 81, 480, 832, free=None)
    assert plan.mode == WHOLE and plan.need == need(size, 81, 480, 832, WHOLE) and "lent" in plan.words
    with pytest.raises(InputError, match="stays whole"):
        choose(size, 81, 480, 832, free=None, wanted="tiles")


def test_more_free_memory_never_means_a_more_frugal_mode(real):
    size, order = model_size(**real), list(MODES)
    frugality = []
    for free in range(3 * GB, 40 * GB, GB // 4):
        try:
            plan = choose(size, 49, 480, 832, free=free)
        except InputError:
            assert not frugality
            continue
        assert plan.need is not None and plan.need <= free and plan.mode.automatic
        frugality.append(order.index(plan.mode.name))
    assert frugality == sorted(frugality, reverse=True)
    assert {order[index] for index in frugality} >= {"whole", "offload", "tiles", "groups"}


def test_where_nothing_fits_the_remedy_fits(real):
    size, free = model_size(**real), 6 * GB
    with pytest.raises(InputError, match=r"6\.0 GB are free, \d\.\d GB are missing") as refused:
        choose(size, 121, 720, 1280, free=free)
    words = str(refused.value)
    frames = re.search(r"at most (\d+) frames", words)
    assert frames and int(frames[1]) % 4 == 1
    assert need(size, int(frames[1]), 720, 1280, MODES["fp8-groups"]) <= free
    assert need(size, int(frames[1]) + 4, 720, 1280, MODES["fp8-groups"]) > free
    smaller = re.search(r"the size (\d+)x(\d+)", words)
    assert smaller and need(size, 121, int(smaller[1]), int(smaller[2]), MODES["fp8-groups"]) <= free
    with pytest.raises(InputError, match="Close other programs"):
        choose(size, 49, 480, 832, free=GB // 10)


def test_a_wanted_mode_is_taken_and_stated(real):
    size = model_size(**real)
    plan = choose(size, 49, 480, 832, free=2 * GB, wanted="fp8")
    assert plan.mode == MODES["fp8"] and "of the 2.0 GB free" in plan.words and "may not be enough" in plan.words
    assert "8 bits" in plan.words and "not be enough" not in replace(plan, free=9 * GB).words
    with pytest.raises(InputError, match="one of auto, whole"):
        choose(size, 49, 480, 832, free=2 * GB, wanted="nonsense")


def test_without_a_gpu_nothing_is_moved(backbone):
    plan = backbone.plan(T, H, W)
    assert plan.mode == WHOLE and plan.need is None and "No GPU" in plan.words
    with pytest.raises(InputError, match="fp8 is for a CUDA GPU"):
        backbone.plan(T, H, W, wanted="fp8")


# --- encodings are kept, and nothing waits


def test_encoders_run_once_for_each_prompt_and_picture(tmp_path):
    backbone = load_backbone(str(make_backbone(tmp_path, text_tokens=512, image_branch=True)), **CPU)
    calls = []
    for part in (backbone.text_encoder, backbone.image_encoder):
        part.register_forward_pre_hook(lambda *_: calls.append(1))
    first = backbone.embed("a red cube")
    assert torch.equal(backbone.embed("a red cube"), first) and len(calls) == 1
    assert not torch.equal(backbone.embed("a ball"), first) and len(calls) == 2
    picture = torch.rand(3, 40, 60)
    seen = backbone.embed_image(picture)
    assert torch.equal(backbone.embed_image(picture.clone()), seen) and len(calls) == 3
    backbone.embed_image(picture.flip(-1))
    backbone.embed_image(picture.flip(-1).reshape(3, 60, 40))  # the same numbers, another picture
    assert len(calls) == 5
    for number in range(40):
        backbone.embed(f"ball {number}")
    assert len(backbone.texts) <= 16


class NoWaiting(TorchDispatchMode):
    """Fails where a host would wait for its device: a value read, a shape that depends on values."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", ["dds", "dds_cg", "none"])
def test_the_sampling_loop_never_waits(backbone, solver):
    told = inversecrafter(backbone, known(), replace(GUIDANCE, solver=solver))
    steps = with_previews(backbone, solve(backbone, told))
    next(steps)  # before the first step, prompts are embedded and noise levels chosen
    with NoWaiting():
        previews = [preview for _, preview in steps]
    assert len(previews) == 2 and previews[0].shape == (3, 4, 6, 3)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        bool(told.z.sum() > 0)


# --- fast modes


def test_a_cache_cuts_passes_short_and_leaves_nothing_behind(backbone, monkeypatch):
    plain = raw_of(backbone, GUIDANCE)
    monkeypatch.setattr("pipeline.prior.backbone.CACHE_THRESHOLD", 0.0)
    assert torch.equal(raw_of(backbone, replace(GUIDANCE, fast="cache")), plain)
    assert (backbone.passes.asked, backbone.passes.whole) == (6, 6)
    monkeypatch.setattr("pipeline.prior.backbone.CACHE_THRESHOLD", 1e9)
    cut = raw_of(backbone, replace(GUIDANCE, fast="cache"))
    # all but the first pass of either kind, with and without the prompt
    assert (backbone.passes.asked, backbone.passes.whole) == (6, 2)
    assert 0 < (cut - plain).norm() < 0.5 * plain.norm()
    assert torch.equal(raw_of(backbone, GUIDANCE), plain)

    steps = solve(backbone, inversecrafter(backbone, known(), GUIDANCE), fast="cache")
    next(steps)
    assert backbone.transformer.is_cache_enabled
    steps.close()  # as when a render is stopped
    assert not backbone.transformer.is_cache_enabled
    assert torch.equal(raw_of(backbone, GUIDANCE), plain)


def test_a_cache_keeps_the_parts_of_a_clip_apart(backbone, monkeypatch):
    monkeypatch.setattr("pipeline.prior.backbone.CACHE_THRESHOLD", 1e9)
    problem = prepare(backbone, known(), GUIDANCE)
    conditions = replace(problem.conditions, prompt=backbone.embed("a cube"), scale=1.0)

    def velocity(z: Tensor, part: str) -> Tensor:
        return backbone.velocity(z, 0.7, replace(conditions, context=part))

    other = problem.noise.flip(-1)
    alone = velocity(other, "")
    with backbone.fast("cache"):
        velocity(problem.noise, "first")
        assert torch.equal(velocity(other, "second"), alone)
        assert not torch.equal(velocity(other, "first"), alone)


def test_the_cache_works_in_groups_and_in_eight_bits(tiny_backbone_folder, backbone, monkeypatch):
    monkeypatch.setattr("pipeline.prior.backbone.CACHE_THRESHOLD", 1e9)
    plain = raw_of(backbone, replace(GUIDANCE, fast="cache"))
    for name in ("groups", "fp8-groups"):
        other = load_tiny(tiny_backbone_folder, mode=MODES[name])
        found = raw_of(other, replace(GUIDANCE, fast="cache"))
        assert (found - plain).norm() <= (0.03 if "fp8" in name else 0) * plain.norm()


def test_the_few_step_lora_is_refused_where_it_does_not_fit(backbone):
    with pytest.raises(InputError, match=r"fits Wan 2\.1 1\.3B, with 30 blocks 1536 wide.*has 2, 24 wide"):
        raw_of(backbone, replace(GUIDANCE, fast="lora"))


def write_lora(folder: Path, width: int, layers: int) -> Path:
    """A LoRA in the layout of the published one (original Wan names), with random numbers."""
    from safetensors.torch import save_file

    generator, state = torch.Generator().manual_seed(0), {}
    for index in range(layers):
        for attention in ("self_attn", "cross_attn"):
            for letter in "qkvo":
                name = f"diffusion_model.blocks.{index}.{attention}.{letter}"
                state[f"{name}.lora_down.weight"] = torch.randn(4, width, generator=generator)
                state[f"{name}.lora_up.weight"] = 0.05 * torch.randn(width, 4, generator=generator)
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.mark.parametrize("name", ["whole", "offload", "groups"])
def test_the_few_step_lora_acts_while_it_is_wanted(tiny_backbone_folder, tmp_path, monkeypatch, name):
    backbone = load_tiny(tiny_backbone_folder, mode=MODES[name])
    monkeypatch.setattr("pipeline.prior.fast.FEW_STEPS", replace(FEW_STEPS, width=24, layers=2))
    lora = write_lora(tmp_path, 24, 2)
    (part,) = TABLE[FEW_STEPS.model].parts
    spec = replace(TABLE[FEW_STEPS.model], parts=(replace(part, files=(lora.name,)),))
    monkeypatch.setitem(TABLE, FEW_STEPS.model, spec)
    monkeypatch.setattr("pipeline.models.hub.download", lambda asked, _: (tmp_path,) if asked is spec else ())
    plain = raw_of(backbone, replace(GUIDANCE, steps=2, guidance_scale=1.0))
    changed = raw_of(backbone, replace(GUIDANCE, fast="lora", steps=2))
    assert backbone.passes.asked == 2 and (changed - plain).norm() > 1e-4 * plain.norm()
    assert torch.equal(raw_of(backbone, replace(GUIDANCE, steps=2, guidance_scale=1.0)), plain)
    lora = write_lora(tmp_path, 36, 2)
    with pytest.raises(InputError, match="does not fit the model"):
        raw_of(backbone, replace(GUIDANCE, fast="lora"))


def test_the_few_step_lora_is_refused_in_eight_bits(tiny_backbone_folder, monkeypatch):
    backbone = load_tiny(tiny_backbone_folder, mode=MODES["fp8"])
    monkeypatch.setattr("pipeline.prior.fast.FEW_STEPS", replace(FEW_STEPS, width=24, layers=2))
    with pytest.raises(InputError, match="8 bits"):
        raw_of(backbone, replace(GUIDANCE, fast="lora"))


def test_a_missing_peft_is_said(backbone, monkeypatch):
    monkeypatch.setattr("pipeline.prior.fast.FEW_STEPS", replace(FEW_STEPS, width=24, layers=2))
    monkeypatch.setattr("pipeline.prior.fast.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install peft"):
        raw_of(backbone, replace(GUIDANCE, fast="lora"))


def test_compiling_is_refused_where_it_cannot_work(tiny_backbone_folder, monkeypatch):
    backbone = load_tiny(tiny_backbone_folder, mode=MODES["groups"])
    with pytest.raises(InputError, match="memory mode groups"):
        backbone.compile()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    with pytest.raises(InputError, match="ZeroGPU"):
        backbone.compile()
    with pytest.raises(InputError, match="compile must be false with a fast mode"):
        REQUEST.changed(compile=True, fast="cache")


def test_requests_carry_the_modes():
    request = REQUEST.changed(fast="cache", memory="tiles", compile=False)
    assert RenderRequest.from_json(request.to_json()) == request
    assert json.loads(request.to_json())["memory"] == "tiles"
    for field in ("fast", "memory"):
        with pytest.raises(InputError, match=f"{field} must be one of"):
            REQUEST.changed(**{field: "nonsense"})


def test_the_benchmark_of_real_models_runs_small(capsys):
    small = ["--shrink", "12", "--frames", "5", "--size", "32x48", "--steps", "3", "--timed", "1"]
    assert main(["benchmark", "--real", *small, "--modes", "whole", "groups"]) == 0
    table = capsys.readouterr().out
    for words in ("A step at 5x32x48", "with guidance", "A render at 5x32x48", "cache, 50% cut short", "LoRA, 8 steps"):
        assert words in table
    assert re.search(r"groups +no GPU +no GPU +\d\.\d\d", table) and "fp8" not in table
    assert main(["benchmark", "--real", "nonsense"]) == 2
    assert main(["benchmark", "--real", "--modes", "nonsense", "--frames", "5"]) == 2
