import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import write_clip, write_depth

from pipeline import InputError, result_of
from pipeline.camera.moves import TIMINGS, Keyframe, Move, preset_move, standing_at
from pipeline.known.known import Known
from pipeline.media.video import probe, read_video, resize, size_of, to_uint8
from pipeline.method.guidance import Guidance, guidance_scale_of
from pipeline.method.inversecrafter import inversecrafter, tell
from pipeline.method.latent_mask import LATENT_MASKS, PHI
from pipeline.method.methods import solve
from pipeline.method.problem import prepare
from pipeline.method.sampler import flow_sigmas, sample
from pipeline.method.solvers import SOLVERS, dds
from pipeline.render.analysis import Analysis, analyse
from pipeline.render.events import DoneEvent, FailedEvent, StageEvent, StepEvent, WarpEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import (
    look,
    measure,
    path_warnings,
    preview,
    retimed,
    show_holes,
    warped,
)


@pytest.fixture(scope="module")
def request_(tmp_path_factory, tiny_backbone_folder) -> RenderRequest:
    folder = tmp_path_factory.mktemp("clip")
    return RenderRequest.of(
        str(write_clip(folder / "clip.mp4")),
        backbone=str(tiny_backbone_folder),
        depth=str(write_depth(folder / "depth.npz")),
        amount=10,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))


def analysed(request: RenderRequest) -> Analysis:
    stages = []
    analysis = result_of(analyse(request), stages.append)
    assert all(isinstance(event, StageEvent) for event in stages)
    return analysis


def known_of(request: RenderRequest) -> Known:
    """What each frame tells by itself."""
    return result_of(look(analysed(request), request.changed(other_frames=False))).known


def finished(request: RenderRequest, folder: Path, **options) -> list:
    events = list(render(request, folder, **options))
    assert isinstance(events[-1], DoneEvent), events[-1]
    return events


def failure(request: RenderRequest, folder: Path) -> str:
    *_, last = render(request, folder)
    assert isinstance(last, FailedEvent)
    return last.message


def test_a_request_survives_json():
    request = RenderRequest.of("a clip é.mp4", size=(64, 96), amount=3, prompt="a red ball", guide_until=0.2)
    assert RenderRequest.from_json(request.to_json()) == request
    assert RenderRequest.from_json('{"version": 1, "clip": "a.mp4"}') == RenderRequest.of("a.mp4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"clip": "a"}', "version None"),
        ('{"version": 2, "clip": "a"}', "version 2"),
        ('{"version": 1}', "names no clip"),
        ('{"version": 1, "clip": "a", "colour": 1}', "unknown fields: colour"),
        ('{"version": 1, "clip": "a", "steps": "many"}', "steps"),
        ('{"version": 1, "clip": "a", "camera": ["orbit-left"]}', "camera"),
    ],
)
def test_json_that_is_no_request(text, message):
    with pytest.raises(InputError, match=message):
        RenderRequest.from_json(text)


@pytest.mark.parametrize(
    "field",
    [
        {"clip": ""},
        {"camera": "sideways"},
        {"amount": float("nan")},
        {"amount": 400},
        {"amount": "5"},
        {"fov": 0},
        {"frames": 0},
        {"frames": 4.0},
        {"start": -1},
        {"stride": 0},
        {"size": (0, 16)},
        {"size": 16},
        {"prompt": None},
        {"seed": -1},
        {"seed": True},
        {"steps": 0},
        {"guidance_scale": float("inf")},
        {"latent_mask": "soft"},
        {"solver": "magic"},
        {"gamma": 0},
        {"iterations": 0},
        {"iterations": 2.5},
        {"step_size": -1},
        {"schedule": "random"},
        {"phi": "sigmoid"},
        {"tau": 0},
        {"guide_from": 1.5},
        {"guide_from": 0.2, "guide_until": 0.5},
        {"condition": "last-frame"},
        {"depth": ""},
        {"composite": 1},
    ],
)
def test_values_out_of_range_are_refused(field):
    with pytest.raises(InputError, match=list(field)[-1]):
        RenderRequest.of(**{"clip": "a.mp4", **field})


def test_the_analysis_of_a_clip_with_odd_sides(request_):
    analysis = analysed(request_)
    working = analysis.clip.frames.shape[-2:]
    assert len(analysis.clip.frames) == len(analysis.full.frames) == len(analysis.depth.z) == 5
    assert working == analysis.depth.z.shape[-2:] and all(side % 16 == 0 for side in working)
    height, width = analysis.full.frames.shape[-2:]
    assert height <= 51 and width <= 75 and height % 2 == width % 2 == 0
    # the field of view is the whole picture's, so the focal length in pixels of the crop is that of the picture
    focal = 0.5 * 75 / np.tan(np.radians(55) / 2)
    K = analysis.source.K[0]
    assert K[0, 0].item() == pytest.approx(focal * working[1] / width, rel=1e-4)
    assert K[1, 1].item() == pytest.approx(focal * working[0] / height, rel=1e-4)
    assert K[0, 2].item() == pytest.approx(working[1] / 2, abs=0.5)
    # the square of write_depth, a third nearer than the wall, which is 3 to 4 units away
    assert 2.0 < analysis.distance < 2.7
    assert analysis.notes[0].startswith("Frames 0 to 4 of 12")


def test_start_and_stride_pick_frames_and_their_depth(request_, tmp_path):
    z = np.ones((12, 51, 75), np.float32) * (1 + np.arange(12, dtype=np.float32))[:, None, None]
    np.savez(tmp_path / "depth.npz", z=z)
    analysis = analysed(request_.changed(start=3, stride=2, frames=4, depth=str(tmp_path / "depth.npz")))
    expected = read_video(request_.clip, start=3, stride=2, frames=4)
    assert analysis.fps == expected.fps == 4
    top, left = (51 - analysis.full.frames.shape[-2]) // 2, (75 - analysis.full.frames.shape[-1]) // 2
    height, width = analysis.full.frames.shape[-2:]
    assert torch.equal(analysis.full.frames, expected.frames[..., top : top + height, left : left + width])
    depths = analysis.depth.z.mean(dim=(1, 2))
    assert (depths / depths[0]).tolist() == pytest.approx([1, 6 / 4, 8 / 4, 10 / 4], rel=1e-3)
    assert "every 2nd" in analysis.notes[0]


def test_depth_keeps_its_own_size_beside_the_working_one(request_):
    """Outlines are as fine as the depth is: what is composited at the clip's size does not go through the small one."""
    from pipeline.render.analysis import depth_at

    analysis = analysed(request_)
    detail, full = analysis.detail, size_of(analysis.full.frames)
    assert detail is not None and detail.shape[-2:] == full and analysis.depth.z.shape[-2:] < full
    frames, z = depth_at(analysis, slice(1, 3), full)
    assert torch.equal(z, detail[1:3]) and torch.equal(frames, analysis.full.frames[1:3])
    frames, z = depth_at(analysis, slice(1, 3), size_of(analysis.clip.frames))
    assert torch.equal(z, analysis.depth.z[1:3]) and torch.equal(frames, analysis.clip.frames[1:3])
    # the square of write_depth is a third nearer: no depth lies between it and the wall, and its edge is exact
    given = np.load(request_.depth)["z"][1]
    top, left = (51 - full[0]) // 2, (75 - full[1]) // 2
    assert np.allclose(detail[1].numpy(), given[top : top + full[0], left : left + full[1]], rtol=1e-4)


def test_depth_is_estimated_once_for_a_clip(request_, tmp_path, monkeypatch):
    calls = []

    def found(ref, frames, size):
        calls.append(len(frames))
        yield StageEvent("depth", "Estimating depth: half of it", 0.05)
        return 2 + resize(torch.from_numpy(frames), size).mean(1).numpy(), False

    (tmp_path / "model").mkdir()
    analysed = lambda request: result_of(analyse(request, find_depth=found))
    monkeypatch.setattr(get_backbone(request_.backbone), "depth", str(tmp_path / "model"))
    request = request_.changed(depth=None)
    first, again = analysed(request), analysed(request.changed(camera="dolly-in"))
    assert torch.equal(first.depth.z, again.depth.z)
    assert calls == [5]
    analysed(request.changed(start=1))
    assert calls == [5, 5]
    (tmp_path / "model" / "weights").write_text("new")
    analysed(request)
    assert calls == [5, 5, 5]


def test_the_warp_at_any_size(request_):
    analysis = analysed(request_)
    small = measure(analysis, request_, size=(24, 36))
    assert small.video.shape == (5, 3, 24, 36) and small.mask.shape == (5, 1, 24, 36)
    whole = measure(analysis, request_)
    full = measure(analysis, request_, size=tuple(analysis.full.frames.shape[-2:]))
    # the same camera sees the same share of the scene at every size
    shares = [m.mask.float().mean().item() for m in (small, whole, full)]
    assert max(shares) - min(shares) < 0.04
    assert whole.mask[0].all() and not whole.mask[-1].all()


def test_a_render_from_clip_to_files(request_, tmp_path):
    events = finished(request_, tmp_path / "out", keep=tmp_path / "kept")
    kinds = [type(event) for event in events]
    assert kinds.index(WarpEvent) < kinds.index(StepEvent) < kinds.index(DoneEvent) == len(kinds) - 1
    fractions = [event.fraction for event in events if isinstance(event, (StageEvent, StepEvent))]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1

    warp = events[kinds.index(WarpEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [step.index for step in steps] == [1, 2, 3] and {step.total for step in steps} == {3}
    assert steps[0].preview.dtype == np.uint8 and steps[0].preview.ndim == 4 and steps[0].preview.shape[-1] == 3
    assert steps[-1].seconds_left >= 0

    result = events[-1].result
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == json.loads(json.dumps(result.report.to_dict()))
    assert RenderRequest.from_json((tmp_path / "out" / "request.json").read_text()) == request_
    working, size = tuple(report["sizes"]["working"]), report["sizes"]["result"]
    for video in (result.video, result.source):
        info = probe(video)
        assert [info.height, info.width] == size and info.frames == 5 and info.fps == 8 and info.has_audio
    assert (probe(result.warp).height, probe(result.warp).width) == working

    with np.load(tmp_path / "kept" / "measurement.npz") as kept:
        assert kept["video"].shape == (5, *working, 3) and kept["video"].dtype == np.uint8
        assert kept["mask"].shape == (5, *working) and kept["mask"].dtype == bool
        assert np.array_equal(kept["video"], warp.video) and np.array_equal(kept["mask"], warp.mask > 0)
    with np.load(tmp_path / "kept" / "raw.npz") as kept:
        assert kept["video"].shape == (5, *working, 3) and kept["video"].dtype == np.uint8
    with np.load(tmp_path / "kept" / "depth.npz") as kept:
        assert kept["z"].shape == (5, *working) and kept["z"].dtype == np.float32

    figures = report["measurement"]
    assert figures["composited"]["psnr"] > figures["raw"]["psnr"]
    assert 0 < report["unknown"] < 1 and report["first_frame"] == {
        "complete": True,
        "unknown": 0,
        "from": "the clip",
    }
    assert report["frames"] | {"why": ""} == {
        "first": 0, "last": 4, "stride": 1, "count": 5, "in_clip": 12, "model": 5, "why": "",
        "windows": [[0, 4]],
    }  # fmt: skip
    assert {"read", "depth", "warp", "encode", "sample", "decode", "composite", "write", "total"} <= set(
        report["seconds"]
    )
    assert 0 < report["first_preview_seconds"] < report["seconds"]["total"]


def test_a_seed_decides_the_result(request_, tmp_path):
    analysis = analysed(request_)

    def raw(request: RenderRequest, name: str) -> np.ndarray:
        finished(request, tmp_path / name, analysis=analysis, keep=tmp_path / name)
        with np.load(tmp_path / name / "raw.npz") as kept:
            return kept["video"]

    request = request_.changed(solver="none")  # nothing but the noise to begin with
    first = raw(request, "first")
    assert np.array_equal(first, raw(request, "again"))
    assert not np.array_equal(first, raw(request.changed(seed=1), "other"))
    # guidance outside of the noise levels that occur is no guidance
    never = request_.changed(guide_from=1e-6, guide_until=1e-6)
    assert np.array_equal(first, raw(never, "never"))
    assert not np.array_equal(first, raw(request_, "guided"))


@pytest.mark.parametrize("changes", [{"solver": "repaint", "iterations": 2}, {"condition": "first-frame"}])
def test_other_ways_end_with_a_video(request_, tmp_path, changes):
    finished(request_.changed(**changes), tmp_path)


@pytest.fixture
def solved(request_):
    """The solution of a changed request, and how many steps it took."""
    backbone, known = get_backbone(request_.backbone), known_of(request_)
    known = replace(known, truth=known.clip)

    def solution(**changes):
        guidance = request_.changed(steps=3, **changes).guidance
        steps = list(solve(backbone, inversecrafter(backbone, known, guidance)))
        assert not steps[-1].z.requires_grad
        return steps[-1].z, len(steps)

    return solution


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "none"])
def test_every_solver_works_on_the_model_and_makes_a_difference(solved, solver):
    (z, steps), (free, _) = solved(solver=solver, iterations=2), solved(solver="none")
    assert steps == (5 if SOLVERS[solver].resamples else 3)  # the last step is taken once
    assert torch.isfinite(z).all() and not torch.equal(z, free)
    assert torch.equal(z, solved(solver=solver, iterations=2)[0])


def test_every_latent_mask_works_on_the_model_and_differs_from_the_others(solved):
    found = [solved(latent_mask=name)[0] for name in LATENT_MASKS if name != "reference"]
    others = [{"phi": phi} for phi in PHI if phi != "wiener"] + [{"tau": 1.0}]
    found += [solved(latent_mask="training-free", **other)[0] for other in others]
    assert torch.equal(solved()[0], solved(latent_mask="learned")[0]), "the model has one"
    for index, z in enumerate(found):
        assert torch.isfinite(z).all() and not any(torch.equal(z, other) for other in found[:index])


def test_without_a_count_a_solver_takes_its_own(solved):
    assert solved(solver="repaint")[1] == 2 * SOLVERS["repaint"].iterations + 1
    z = solved(solver="nvs_post")[0]
    assert torch.equal(z, solved(solver="nvs_post", step_size=SOLVERS["nvs_post"].step_size)[0])
    assert torch.equal(solved(solver="nvs_post", step_size=0.0)[0], solved(solver="none")[0])


@pytest.mark.parametrize(("frames", "model"), [(1, 1), (3, 5), (6, 9)])
def test_any_number_of_frames(request_, tmp_path, frames, model):
    events = finished(request_.changed(frames=frames), tmp_path)
    report = events[-1].result.report.to_dict()
    assert report["frames"]["count"] == frames and report["frames"]["model"] == model
    assert probe(events[-1].result.video).frames == frames
    assert any("repeated" in note for note in report["notes"]) == (frames != model)


def test_a_clip_longer_than_the_model_is_sampled_in_windows(request_, tmp_path, monkeypatch):
    backbone = get_backbone(request_.backbone)
    seen, velocity = [], backbone.velocity
    monkeypatch.setattr(
        backbone,
        "velocity",
        lambda z, sigma, told: seen.append((z, told)) or velocity(z, sigma, told),
    )
    events = finished(request_.changed(frames=12), tmp_path)
    report = events[-1].result.report.to_dict()
    assert report["frames"]["windows"] == [[0, 4], [1, 8], [5, 12]] and report["frames"]["count"] == 12
    assert any("in 3 windows that overlap" in note for note in report["notes"])
    assert [event.message for event in events if isinstance(event, StageEvent) and event.stage == "sample"] == [
        "Sampling in 3 overlapping windows"
    ]
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert len(steps) == 3 and len(seen) == 9 and {len(event.preview) for event in steps} == {4}
    assert {(z.shape[1], told.channels.shape[1]) for z, told in seen} == {(2, 2)}  # no more than it was made for
    assert {told.context for _, told in seen} == {"", "1", "2"}  # what a step cache remembers is a window's own
    assert probe(events[-1].result.video).frames == 12


def test_the_guidance_scale_follows_the_task_and_equal_prompts_need_none(request_, monkeypatch):
    backbone = get_backbone(request_.backbone)
    monkeypatch.setattr(backbone, "settings", replace(backbone.settings, replace_guidance_scale=7.0))
    scale = lambda replaces=False, **given: guidance_scale_of(Guidance(**given), backbone, replaces=replaces)
    assert scale(prompt="a ball") == backbone.guidance_scale == 3
    assert scale(True, prompt="a ball") == 7 and scale(True, prompt="a ball", guidance_scale=2.0) == 2
    assert scale(prompt="", negative_prompt="") == scale(prompt="a", negative_prompt="a", guidance_scale=4.0) == 1
    assert scale(prompt="", negative_prompt="a") == 3
    monkeypatch.setattr(backbone, "settings", replace(backbone.settings, replace_guidance_scale=None))
    assert scale(True, prompt="a ball") == 3


def test_equal_prompts_are_not_computed_twice(request_, monkeypatch):
    backbone, calls = get_backbone(request_.backbone), []
    forward = backbone.transformer.forward
    monkeypatch.setattr(backbone.transformer, "forward", lambda **given: calls.append(1) or forward(**given))
    for prompts in ({"prompt": "a"}, {"prompt": "a", "negative_prompt": "a"}):
        told = inversecrafter(backbone, known_of(request_), Guidance(**prompts))
        *_, last = solve(backbone, told)
        assert last.z.isfinite().all()
    assert len(calls) == 3 * backbone.steps


def test_a_clip_no_longer_than_the_model_is_sampled_as_a_whole(request_):
    backbone, guidance = get_backbone(request_.backbone), request_.guidance
    problem = prepare(backbone, known_of(request_), guidance)
    velocity = lambda z, sigma: backbone.velocity(z, sigma, problem.conditions)
    consistency = lambda z0_hat, sigma: dds(z0_hat, problem.y_full, problem.h, gamma=guidance.gamma)
    sigmas = flow_sigmas(backbone.steps, backbone.shift)
    *_, plain = sample(velocity, problem.noise, sigmas, consistency)
    *_, found = solve(backbone, tell(backbone, problem, guidance))
    assert torch.equal(found.z, plain.z)


def test_how_much_longer_the_whole_clip_takes_is_said(request_):
    why = analysed(request_).notes[0]
    assert why.endswith("of 12; all 12 can be had by asking for them, and take about 3.0 times as long.")
    assert analysed(request_.changed(start=7)).notes[0].endswith("of 12.")
    assert (
        analysed(request_.changed(frames=10**9))
        .notes[0]
        .endswith("no more than 12 from there, 1000000000 were wanted.")
    )


def test_more_frames_than_the_clip_has(request_, tmp_path):
    report = finished(request_.changed(start=9, frames=9), tmp_path)[-1].result.report.to_dict()
    assert report["frames"]["count"] == 3
    assert "no more than 3" in report["notes"][0]


def test_without_a_move_the_source_comes_back_untouched(request_, tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(
        "pipeline.render.run.write_video", lambda path, clip, **_: written.update({path.name: clip.frames})
    )
    request = request_.changed(amount=0)
    events = finished(request, tmp_path)
    assert torch.equal(written["result.mp4"], analysed(request).full.frames)
    assert torch.equal(written["result.mp4"], written["source.mp4"])
    assert events[-1].result.report.to_dict()["measurement"]["composited"] == {"psnr": None, "ssim": pytest.approx(1)}


def test_without_compositing_the_result_is_the_models_own(request_, tmp_path):
    report = finished(request_.changed(composite=False), tmp_path)[-1].result.report.to_dict()
    assert report["sizes"]["result"] == report["sizes"]["working"]
    assert report["measurement"]["composited"] is None
    assert "composite" not in report["seconds"]


def test_closing_the_generator_stops_the_render(request_, tmp_path, monkeypatch):
    backbone = get_backbone(request_.backbone)
    calls = []
    velocity = backbone.velocity
    monkeypatch.setattr(backbone, "velocity", lambda *a, **k: calls.append(1) or velocity(*a, **k))
    events = render(request_.changed(steps=20), tmp_path)
    next(event for event in events if isinstance(event, StepEvent))
    events.close()
    assert len(calls) == 1
    assert not (tmp_path / "result.mp4").exists()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": "nowhere.mp4"}, "nowhere.mp4"),
        ({"start": 100}, "12 frames"),
        ({"size": (40, 48)}, "48"),
        ({"backbone": "no-such-model"}, "no-such-model"),
        ({"depth": "nowhere.npz"}, "nowhere.npz"),
        ({"latent_mask": "reference"}, "training-free"),
    ],
)
def test_what_cannot_be_used_ends_in_a_message(request_, tmp_path, changes, message):
    assert message in failure(request_.changed(**changes), tmp_path)
    assert not (tmp_path / "result.mp4").exists()


def test_a_path_that_shows_nothing_is_refused(request_):
    away = Analysis(**vars(analysed(request_)))
    behind = own(request_, Keyframe(0.0, (0, 0, 3.0), (0, 0, 4.0)), Keyframe(1.0, (0, 0, 3.0), (0, 0, 4.0)))
    with pytest.raises(InputError, match="keep it nearer"):
        measure(away, behind)


def test_a_folder_that_cannot_be_written_is_refused_at_once(request_, tmp_path):
    (tmp_path / "file").write_text("")
    events = list(render(request_, tmp_path / "file" / "out"))
    assert len(events) == 1 and isinstance(events[0], FailedEvent) and "Cannot write" in events[0].message


def test_memory_that_runs_out_ends_in_a_message(request_, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(get_backbone(request_.backbone), "velocity", full)
    assert "fewer frames" in failure(request_, tmp_path)


def test_strength_decides_where_sampling_starts(request_):
    backbone, known = get_backbone(request_.backbone), known_of(request_)

    def steps(strength: float, **changes):
        guidance = request_.changed(steps=10, strength=strength, **changes).guidance
        problem = prepare(backbone, known, guidance)
        return problem, list(solve(backbone, tell(backbone, problem, guidance)))

    _, whole = steps(1.0)
    assert len(whole) == 10 and whole[0].sigma == 1
    problem, late = steps(0.5)
    assert 1 <= len(late) < 10 and late[0].sigma <= 0.5
    # one step from a vanishing noise level: what was put in comes out, with or without data consistency
    problem, last = steps(1e-9, solver="none")
    assert problem.h is None and problem.y_full is not None and len(last) == 1
    noised = (1 - last[0].sigma) * problem.y_full + last[0].sigma * problem.noise
    assert (last[0].z - problem.y_full).abs().max() < 0.2 * noised.abs().max()


def test_the_model_is_shown_filled_holes_if_it_was_trained_so(request_, monkeypatch):
    backbone, known = get_backbone(request_.backbone), known_of(request_)
    told = lambda known, **changes: prepare(backbone, known, request_.changed(**changes).guidance)
    grey = told(known).conditions.channels
    monkeypatch.setattr(backbone, "settings", replace(backbone.settings, fill_condition=True))
    problem = told(known)
    shown = problem.conditions.channels
    assert torch.equal(shown[:4], grey[:4]) and not torch.equal(shown[4:], grey[4:])
    assert torch.equal(shown[4:], problem.y_full)
    # the model by itself is shown the same
    assert torch.equal(told(known, solver="none").conditions.channels, shown)
    flat = replace(known, measurement=replace(known.measurement, z=None))
    assert not torch.equal(told(flat).conditions.channels, shown), "what is behind a hole fills it"
    first = told(known, condition="first-frame").conditions.channels
    assert torch.equal(first[4:, 0], shown[4:, 0]) and not torch.equal(first[4:], shown[4:])


# --- camera moves of one's own ----------------------------------------------------------------------------------------


def own(request: RenderRequest, *keyframes: Keyframe, **options) -> RenderRequest:
    return request.changed(amount=None, move=Move(keyframes, **options))


def with_wall(analysis: Analysis, z: float = 4.0) -> Analysis:
    """The analysis of a wall that fills the picture, which is the subject."""
    wall = torch.full_like(analysis.depth.z, z)
    return replace(analysis, depth=replace(analysis.depth, z=wall), distance=z)


def test_a_request_with_a_move_is_json(request_):
    request = own(
        request_, Keyframe(0.0), Keyframe(1.0, (0.2, 0, 0), roll=3.0, fov=40.0), speed="eased", timing=((0.0, 0.5),)
    )
    assert RenderRequest.from_json(request.to_json()) == request
    text = request.to_json().replace('"eased"', '"hasty"')
    with pytest.raises(InputError, match="speed must be one of"):
        RenderRequest.from_json(text)


def test_a_named_move_and_its_keyframes_are_one(request_):
    analysis = analysed(request_)
    named = measure(analysis, request_.changed(camera="orbit-right", amount=20))
    keyed = measure(analysis, request_.changed(amount=None, move=preset_move("orbit-right", 20)))
    assert torch.equal(named.video, keyed.video) and torch.equal(named.mask, keyed.mask)


def test_a_camera_that_stays_sees_the_clip(request_):
    analysis = analysed(request_)
    for timing in ((), ((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0))):
        measured = measure(analysis, own(request_, Keyframe(0.0), timing=timing))
        assert measured.mask.all() and torch.equal(measured.video, analysis.clip.frames)


def test_time_stands_still(request_, tmp_path):
    analysis = analysed(request_)
    request = own(request_, Keyframe(0.0), timing=standing_at(0.5))
    measured = measure(analysis, request)
    assert torch.equal(measured.video, analysis.clip.frames[2:3].expand_as(measured.video))
    assert retimed(analysis, request_) is analysis
    result = finished(request, tmp_path)[-1].result
    assert probe(result.source).frames == probe(result.video).frames == 5
    shown, made = read_video(result.source).frames, read_video(result.video).frames
    assert (shown[0] - shown[-1]).abs().mean() > 4 * (made[0] - made[-1]).abs().mean(), (
        "the source plays, the result not"
    )
    assert not probe(result.video).has_audio


def test_time_runs_backwards(request_, tmp_path):
    analysis = analysed(request_)
    request = own(request_, Keyframe(0.0), timing=TIMINGS["reverse"][1])
    assert torch.equal(measure(analysis, request).video, analysis.clip.frames.flip(0))
    back = retimed(analysis, request)
    assert torch.equal(retimed(back, request).clip.frames, analysis.clip.frames)
    assert torch.equal(retimed(back, request).depth.z, analysis.depth.z)
    result = finished(request, tmp_path)[-1].result
    shown, made = read_video(result.source).frames, read_video(result.video).frames
    assert (shown.flip(0) - made).abs().mean() < 0.5 * (shown - made).abs().mean()
    assert not probe(result.video).has_audio
    assert any("silent" in note for note in result.report.notes) == analysis.info.has_audio


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"camera": "still"}, "training-free"),
        ({"camera": "orbit-left", "amount": 0.0}, "training-free"),
        ({"move": Move((Keyframe(0.0),))}, "training-free"),
        ({"camera": "orbit-left", "amount": 10.0}, "learned"),
        ({"camera": "still", "move": preset_move("orbit-left", 10.0)}, "learned"),
    ],
)
def test_the_default_latent_mask_follows_the_camera_and_not_its_name(request_, tmp_path, changes, wanted):
    request = request_.changed(amount=None, steps=1, composite=False)
    assert finished(request.changed(**changes), tmp_path)[-1].result.report.to_dict()["latent_mask"] == wanted


def test_one_frame_of_the_warp_is_that_of_the_whole(request_):
    analysis = analysed(request_)
    request = request_.changed(camera="arc-dolly-zoom", amount=20)
    whole = to_uint8(show_holes(measure(analysis, request)))
    for moment, frame in ((0.0, 0), (0.5, 2), (1.0, 4), (7.0, 4)):
        assert np.array_equal(preview(analysis, request, moment), whole[frame])


@pytest.mark.parametrize(
    ("keyframes", "words"),
    [
        ((Keyframe(0.0), Keyframe(1.0, (0, 0, 1.5), (0, 0, 3))), "goes behind what your clip shows between frames"),
        ((Keyframe(0.0, (0, 0, 0.95), (0, 0, 3)),), "nearly touches the scene all along"),
        ((Keyframe(0.0), Keyframe(1.0, (0, 0, -1), (0.5, 0, -2))), "looks back"),
        ((Keyframe(0.0), Keyframe(1.0, target=(2.0, 0, 1.0))), "sees less than 30% of your clip"),
    ],
)
def test_paths_that_go_wrong_are_warned_of(request_, keyframes, words):
    analysis = with_wall(analysed(request_))
    request = own(request_, *keyframes)
    known = warped(analysis, request, (32, 48), slice(None)).mask.float().mean(dim=(1, 2, 3))
    assert any(words in warning for warning in path_warnings(analysis, request, known))


def test_a_mild_path_is_not_warned_of(request_):
    analysis = with_wall(analysed(request_))
    request = request_.changed(amount=10)
    known = measure(analysis, request).mask.float().mean(dim=(1, 2, 3))
    assert path_warnings(analysis, request, known) == ()
