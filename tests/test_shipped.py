"""The depths that come with the examples."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import result_of
from pipeline.depth.shipped import ship, shipped
from pipeline.render.analysis import analyse
from ui.examples import find_examples

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_a_depth_comes_back_within_a_twentieth_of_a_percent(tmp_path):
    z = np.exp(np.random.default_rng(0).uniform(-3, 7, (4, 9, 13))).astype(np.float32)
    ship("a" * 64, z, True, tmp_path)
    kept = shipped("a" * 64, tmp_path)
    assert kept is not None and kept["metric"] and kept["z"].dtype == np.float32
    assert np.abs(kept["z"] / z - 1).max() < 6e-4
    assert shipped("a" * 16 + "b" * 48, tmp_path) is None and shipped("b" * 64, tmp_path) is None


@pytest.mark.parametrize("title, request_", [(title, request) for title, request, _ in find_examples(EXAMPLES)])
def test_an_example_waits_for_no_network(title, request_, tmp_path, monkeypatch):
    """Where this fails after the depth network or an example has changed: `python -m ui.gallery --depths`."""
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path))

    def asked(*_):
        pytest.fail(f"the depth of {title} is not shipped: run python -m ui.gallery --depths")

    depth = result_of(analyse(request_, find_depth=asked)).depth.z
    assert bool((depth > 0).all()) and depth.isfinite().all()
