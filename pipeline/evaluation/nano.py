"""How good the small models are, on scenes and clips that no training saw: one table, next to what is aimed at.

    python -m pipeline.evaluation.nano [--clips CLIP ...] [--depth-of CLIP DEPTH]

Scenes are of the procedural world, seeds below 100000; all come from `--first-seed` on.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from pipeline.depth.estimate import DepthModel, affine_disparity, estimate_depth
from pipeline.depth.files import load_depth
from pipeline.depth.load import load_depth_model
from pipeline.evaluation import judge as classifier
from pipeline.evaluation.metrics import flicker
from pipeline.evaluation.rows import mean, with_error
from pipeline.evaluation.scenes import BASE, measure_sample, recapture_sample
from pipeline.finish.composite import composite
from pipeline.known.fill import telea
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.masks.shape import grow
from pipeline.media.quality import psnr
from pipeline.media.video import Clip, crop_to_aspect, read_video, resize, to_uint8, write_video
from pipeline.method.methods import METHODS, solve
from pipeline.models.hub import resolve
from pipeline.prior.backbone import Backbone
from pipeline.prior.settings import read_settings
from pipeline.render.events import DoneEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest, seam_of
from pipeline.render.run import render
from pipeline.render.view import show_holes
from pipeline.world.objects import SHAPES, object_name
from pipeline.world.raycast import FAR
from pipeline.world.scenes import Sample, render_sample
from pipeline.world.textures import COLOURS

FRAMES, SIZE = 17, (128, 208)
STRIPS = 4  # replacements in the figure


@dataclass(frozen=True)
class Row:
    """A figure: what was reached, in words with its unit, and what is aimed at."""

    name: str
    reached: str
    aim: str


def table(rows: list[Row]) -> str:
    lines = ["| figure | reached | aim |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row.name} | {row.reached} | {row.aim} |" for row in rows])


def scenes(first_seed: int, count: int) -> Iterator[Sample]:
    for seed in range(first_seed, first_seed + count):
        yield render_sample(seed, frames=FRAMES, size=SIZE)


def mean_with_error(values: list[float], form: str = ".2f") -> str:
    """Mean ± standard error in words; of a single value, which has no error, the value alone."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return with_error(mean(values), error, form)


# --- the VAE ----------------------------------------------------------------------------------------------------------


def reconstruction(backbone: Backbone, frames: Float[Tensor, "T 3 H W"]) -> float:
    """PSNR in dB of a clip encoded and decoded."""
    return psnr(backbone.decode(backbone.encode(frames)).cpu(), frames)


def blocks(frames: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "N D"]:
    """The 4x8x8-pixel blocks of a clip after its first frame, as rows."""
    whole = frames[1 : 1 + (len(frames) - 1) // 4 * 4]
    return rearrange(whole, "(t a) c (h b) (w d) -> (t h w) (c a b d)", a=4, b=8, d=8).double()


def principal_components(fit_on: list[Tensor], frames: Tensor, count: int) -> float:
    """PSNR in dB of a clip's blocks from `count` principal components fitted on other clips: the linear floor."""
    rows = torch.cat([blocks(clip) for clip in fit_on])
    mean = rows.mean(0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    basis = vectors[:, -count:]
    own = blocks(frames) - mean
    error = (own - own @ basis @ basis.T).square().mean().item()
    return -10 * math.log10(error)


def real_clip(path: str) -> Float[Tensor, "T 3 H W"]:
    """The first frames of a clip at the size at which the nano models work."""
    clip = crop_to_aspect(read_video(path, frames=FRAMES), SIZE)
    return resize(clip.frames, SIZE).clamp(0, 1)


# --- depth ------------------------------------------------------------------------------------------------------------


def depth_errors(model: DepthModel, sample: Sample) -> list[float]:
    """AbsRel of the surfaces (without sky) of both recordings of a scene, after a scale and shift of disparity each."""
    errors = []
    for view in (sample.source, sample.target):
        found, solid = estimate_depth(view.frames, model).z, view.z < 0.99 * FAR
        scaled = affine_disparity(found[solid], view.z[solid])
        errors.append(((scaled - view.z[solid]).abs() / view.z[solid]).mean().item())
    return errors


# --- replacement ------------------------------------------------------------------------------------------------------


def replacement(
    backbone: Backbone, sample: Sample, rng: np.random.Generator, request: RenderRequest = BASE
) -> tuple[Tensor, Tensor, str] | None:
    """A well seen solid of a scene replaced by one of another colour and shape: the raw result, what was hidden
    T H W, and the prompt; None if the scene has no such solid."""
    view = sample.source
    share = view.objects.float().mean((0, 2, 3))
    seen = [i for i, s in enumerate(sample.scene.solids) if s.shape in SHAPES and 0.01 < share[i] < 0.3]
    if not seen:
        return None
    index = int(rng.choice(seen))
    solid = sample.scene.solids[index]
    colour = str(rng.choice([c for c in COLOURS if c != solid.colour]))
    shape = str(rng.choice([s for s in SHAPES if s != solid.shape]))
    prompt = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
    hidden = view.objects[:, index]
    # its box, so that the outline of the old one does not decide on the new one
    hidden = grow(hidden.any(2, keepdim=True) & hidden.any(1, keepdim=True), 3)
    z = torch.where(hidden, torch.nan, view.z)
    measurement = Measurement(view.frames * ~hidden[:, None], ~hidden[:, None], z)
    known = Known(measurement, view.frames, z, view.path, view.path, place=hidden)
    guidance = request.changed(prompt=prompt).guidance
    told = METHODS[guidance.method](backbone, known, guidance)
    z = told.z
    for step in solve(backbone, told, fast=guidance.fast):
        z = step.z
    return backbone.decode(z).cpu(), hidden, prompt


# --- all of it --------------------------------------------------------------------------------------------------------


def evaluate(
    backbone_ref: str,
    *,
    first_seed: int,
    count: int,
    replacements: int,
    depth_scenes: int,
    clips: list[str],
    depth_of: tuple[str, str] | None,
    say: Callable[[str], None],
    figure: Path | None = None,
) -> list[Row]:
    """All figures that can be had from what is given; the others say what they need."""
    backbone, folder = get_backbone(backbone_ref), Path(resolve(backbone_ref))
    channels = backbone.latent_channels
    rows: list[Row] = []
    over, over_alone, over_prior, over_first, unsteady, vae, errors = [], [], [], [], [], [], []
    settings = read_settings(folder)
    depth_model = load_depth_model(settings.depth, "cpu") if settings.depth else None
    for number, sample in enumerate(scenes(first_seed, count), 1):
        measurement, truth = measure_sample(sample), sample.target.frames
        holes = ~measurement.mask
        vae.append(reconstruction(backbone, truth))
        if depth_model is not None:
            errors.append(mean(depth_errors(depth_model, sample)))
        if holes.float().mean() > 0.005:
            videos = []
            first, alone = {"condition": "first-frame"}, {"solver": "none"}
            for how in ({"other_frames": True}, {}, alone, first, first | alone):
                raw, completed, _ = recapture_sample(backbone, sample, measurement, BASE.changed(**how))
                videos.append(composite(raw, completed, seam_pixels=seam_of(BASE, SIZE)))  # as it is shown
            result, own, prior, own_first, prior_first = videos
            of = lambda video, truth=truth, holes=holes: psnr(video, truth, holes)
            over.append(of(result) - of(telea(measurement)))
            over_alone.append(of(own) - of(telea(measurement)))
            over_prior.append(of(own) - of(prior))
            over_first.append(of(own_first) - of(prior_first))
            view = sample.target
            times = flicker(result, truth, view.z, view.path, holes[:, 0] & view.standing)
            unsteady += [] if times is None else [times]
        say(f"scene {number} of {count}")
    rows.append(Row(f"VAE, {count} unseen scene{'s' if count > 1 else ''}", f"{mean_with_error(vae)} dB", "≥ 32 dB"))
    if clips:
        videos = {path: real_clip(path) for path in clips}
        own = {path: reconstruction(backbone, video) for path, video in videos.items()}
        rows.append(Row(f"VAE, {len(clips)} real clips", f"{np.mean(list(own.values())):.2f} dB", "≥ 29 dB"))
        if len(clips) > 1:
            linear = [
                principal_components([v for p, v in videos.items() if p != path], videos[path], channels)
                for path in clips
            ]
            gain = float(np.mean([own[path] - floor for path, floor in zip(clips, linear, strict=True)]))
            note = f"{gain:+.2f} dB ({np.mean(linear):.2f} dB)"
            rows.append(Row(f"the same above {channels} principal components of the other clips", note, "≥ +2 dB"))
    else:
        rows.append(Row("VAE, real clips", "not measured: give --clips", "≥ 29 dB"))
    rows.append(Row("holes, above OpenCV's Telea", f"{mean_with_error(over, '+.2f')} dB", "≥ +4 dB"))
    rows.append(Row("the same, without other frames", f"{mean_with_error(over_alone, '+.2f')} dB", ""))
    # the paper's prior sees the first frame, and the rest of the warp by guidance; ours is shown the warp as well
    for shown, gains in (("the first frame, as the paper's is", over_first), ("the warp", over_prior)):
        name = f"guidance alone, above the same prior without it, both shown {shown}"
        reached = f"{mean_with_error(gains, '+.2f')} dB (median {np.median(gains):+.1f})"
        rows.append(Row(name, reached, "≥ +2 dB"))
    rows.append(Row("flicker in the holes, times the true video's", f"{np.median(unsteady):.2f} (median)", "≤ 1.3"))
    rows += _replacements(backbone, folder, first_seed, replacements, say, figure)
    if depth_model is not None:
        for number, sample in enumerate(scenes(first_seed + count, depth_scenes - count), count + 1):
            errors.append(mean(depth_errors(depth_model, sample)))
            say(f"depth of scene {number} of {depth_scenes}")
        name = f"depth, AbsRel after scale and shift, surfaces, {len(errors)} unseen scenes"
        reached = f"{mean_with_error(errors, '.3f')} (median {np.median(errors):.3f})"
        rows.append(Row(name, reached, "≤ 0.06"))
    if depth_of and depth_model is not None:
        frames = read_video(depth_of[0], max_side=416).frames
        found = estimate_depth(frames, depth_model).z.flatten()[::7]
        given = load_depth(depth_of[1], len(frames), (frames.shape[-2], frames.shape[-1])).z.flatten()[::7]
        rank = float(np.corrcoef(rankdata(found.numpy()), rankdata(given.numpy()))[0, 1])
        rows.append(Row(f"depth, rank correlation on {Path(depth_of[0]).parent.name}", f"{rank:.2f}", "≥ 0.7"))
    else:
        rows.append(Row("depth, rank correlation on a real clip", "not measured: give --depth-of", "≥ 0.7"))
    seconds = render_seconds(backbone_ref)
    rows.append(Row(f"a render of {FRAMES} frames at {SIZE[0]}x{SIZE[1]}", f"{seconds:.1f} s", "≤ 20 s"))
    return rows


def _replacements(
    backbone: Backbone, folder: Path, first_seed: int, count: int, say: Callable[[str], None], figure: Path | None
) -> list[Row]:
    path = folder / "classifier"
    if not path.is_dir():
        return [Row("replacement, colour and shape both right", "not measured: no classifier", "≥ 85 %")]
    judge = classifier.Classifier.from_pretrained(path).float().eval()
    rng, seed, asked, strips = np.random.default_rng(0), first_seed, [], []
    true: list[tuple[bool, bool]] = []
    while len(asked) < count:
        sample = render_sample(seed, frames=FRAMES, size=SIZE)
        seed += 1
        made = replacement(backbone, sample, rng)
        if made is None:
            continue
        result, hidden, prompt = made
        asked.append(_judged(judge, result, hidden, prompt))
        if figure is not None and len(strips) < STRIPS:
            source = sample.source.frames
            shown = [source, show_holes(Measurement(source, ~hidden[:, None])), result]
            strips.append(np.concatenate([to_uint8(video[-1:])[0] for video in shown], axis=1))
            say(f"in row {len(strips)} of the figure: {prompt}")
        for i, solid in enumerate(sample.scene.solids):  # what the classifier says of true objects
            objects = sample.source.objects[:, i]
            if solid.shape in SHAPES and 0.01 < objects.float().mean() < 0.3:
                true.append(_judged(judge, sample.source.frames, grow(objects, 3), object_name(solid)))
        say(f"replacement {len(asked)} of {count}")
    if figure is not None:
        iio.imwrite(figure, np.concatenate(strips))
    share = lambda found: " / ".join(f"{100 * v:.0f} %" for v in (*np.mean(found, 0), np.mean(np.all(found, 1))))
    return [
        Row(f"replacement, {count} scenes: colour / shape / both right", share(asked), "≥ 85 % both"),
        Row(f"the classifier itself, {len(true)} true objects of these scenes", share(true), ""),
    ]


@torch.no_grad()
def _judged(judge: classifier.Classifier, frames: Tensor, hidden: Tensor, name: str) -> tuple[bool, bool]:
    wanted = classifier.labels(name)
    assert wanted is not None
    colour, shape = judge(classifier.cut_outs(frames, hidden)[None])
    return int(colour.argmax()) == wanted[0], int(shape.argmax()) == wanted[1]


def render_seconds(backbone_ref: str) -> float:
    """From a video file to a video file, the models being loaded already."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_video(clip, Clip(render_sample(1, frames=FRAMES, size=SIZE).source.frames, 12.0))
        started = time.perf_counter()
        *_, last = render(RenderRequest(str(clip), backbone=backbone_ref, size=SIZE), Path(folder) / "out")
        assert isinstance(last, DoneEvent), last
        return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--replacements", type=int, default=40)
    parser.add_argument("--depth-scenes", type=int, default=48, help="for depth alone, with the first ones (--scenes)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clips", nargs="+", default=[], metavar="CLIP", help="real clips, for the VAE")
    parser.add_argument("--depth-of", nargs=2, metavar=("CLIP", "DEPTH"), help="a real clip and its given depth")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also write the first replacements, .png")
    args = parser.parse_args(arguments)
    say = lambda words: print(words, file=sys.stderr, flush=True)
    rows = evaluate(
        args.backbone,
        first_seed=args.first_seed,
        count=args.scenes,
        replacements=args.replacements,
        depth_scenes=args.depth_scenes,
        clips=args.clips,
        depth_of=args.depth_of,
        say=say,
        figure=args.figure,
    )
    print(table(rows))


if __name__ == "__main__":
    main()
