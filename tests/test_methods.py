"""What is known as one value, and a method as a row of a table."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from synthetic import write_clip, write_depth

from pipeline import InputError
from pipeline.camera.geometry import default_intrinsics, follow, static_path
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import inversecrafter
from pipeline.method.methods import METHODS
from pipeline.render import DoneEvent, RenderRequest, render
from pipeline.world.cameras import preset_motion

T, H, W = 5, 32, 48


def known(amount: float = 20.0) -> Known:
    clip = torch.rand(T, 3, H, W, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(T, 1, H, W, dtype=torch.bool)
    mask[1:, ..., W // 2 :] = False
    source = static_path(default_intrinsics(H, W, T))
    target = follow(source, preset_motion("orbit-left", amount, T, 4.0))
    return Known(Measurement(clip * mask, mask), clip, torch.full((T, H, W), 4.0), source, target)


def test_the_clean_video_is_the_truth_or_the_clip_itself_where_the_camera_stands_still():
    moving, still = known(), known(0.0)
    assert not moving.still and moving.clean is None
    assert still.still and still.clean is still.clip
    truth = torch.zeros_like(moving.clip)
    assert replace(moving, truth=truth).clean is truth and replace(still, truth=truth).clean is truth


def test_what_is_known_crosses_to_another_process_as_plain_bytes():
    there = pickle.loads(pickle.dumps(known()))
    assert torch.equal(there.measurement.video, known().measurement.video) and torch.equal(there.z, known().z)
    rebuild, given = known().__reduce__()
    assert [type(part) for part in given] == [bytes] and isinstance(rebuild(*given), Known)


def test_a_second_method_is_a_row_of_the_table(tiny_backbone_folder, tmp_path, monkeypatch):
    """It is given what is known and its settings, and tells the sampler; all else of a render is there for it."""
    seen = []

    def hesitant(backbone, known, guidance):
        told = inversecrafter(backbone, known, guidance)
        seen.append(known)
        return replace(told, velocity=lambda z, sigma: 0 * told.velocity(z, sigma), hooks={})

    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip, depth = write_clip(tmp_path / "clip.mp4"), write_depth(tmp_path / "depth.npz")
    given = {"backbone": str(tiny_backbone_folder), "depth": str(depth), "steps": 2, "amount": 10.0}
    request = RenderRequest.of(str(clip), **given)
    with pytest.raises(InputError, match="method must be one of inversecrafter, lavr, both; it is 'hesitant'"):
        request.changed(method="hesitant")
    monkeypatch.setitem(METHODS, "hesitant", hesitant)
    asked = RenderRequest.from_json(request.changed(method="hesitant").to_json())
    *_, done = render(asked, tmp_path / "out")
    assert isinstance(done, DoneEvent), done
    assert done.result.report.to_dict()["request"]["method"] == "hesitant" and not seen[0].still


def test_the_json_of_a_request_is_flat_and_files_of_before_still_load():
    request = RenderRequest.of("a.mp4", steps=4, gamma=0.2, camera="dolly-in", seed=3)
    assert request.guidance == Guidance(steps=4, gamma=0.2, seed=3)
    assert '"steps": 4' in request.to_json() and 'guidance"' not in request.to_json()
    before = '{"version": 1, "clip": "a.mp4", "steps": 4, "gamma": 0.2, "camera": "dolly-in", "seed": 3}'
    assert RenderRequest.from_json(before) == request
