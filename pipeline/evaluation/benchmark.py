"""How long the parts of a render take on this machine, compared within one run.

`run` times a model that is at hand; `real` times the real ones with random weights, which cost the same: nothing is
downloaded, and only what depends on the weights' values, such as which passes a cache cuts short, cannot be known.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from pipeline import InputError, result_of
from pipeline.camera.geometry import CameraPath, default_intrinsics, follow, static_path
from pipeline.depth.estimate import resize_depth
from pipeline.evaluation.around import print_costs
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_to_path
from pipeline.media.video import Clip, resize, size_of, write_video
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import tell
from pipeline.method.methods import solve
from pipeline.method.problem import Problem, prepare
from pipeline.method.solvers import dds
from pipeline.models import memory
from pipeline.models.table import MODELS, of_role
from pipeline.prior import backbone as module
from pipeline.prior.backbone import Backbone
from pipeline.prior.fast import FEW_STEPS
from pipeline.prior.settings import Settings
from pipeline.render.analysis import analyse
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.view import look, measure, preview
from pipeline.world.cameras import preset_motion
from pipeline.world.scenes import Sample, render_sample

FRAMES, HEIGHT, WIDTH = 17, 480, 832
LENGTHS = FRAMES, 49, 97  # of the clips by which is told how costs grow with them
SIZES = (240, 416), (HEIGHT, WIDTH), (720, 1248)


def run(backbone: str = "nano", *, depth: str | None = None, size: tuple[int, int] | None = None) -> None:
    """Print tables: a sampling step with and without guidance, the warp, a changed camera path; a render's stages over
    the model's passes, the warp over a plain splat, and how costs grow, see `around`.

    Steps with and without guidance alternate, and the median of the differences counts, so that other load on the
    machine falls on both. depth: of the benchmark's clip, for a backbone without a depth model.
    """
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_video(clip, synthetic_clip(FRAMES, HEIGHT, WIDTH))
        request = RenderRequest(str(clip), frames=FRAMES, backbone=backbone, depth=depth, size=size)
        analysis = result_of(analyse(request))
        working = size_of(analysis.clip.frames)

        model = get_backbone(request.backbone)
        problem = prepare(model, result_of(look(analysis, request)).known, request.guidance)
        guided, plain, consistency = step_seconds(model, problem, request.guidance)
        share = 100 * (guided / plain - 1)
        _table(
            f"A sampling step of {request.backbone} at {FRAMES}x{working[0]}x{working[1]}",
            [("without guidance", plain, "1.000"), ("with guidance", guided, f"{guided / plain:.3f} ({share:+.2f} %)"),
             ("the guidance alone", consistency, f"{consistency / plain:.4f}")],
        )  # fmt: skip

        rows, scene = [], render_sample(0, frames=FRAMES)
        for height, width in ((HEIGHT, WIDTH), working):
            seconds = warp_seconds(scene, height, width)
            rows.append((f"{FRAMES}x{height}x{width}", seconds, f"{seconds / plain:.2f}"))
        _table("The warp (ratio: to a sampling step)", rows)

        # another amount each time, as while a handle is dragged; a larger working size is what a larger model has
        large = result_of(analyse(request.changed(size=(HEIGHT, WIDTH))))
        rows = []
        for seen in (analysis, large):
            height, width = size_of(seen.clip.frames)
            asked = [request.changed(camera="orbit-up", amount=10.0 + i) for i in range(7)]
            first = statistics.median(_seconds(partial(preview, seen, move, 0.5)) for move in asked)
            whole = statistics.median(_seconds(partial(measure, seen, move)) for move in asked[:3])
            rows += [
                (f"first frame, {height}x{width}", first, "1.0"),
                (f"all {FRAMES} frames", whole, f"{whole / first:.1f}"),
            ]
        _table("After a change of the camera path (ratio: to the first frame)", rows)

        def write(path: Path, frames: int, size: tuple[int, int]) -> Path:
            write_video(path, synthetic_clip(frames, *size))
            return path

        # a depth file is of one clip alone
        lengths, sizes = (LENGTHS, SIZES) if depth is None else ((FRAMES,), ((HEIGHT, WIDTH),))
        print_costs(write, request, scene, Path(folder), lengths=lengths, sizes=sizes)


def synthetic_clip(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Clip:
    """Smooth noise that drifts to the right, at 8 frames a second. The same at each call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 30, 52, generator=generator)
    picture = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return Clip(torch.cat([picture.roll(2 * t, dims=-1) for t in range(frames)]), 8.0)


def step_seconds(
    backbone: Backbone, problem: Problem, guidance: Guidance, *, pairs: int = 6
) -> tuple[float, float, float]:
    """Median seconds of a guided step, of an unguided one, and of the data consistency alone."""
    unguided = replace(problem, y_full=None, h=None)
    steps = replace(guidance, steps=pairs + 2)  # the first two pairs warm up
    with_it, without = (solve(backbone, tell(backbone, part, steps)) for part in (problem, unguided))
    guided, plain = [], []
    for _ in range(pairs + 2):
        plain.append(_seconds(lambda: next(without)))
        guided.append(_seconds(lambda: next(with_it)))
    assert problem.y_full is not None and problem.h is not None
    y_full, h = problem.y_full, problem.h
    alone = [_seconds(lambda: dds(problem.noise, y_full, h, gamma=guidance.gamma)) for _ in range(20)]
    base = statistics.median(plain[2:])
    extra = statistics.median(g - p for g, p in zip(guided[2:], plain[2:], strict=True))
    return base + extra, base, statistics.median(alone)


def warp_seconds(scene: Sample, height: int, width: int, *, repeats: int = 3) -> float:
    """The fastest of a few warps of a scene of the world, enlarged to height x width, along orbit-left, 20 degrees."""
    frames, z = resize(scene.source.frames, (height, width)), resize_depth(scene.source.z, (height, width))
    source: CameraPath = static_path(default_intrinsics(height, width, len(z)))
    target = follow(source, preset_motion("orbit-left", 20, len(z), 4.0))
    return min(_seconds(lambda: warp_to_path(frames, z, source, target)) for _ in range(repeats))


def random_backbone(name: str, device: torch.device, mode: memory.Mode, *, shrink: int = 1) -> Backbone:
    """A backbone of the table with random weights. shrink: divides widths and numbers of layers, for a machine without
    a GPU.

    On a GPU as it is served: bfloat16, but the VAE, and what diffusers keeps in float32.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    less = lambda number: max(1, number // shrink)
    published = MODELS[name].configs
    text: dict[str, Any] = dict(published["text_encoder"])
    text |= {key: less(text[key]) for key in ("vocab_size", "d_ff", "num_layers", "num_heads")}
    text["d_model"] = 64 * text["num_heads"]
    clip: dict[str, Any] = dict(published["image_encoder"])
    heads = less(clip["num_attention_heads"])
    clip |= {"num_attention_heads": heads, "hidden_size": 80 * heads, "intermediate_size": 320 * heads}
    clip["num_hidden_layers"] = max(2, less(clip["num_hidden_layers"]))
    wan: dict[str, Any] = dict(published["transformer"])
    wan |= {"num_attention_heads": less(wan["num_attention_heads"])}
    wan |= {"num_layers": max(2, less(wan["num_layers"])), "ffn_dim": less(wan["ffn_dim"])}
    wan |= {"text_dim": text["d_model"], "image_dim": clip["hidden_size"]}
    wan["added_kv_proj_dim"] = 128 * wan["num_attention_heads"]

    def build(cls: Any, *args: Any, dtype: torch.dtype, **options: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                module = cls(*args, **options).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
        for path, parameter in module.named_parameters():
            if kept & set(path.split(".")):
                parameter.data = parameter.data.float()
        return module.to("cpu") if mode.in_turn else module

    backbone = Backbone(
        name,
        Settings(),
        vae=build(AutoencoderKLWan, base_dim=max(8, 96 // shrink), dtype=torch.float32),
        transformer=build(WanTransformer3DModel, dtype=dtype, **wan),
        text_encoder=build(UMT5EncoderModel, UMT5Config(**text), dtype=dtype),
        tokenizer=_RandomTokens(text["vocab_size"]),
        image_encoder=build(CLIPVisionModel, CLIPVisionConfig(**clip), dtype=dtype),
        image_processor=_image_processor(),
        device=device,
    )
    backbone.place(mode)
    return backbone


class _RandomTokens:
    """Random numbers of tokens: which words a prompt has does not change what encoding it costs."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, prompts: list[str], *, max_length: int, **_: object) -> SimpleNamespace:
        ids = torch.randint(self.vocabulary, (len(prompts), max_length))
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def _image_processor():
    import transformers

    # the plain (PIL) class where there are two: the other one needs torchvision
    cls = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return cls(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})


def real(
    name: str = "wan2.1-fun-1.3b-inp",
    *,
    frames: Sequence[int] = (33, 49, 81),
    size: tuple[int, int] = (HEIGHT, WIDTH),
    steps: int = 50,
    timed: int = 6,
    modes: Sequence[str] = tuple(memory.MODES),
    shrink: int = 1,
) -> None:
    """Print, for a real model with random weights: a step with and without guidance, whole renders, the fast modes
    against full quality, and the largest use of GPU memory in each memory mode.

    steps: of a render, with classifier-free guidance; `timed` of them are, and the rest is extrapolated. modes: whose
    memory is measured, at the middle one of `frames`. shrink: see `random_backbone`. Raises `InputError`.
    """
    known = [spec.name for spec in of_role("backbone") if "image_encoder" in spec.configs]
    if name not in known:
        raise InputError(f"The benchmark knows no configuration of {name!r}; it knows {', '.join(known)}.")
    if wrong := [mode for mode in modes if mode not in memory.MODES]:
        raise InputError(f"Unknown memory mode {wrong[0]!r}; the modes are {', '.join(memory.MODES)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{name}, random weights, on {_device_name(device)}{f', shrunk {shrink} times' if shrink > 1 else ''}; "
          f"{steps} steps with classifier-free guidance, {timed} of them timed, the others extrapolated.")  # fmt: skip
    guidance = Guidance(prompt="a red cube", negative_prompt="blurred", steps=steps, guidance_scale=5.0)
    backbone = random_backbone(name, device, memory.WHOLE, shrink=shrink)
    print(f"Attention: {backbone.attention}; transformer: {str(backbone.dtype).removeprefix('torch.')}.")
    for count in frames:
        known = _half_known(count, *size)
        shape = f"{count}x{size[0]}x{size[1]}"
        texts = _seconds(lambda: (backbone.embed(guidance.prompt), backbone.embed(guidance.negative_prompt)))
        encoding = _seconds(lambda k=known: prepare(backbone, k, guidance))
        problem = prepare(backbone, known, guidance)
        guided, plain, alone = step_seconds(backbone, problem, guidance, pairs=timed)
        decoding = _seconds(lambda p=problem: backbone.decode(p.noise))
        _table(f"A step at {shape} (ratio: to the step without guidance)", [
            ("without guidance", plain, "1.000"),
            ("with guidance", guided, f"{guided / plain:.4f} ({100 * (guided / plain - 1):+.2f} %)"),
            ("the guidance alone", alone, f"{alone / plain:.5f} ({100 * alone / plain:.3f} %)"),
        ])  # fmt: skip
        whole = texts + encoding + steps * guided + decoding
        _table(f"A render at {shape}, from the warp to the raw result (ratio: to the whole)", [
            ("both prompts", texts, f"{texts / whole:.3f}"),
            ("filling and encoding", encoding, f"{encoding / whole:.3f}"),
            (f"{steps} steps", steps * guided, f"{steps * guided / whole:.3f}"),
            ("decoding", decoding, f"{decoding / whole:.3f}"),
            ("the whole", whole, "1.000"),
        ])  # fmt: skip
        _fast_table(backbone, problem, guidance, shape, guided, steps, texts + encoding + decoding)
        backbone.forget()
    del backbone, problem
    _memory_table(name, device, modes, (sorted(frames)[len(frames) // 2], *size), guidance, shrink)


def _fast_table(
    backbone: Backbone, problem: Problem, guidance: Guidance, shape: str, guided: float, steps: int, rest: float
) -> None:
    """Fast modes; which passes a cache cuts short depends on the weights, so that its limits are shown."""

    def step(problem: Problem, warm: int, fast: str = "off") -> float:
        told = tell(backbone, problem, replace(guidance, steps=warm + 3))
        sampled = solve(backbone, told, fast=fast)
        for _ in range(warm):
            next(sampled)
        seconds = statistics.median(_seconds(lambda: next(sampled)) for _ in range(3))
        del sampled  # which ends the fast mode
        return seconds

    with cut_always():
        cut = step(problem, 2, "cache")
    single = step(replace(problem, conditions=replace(problem.conditions, scale=1.0)), 1)
    few, full = FEW_STEPS.steps * single, steps * guided
    rows = [("full", full, f"1.00 (with the rest {full + rest:.1f} s)")]
    for share in (0.25, 0.5, 0.75):
        cached = steps * ((1 - share) * guided + share * cut)
        rows.append((f"cache, {share:.0%} cut short", cached, f"{cached / full:.2f}"))
    rows.append((f"LoRA, {FEW_STEPS.steps} steps", few, f"{few / full:.2f} (with the rest {few + rest:.1f} s)"))
    _table(f"Sampling in the fast modes at {shape} (ratio: to full; the LoRA's own matrices left out)", rows)


@contextmanager
def cut_always() -> Iterator[None]:
    """Inside of it the first-block cache cuts every pass short that it can."""
    before, module.CACHE_THRESHOLD = module.CACHE_THRESHOLD, 1e9
    try:
        yield
    finally:
        module.CACHE_THRESHOLD = before


def _memory_table(
    name: str, device: torch.device, modes: Sequence[str], clip: tuple[int, int, int], guidance: Guidance,
    shrink: int,
) -> None:  # fmt: skip
    frames, height, width = clip
    columns = "the largest sum of tensors, what torch reserved, the estimate; and a step"
    print(f"\nGPU memory at {frames}x{height}x{width}, GB: {columns}")
    for name_of_mode in modes:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        mode = memory.MODES[name_of_mode]
        backbone = random_backbone(name, device, mode, shrink=shrink)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        problem = prepare(backbone, _half_known(frames, height, width), guidance)
        sampled = solve(backbone, tell(backbone, problem, replace(guidance, steps=4)))
        seconds = [_seconds(lambda s=sampled: next(s)) for _ in range(4)]
        backbone.decode(problem.noise)
        estimate = memory.need(backbone.size, frames, height, width, mode) / 1e9
        if device.type == "cuda":
            used, held = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
            found = f"{used:>7.2f}{held:>9.2f}"
        else:
            found = f"{'no GPU':>7}{'no GPU':>9}"
        print(f"  {name_of_mode:<24}{found}{estimate:>9.2f}{min(seconds[1:]) * 1000:>12.1f} ms")
        del backbone, problem, sampled


def _half_known(frames: int, height: int, width: int) -> Known:
    """A clip whose left half is known after its first frame."""
    video = synthetic_clip(frames, height, width).frames
    mask = torch.ones(frames, 1, height, width, dtype=torch.bool)
    mask[1:, ..., width // 2 :] = False
    source = static_path(default_intrinsics(height, width, frames))
    target = follow(source, preset_motion("orbit-left", 20, frames, 4.0))
    return Known(Measurement(video * mask, mask), video, torch.full((frames, height, width), 4.0), source, target)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)} ({free / 1e9:.0f} of {total / 1e9:.0f} GB free)"
    return f"the processor ({torch.get_num_threads()} threads)"


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    begun = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _table(title: str, rows: list[tuple[str, float, str]]) -> None:
    print(f"\n{title}")
    for name, seconds, ratio in rows:
        print(f"  {name:<24}{seconds * 1000:>12.1f} ms   {ratio}")
