"""Two visitors of a Space with a shared GPU, on the real code of `spaces`; zerogpu_space.py says what is not real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import write_clip

from pipeline.camera.geometry import default_intrinsics, static_path
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.method.guidance import Guidance
from pipeline.models import cost, table
from pipeline.render.loaded import warm
from pipeline.render.worker import fill
from ui import zerogpu

pytest.importorskip("spaces")


def forks(test):
    """Of the space, which takes a while to start."""
    return pytest.mark.slow(pytest.mark.skipif(not hasattr(os, "fork"), reason="ZeroGPU forks")(test))


@pytest.fixture(scope="module")
def space(tmp_path_factory, tiny_backbone_folder):
    folder = tmp_path_factory.mktemp("space")
    clips = [str(write_clip(folder / f"{name}.mp4")) for name in "ab"]
    script = Path(__file__).with_name("zerogpu_space.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tiny_backbone_folder), *clips, str(folder)],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ran.stderr[-3000:]
    return SimpleNamespace(folder=folder, **{k.replace(" ", "_"): v for k, v in json.loads(lines[-1][7:]).items()})


def paths(calls, token=None):
    return [call["path"] for call in calls if token is None or call.get("token") == token]


@forks
def test_what_is_loaded_before_the_launch_is_on_the_gpu(space):
    assert space.cuda_in_the_space and space.device.startswith("cuda")
    assert space.not_on_the_GPU == 0


@forks
def test_each_visitor_pays_for_their_own(space):
    # a depth and a filling each, under the visitor's own name
    assert paths(space.calls, "ann") == paths(space.calls, "bob") == ["/schedule", "/schedule"]
    assert all(float(call["durationSeconds"]) >= 15 for call in space.calls if call["path"] == "/schedule")
    # the depth is known by then
    assert paths(space.calls_again) == ["/schedule", "/allow", "/release"]


@forks
def test_one_visitor_leaves_and_the_other_stays(space):
    assert space.left["steps"] == 3 < 200
    released = [call for call in space.calls if call["path"] == "/release"]
    assert len(released) == 4 and {call["fail"] for call in released} == {"false"}
    assert space.events.count("StepEvent") == 6 and space.events[-1] == "DoneEvent"
    assert not (space.folder / "a" / "result.mp4").exists()
    with np.load(space.folder / "together" / "raw.npz") as one, np.load(space.folder / "alone" / "raw.npz") as other:
        assert np.array_equal(one["video"], other["video"]) and one["video"].std() > 0


@forks
def test_jobs_of_two_visitors_and_of_one_without_quota(space):
    *states, words = space.jobs
    assert states == ["stopped", "done", "failed"]
    # the store's thread asked in the name of whoever submitted the job
    asked = [call["token"] for call in space.job_calls if call["path"] == "/schedule"]
    assert asked == ["ann", "bob", "poor"]
    assert "quota" in words and "fault in the program" not in words
    assert "result.mp4" not in space.job_folders[0] and "result.mp4" in space.job_folders[1]


@forks
def test_an_analysis_stays_in_the_space(space):
    assert space.analysis == ["cpu", "cpu", [9, 32, 48]]


@forks
def test_errors_cross_as_ours(space):
    told = space.told
    assert told["input"] == ["InputError", "The clip is too short; take a longer one."]
    assert told["memory"][0] == "InputError" and "fewer frames" in told["memory"][1]
    assert told["killed"][0] == "InputError" and "7 seconds" in told["killed"][1]
    assert told["quota"][0] == "InputError" and "quota" in told["quota"][1]
    assert told["fault"][0] == "RuntimeError" and "KeyError" in told["fault"][1]


@forks
def test_a_plain_function_is_lent_a_gpu(space):
    assert space.suggested == "a ball, by ann, where it is lent"
    assert space.told["plain"] == ["InputError", "There are no words for this."]


@forks
def test_what_is_loaded_stays_whole(space):
    assert space.depth_models == 1 and space.same_backbone
    assert "stays whole" in space.refused_memory and "ZeroGPU compiles nothing" in space.refused_compiled


def test_elsewhere_nothing_is_wrapped():
    assert not zerogpu.ACTIVE
    assert zerogpu.lend(warm, 5) is warm
    assert zerogpu.on_gpu(fill, zerogpu.fill_seconds) is fill


def test_the_duration_follows_frames_size_steps_and_guidance(monkeypatch):
    wan = SimpleNamespace(
        transformer=SimpleNamespace(config=table.MODELS["wan2.1-fun-1.3b-inp"].configs["transformer"]),
        vae=SimpleNamespace(config={"_class_name": "AutoencoderKLWan"}),
        settings=SimpleNamespace(text_tokens=512), guidance_scale=5.0, steps=50,
        padded=lambda frames: 4 * -(-(frames - 1) // 4) + 1,
    )  # fmt: skip
    monkeypatch.setattr(zerogpu, "get_backbone", lambda ref: wan)

    def seconds(frames=49, size=(480, 832), **given):
        nothing = torch.zeros(()).expand(frames, 3, *size)
        source = static_path(default_intrinsics(*size, frames))
        known = Known(Measurement(nothing, nothing[:, :1] > 0), nothing, nothing[:, 0], source, source)
        return zerogpu.fill_seconds("wan", known, Guidance(**{"prompt": "a red ball", **given}))

    whole = seconds()
    assert whole == seconds(frames=46) > zerogpu.START_SECONDS  # padded to 49
    assert seconds(frames=81) > 1.6 * whole
    assert seconds(size=(240, 416)) < whole / 2
    assert seconds(fast="lora") == seconds(steps=8, guidance_scale=1.0)
    for less in (seconds(steps=25), seconds(guidance_scale=1.0), seconds(prompt="")):
        # half of the sampling, all of the rest
        expected = 25 * 2 * cost.work_of("wan2.1-fun-1.3b-inp", 49, (480, 832)).velocity / zerogpu.PACE.transformer
        assert whole - less == pytest.approx(expected, abs=1.5)
    assert zerogpu.depth_seconds("nano", np.zeros((17, 3, 32, 48), np.float32), (32, 48)) >= zerogpu.START_SECONDS
