"""The figures of the small models: the linear floor, flicker along the true motion, the table."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluation import nano, windows
from pipeline.evaluation.metrics import flicker, flow_errors
from pipeline.world.scenes import render_sample


def test_principal_components_reconstruct_what_they_span():
    torch.manual_seed(0)
    basis, size = torch.randn(6, 3, 4, 8, 8), (9, 16, 24)

    def clip() -> torch.Tensor:
        weights = 0.02 * torch.randn(2, 2, 3, 6)
        block = torch.einsum("thwk,kcabd->tahbwdc", weights, basis).reshape(8, 16, 24, 3).permute(0, 3, 1, 2)
        return torch.cat([torch.zeros(1, 3, *size[1:]), 0.5 + block])

    fit_on, unseen = [clip(), clip()], clip()
    assert nano.principal_components(fit_on, unseen, 6) > 60
    few, more = (nano.principal_components(fit_on, unseen, count) for count in (2, 5))
    assert few < more < 60


def test_flicker_is_none_in_a_still_world_and_seen_in_noise():
    sample = render_sample(8, frames=5, size=(64, 96))
    view = sample.target
    counted = view.standing
    args = view.z, view.path, counted
    noise = 0.1 * torch.randn(view.frames.shape, generator=torch.Generator().manual_seed(0))
    noisy = (view.frames + noise).clamp(0, 1)
    change, pixels = flow_errors(view.frames, *args)
    assert (change.sum() / pixels.sum()).item() < 0.06
    assert flicker(view.frames, view.frames, *args) == 1
    still, unsteady = (flicker(video, view.frames, *args) for video in (torch.full_like(view.frames, 0.3), noisy))
    assert still == pytest.approx(0, abs=1e-3) and unsteady is not None and unsteady > 1.7
    assert flicker(noisy, view.frames, view.z, view.path, ~counted & counted) is None


def test_seams_are_where_windows_begin_and_end():
    spans = (slice(0, 5), slice(2, 7), slice(4, 9))
    assert windows.seams_of(spans, 4) == [4, 12, 16, 24]
    assert windows.seams_of((slice(0, 9),), 4) == []


@pytest.mark.slow
def test_windows_leave_smaller_seams_than_cuts(capsys):
    windows.main(["--scenes", "1", "--steps", "3", "--size", "80x128"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    (one, cut, ours), change = rows, lambda row: float(row[4].split()[0])
    assert one[0] == "| all at once" and cut[0].startswith("| clips")
    assert change(ours) < 1.6 and change(cut) > change(ours) + 0.3
    assert float(ours[2].split()[0]) > -1  # dB in the holes, against all at once
