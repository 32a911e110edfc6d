"""The parts of LaVR and ReCamMaster: the adapter, the hooks on a stock transformer, and the names of their tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pipeline import InputError
from pipeline.prior.adapter import SceneAdapter
from pipeline.prior.posed import Beside, PosedLayers, SharedPositions, load_recammaster, posed, recammaster_key
from pipeline.prior.wan_layout import diffusers_key

B, P, t, h, w, WIDTH, BLOCKS = 2, 6, 3, 4, 6, 24, 2
CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": P, "out_channels": 4,
    "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": BLOCKS,
}  # fmt: skip


@pytest.fixture(scope="module")
def transformer():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(**CONFIG).eval().requires_grad_(False)


def trained(**options: bool) -> PosedLayers:
    """Layers whose weights are all some numbers."""
    layers = PosedLayers(WIDTH, BLOCKS, **options).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for weights in layers.parameters():
        weights += 0.3 * torch.randn(weights.shape, generator=generator)
    return layers


def given(seed: int = 2) -> tuple[torch.Tensor, Beside, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    beside = Beside(random(B, P, t, h, w), random(B, t, 12), random(B, P, t, h, w), random(B, t, 12))
    return random(B, P, t, h, w), beside, {"timestep": torch.full((B,), 700.0), "text": random(B, 5, 16)}


def by_loop(transformer, layers, noisy, beside, timestep, text):
    """The same, written out: the transformer block by block, part by part."""
    parts = [noisy, beside.source] + ([] if beside.scene is None else [beside.scene])
    x = torch.cat(parts, 2)
    x_embedded = transformer.patch_embedding(x)
    cos, sin = transformer.rope(x)
    if layers.shared:
        cos, sin = (torch.cat([one] * len(parts), 1) for one in transformer.rope(noisy))
        embedded = x_embedded.chunk(len(parts), 2)
        x_embedded = torch.cat([e + layers.part[i][None, :, None, None, None] for i, e in enumerate(embedded)], 2)
    x = x_embedded.flatten(2).transpose(1, 2)
    temb, projected, text, _ = transformer.condition_embedder(timestep, text, None, timestep_seq_len=None)
    projected = projected.unflatten(1, (6, -1))
    cells = (h // 2) * (w // 2)
    for index, block in enumerate(transformer.blocks):
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table + projected).chunk(6, 1)
        y = block.norm1(x) * (1 + scale) + shift
        target = layers.cam_encoder[index](beside.target_pose)
        source = target if beside.source_pose is None else layers.source_encoder[index](beside.source_pose)
        for part in range(len(parts)):
            for frame in range(t):
                start = (part * t + frame) * cells
                pose = (source if part else target)[:, frame]
                y[:, start : start + cells] = y[:, start : start + cells] + pose[:, None]
        x = x + gate * layers.projector[index](block.attn1(y, None, None, (cos, sin)))
        x = x + block.attn2(block.norm2(x), text, None, None)
        x = x + ffn_gate * block.ffn(block.norm3(x) * (1 + ffn_scale) + ffn_shift)
    shift, scale = (transformer.scale_shift_table + temb[:, None]).chunk(2, 1)
    x = transformer.proj_out(transformer.norm_out(x) * (1 + scale) + shift)
    x = x.unflatten(1, (len(parts) * t, h // 2, w // 2)).unflatten(-1, (1, 2, 2, 4))
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(B, 4, len(parts) * t, h, w)[:, :, :t]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("left_out", [(), ("scene",), ("source_pose",), ("scene", "source_pose")])
def test_hooks_on_a_stock_transformer_equal_the_loop(transformer, shared, left_out):
    noisy, beside, others = given()
    beside = replace(beside, **dict.fromkeys(left_out))
    layers = trained(shared=shared)
    expected = by_loop(transformer, layers, noisy, beside, others["timestep"], others["text"])
    torch.testing.assert_close(posed(transformer, layers, noisy, beside, **others), expected, atol=1e-5, rtol=1e-5)


def test_new_layers_change_nothing_and_the_transformer_stays_as_it_was(transformer):
    noisy, beside, others = given()
    plain = lambda x: transformer(x, others["timestep"], others["text"], return_dict=False)[0]
    before, rope = plain(noisy), transformer.rope
    whole = plain(torch.cat([noisy, beside.source, beside.scene], 2))[:, :, :t]
    new = PosedLayers(WIDTH, BLOCKS, shared=False).requires_grad_(False)
    assert torch.equal(posed(transformer, new, noisy, beside, **others), whole)
    posed(transformer, trained(), noisy, beside, **others)
    assert torch.equal(plain(noisy), before) and transformer.rope is rope
    with pytest.raises(RuntimeError):  # and so it stays where a pass fails
        posed(transformer, trained(), noisy, beside, timestep=others["timestep"], text=torch.zeros(B, 5, 17))
    assert torch.equal(plain(noisy), before) and transformer.rope is rope


def test_shared_positions_are_those_of_the_first_part(transformer):
    x = given()[0]
    cos, _ = SharedPositions(transformer.rope, t, 3)(torch.cat([x] * 3, 2))
    running, _ = transformer.rope(torch.cat([x] * 3, 2))
    first = transformer.rope(x)[0]
    assert cos.shape == running.shape and not torch.equal(cos, running)
    assert all(torch.equal(part, first) for part in cos.chunk(3, 1))


def test_every_part_tells_the_noisy_one_something(transformer):
    noisy, beside, others = given()
    layers = trained()
    whole = posed(transformer, layers, noisy, beside, **others)
    for name in ("source", "scene", "target_pose", "source_pose"):
        changed = replace(beside, **{name: getattr(beside, name) + 1})
        assert not torch.allclose(posed(transformer, layers, noisy, changed, **others), whole, atol=1e-4), name


def test_only_what_lavr_trains_gets_gradients(transformer):
    noisy, beside, others = given()
    layers = PosedLayers(WIDTH, BLOCKS)
    posed(transformer, layers, noisy, beside, **others).square().mean().backward()
    for name, weights in layers.named_parameters():
        assert weights.grad is not None and weights.grad.abs().sum() > 0, name


def test_what_does_not_fit_is_refused(transformer):
    noisy, beside, others = given()
    with pytest.raises(ValueError, match="different shapes"):
        posed(transformer, trained(), noisy[:, :, 1:], beside, **others)
    with pytest.raises(ValueError, match="none for the source's pose"):
        posed(transformer, trained(source=False), noisy, beside, **others)
    with pytest.raises(ValueError, match="3 blocks"):
        posed(transformer, PosedLayers(WIDTH, 3), noisy, beside, **others)


def test_the_adapter_makes_latent_frames_of_tokens():
    torch.manual_seed(0)
    adapter = SceneAdapter(12, 4, (2, 3), heads=3)
    tokens = torch.randn(B, t, 7, 12)
    assert not adapter(tokens, (h, w)).any(), "not zero at first"
    torch.nn.init.normal_(adapter.out.weight)
    latents = adapter(tokens, (h, w))
    assert latents.shape == (B, 4, t, h, w) and adapter(tokens, (8, 10)).shape == (B, 4, t, 8, 10)
    # each latent frame comes of all tokens of its group, in any order, and of no other group's
    torch.testing.assert_close(adapter(tokens.flip(2), (h, w)), latents, atol=1e-4, rtol=1e-4)
    other = tokens.clone()
    other[:, 1, 3] += 1
    changed = (adapter(other, (h, w)) - latents).abs().amax((0, 1))
    assert (changed[1] > 1e-5).all() and changed[0].max() < 1e-5 and changed[2].max() < 1e-5
    with pytest.raises(ValueError, match="no multiples of 2"):
        adapter(tokens, (3, 6))


def test_the_adapter_of_a_nano_model_has_the_size_that_was_planned():
    """192 wide, 104 queries, 2 layers, 2x2 latents of 16 channels each: 1.4 million."""
    with torch.device("meta"):
        adapter = SceneAdapter(192, 16, (8, 13))
    assert sum(weights.numel() for weights in adapter.parameters()) == pytest.approx(1.4e6, rel=0.03)


def names_of_recammaster(config: dict) -> dict[str, tuple[str, str]]:
    """Every tensor's name in Wan's own layout, with where it belongs; by undoing diffusers' names."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        whole = WanTransformer3DModel(**config).state_dict()
    modules = (
        [f"self_attn.{name}" for name in ("q", "k", "v", "o", "norm_q", "norm_k")]
        + [f"cross_attn.{name}" for name in ("q", "k", "v", "o", "norm_q", "norm_k")]
        + ["norm3", "ffn.0", "ffn.2"]
    )
    outside = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    outside += ["time_projection.1", "head.head"]
    keys = [f"{name}.{kind}" for name in outside for kind in ("weight", "bias")] + ["head.modulation"]
    for block in range(config["num_layers"]):
        for kind in ("weight", "bias"):
            keys += [f"blocks.{block}.{name}.{kind}" for name in modules if "norm_" not in name or kind == "weight"]
            keys += [f"blocks.{block}.{name}.{kind}" for name in ("cam_encoder", "projector")]
        keys.append(f"blocks.{block}.modulation")
    found = {key: recammaster_key(key) for key in keys}
    assert None not in found.values()
    assert {name for place, name in found.values() if place == "transformer"} == set(whole)
    return found


def test_the_published_names_of_recammaster_fill_transformer_and_layers():
    """945 tensors of the 1.3B model: 825 of Wan's text-to-video transformer, and 4 in each of 30 blocks."""
    small = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
    found = names_of_recammaster(small | {"in_channels": 16, "out_channels": 16, "text_dim": 4096})
    with torch.device("meta"):
        layers = PosedLayers(1536, 30, source=False, shared=False)
    assert len(found) == 945 and len(set(found.values())) == 945
    assert {name for place, name in found.values() if place == "layers"} == set(layers.state_dict())
    assert sum(weights.numel() for weights in layers.parameters()) == 30 * (13 * 1536 + 1537 * 1536)
    assert recammaster_key("blocks.0.camera.weight") is None and diffusers_key("blocks.0.cam_encoder.weight") is None


def test_a_file_of_recammaster_runs_as_it_is(tmp_path):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(3)
    config = CONFIG | {"num_attention_heads": 1, "attention_head_dim": WIDTH, "in_channels": 4}
    transformer = WanTransformer3DModel(**config).eval().requires_grad_(False)
    layers = trained(source=False, shared=False)
    own = {"transformer": transformer.state_dict(), "layers": layers.state_dict()}
    found = names_of_recammaster(config)
    tensors = {key: own[place][name].contiguous().clone() for key, (place, name) in found.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded, posed_layers = load_recammaster(tmp_path / "model.safetensors", torch.float32)

    noisy, beside, others = given()
    beside = replace(beside, scene=None, source_pose=None, source=beside.source[:, :4])
    expected = by_loop(transformer, layers, noisy[:, :4], beside, others["timestep"], others["text"])
    result = posed(loaded, posed_layers, noisy[:, :4], beside, **others)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    for change, said in (
        (lambda all_: all_.pop("blocks.1.projector.bias"), "1 tensors of its layers"),
        (lambda all_: all_.pop("blocks.1.self_attn.q.bias"), "1 tensors of its transformer"),
        (lambda all_: all_.update({"blocks.0.more.weight": torch.ones(1)}), "another model"),
    ):
        wrong = dict(tensors)
        change(wrong)
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(InputError, match=said):
            load_recammaster(tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_recammaster(tmp_path / "none.safetensors")
