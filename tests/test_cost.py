import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import cost, table
from pipeline.models.cost import Pace, Work


@pytest.mark.parametrize("name, patch", [("nano", (1, 2, 2)), ("nano", (1, 1, 1)), ("wan2.1-fun-1.3b-inp", (1, 2, 2))])
def test_the_formula_agrees_with_counting(name, patch):
    from diffusers import WanTransformer3DModel

    config, _, tokens = cost.configs_of(name)
    config = {**config, "patch_size": patch}
    t, h, w = 3, 12, 20
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = WanTransformer3DModel.from_config(config)
        images = net.config.image_dim and torch.zeros(1, cost.IMAGE_TOKENS, net.config.image_dim)
        text = torch.zeros(1, tokens, net.config.text_dim)
        net(torch.zeros(1, net.config.in_channels, t, h, w), torch.zeros(1), text, images)
    assert cost.transformer_flops(config, t * h * w, tokens) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_published_sizes():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        net = WanTransformer3DModel.from_config(dict(table.MODELS["wan2.1-fun-1.3b-inp"].configs["transformer"]))
    assert sum(p.numel() for p in net.parameters()) == 1_564_428_608


def test_the_vae_is_counted_small_and_scaled():
    from diffusers import AutoencoderKLWan

    config = json.loads((table.ROOT / table.MODELS["nano"].ref / "vae" / "config.json").read_text())
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKLWan.from_config(config)
        with FlopCounterMode(display=False) as encode:
            z = vae.encode(torch.zeros(1, 3, 17, 128, 208)).latent_dist.mode()
        with FlopCounterMode(display=False) as decode:
            vae.decode(z)
    work = cost.work_of("nano", 17, (128, 208))
    assert work.encode == pytest.approx(encode.get_total_flops(), rel=0.03)
    assert work.decode == pytest.approx(decode.get_total_flops(), rel=0.03)


def test_what_is_not_at_hand_is_not_guessed(tmp_path):
    assert cost.work_of("somebody/some-model", 17, (128, 208)) is None
    assert cost.work_of("no such thing", 17, (128, 208)) is None


def test_seconds_are_work_over_pace():
    assert cost.seconds_of(Work(1, 10, 2), Pace(5, 2), steps=3, passes=2, encodes=4) == 3 * 2 * 10 / 5 + (4 + 2) / 2


def test_the_pace_of_this_machine():
    pace = cost.measure_pace("cpu", torch.float32, seconds=0.05)
    assert 1e8 < pace.transformer < 1e14 and 1e8 < pace.vae < 1e14
