"""The scene encoder CUT3R: the layout of its tensors, its forward pass, and the conversion of its published file."""

from __future__ import annotations

import argparse
import math
import pickle
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline import InputError
from pipeline.camera.geometry import default_intrinsics
from pipeline.scene import weights
from pipeline.scene.cut3r import CUT3R, Config, CUT3REncoder, fitted, ray_map, state_positions
from pipeline.scene.heads import lengthened, pose_matrix
from pipeline.scene.latents import SceneLatents
from pipeline.scene.layers import attend, rotate, rotation
from pipeline.scene.weights import convert, load_cut3r

TINY = Config(
    encoder=32, encoder_depth=2, encoder_heads=2, ray_depth=1, decoder=16, decoder_depth=4, decoder_heads=2,
    state=12, slots=5, maps=(4, 6, 8, 10), width=8, side=48,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> CUT3R:
    torch.manual_seed(0)
    return CUT3R(TINY).eval().requires_grad_(False)


def pictures(frames: int = 3) -> torch.Tensor:
    return torch.rand(frames, 1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_published_layout_is_complete():
    """793,307,858 parameters in 1,248 tensors: counted in the authors' class, with the names of their file."""
    with torch.device("meta"):
        published = CUT3R()
    names = published.state_dict()
    assert len(names) == 1248 and sum(p.numel() for p in published.parameters()) == 793_307_858
    shapes = {
        "patch_embed.proj.weight": (1024, 3, 16, 16),
        "patch_embed_ray_map.proj.weight": (1024, 6, 16, 16),
        "enc_blocks.23.attn.qkv.weight": (3072, 1024),
        "enc_blocks_ray_map.1.mlp.fc2.bias": (1024,),
        "dec_blocks.11.cross_attn.projk.weight": (768, 768),
        "dec_blocks_state.11.norm_y.weight": (768,),
        "pose_retriever.mem": (1, 256, 1536),
        "pose_retriever.write_blocks.1.mlp.fc1.weight": (6144, 1536),
        "register_tokens.weight": (768, 1024),
        "masked_ray_map_token": (1, 1024),
        "downstream_head.final_transform.1.norm2.mlp.1.weight": (1536, 768),
        "downstream_head.dpt_self.act_postprocess.0.1.weight": (96, 96, 4, 4),
        "downstream_head.dpt_cross.scratch.layer_rn.3.weight": (256, 768, 3, 3),
        "downstream_head.dpt_rgb.head.4.weight": (3, 128, 1, 1),
        "downstream_head.pose_head.mlp.fc2.weight": (7, 3072),
    }
    assert {name: tuple(names[name].shape) for name in shapes} == shapes


def test_a_clip_goes_through_the_published_network():
    """At 832x480: 576 tokens of 512x288, and a state of 768 tokens of 768. Shapes alone, without weights."""
    frames = fitted(torch.zeros(2, 3, 480, 832), Config().side)
    with torch.device("meta"):
        network = CUT3R()
    found, states = network(frames.to("meta")[:, None])
    assert network.look(frames.to("meta")).tokens.shape == (2, 576, 1024)
    assert len(states) == 3 and states[-1].tokens.shape == (1, 768, 768) and states[-1].slots.shape == (1, 256, 1536)
    assert found[1].points_first.shape == (1, 288, 512, 3) and found[1].first_from_cam.shape == (1, 4, 4)


def test_the_rotary_embedding_turns_each_pair_by_its_own_position():
    positions = torch.tensor([[[-1, -1], [0, 3], [27, 5]]])
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    y = rotate(x, rotation(positions, 8))
    for token, (row, column) in enumerate(positions[0].tolist()):
        for half, position in ((0, row), (4, column)):
            for pair in range(2):
                angle = position * 100 ** (-2 * pair / 4)
                a, b = x[0, :, token, half + pair], x[0, :, token, half + pair + 2]
                torch.testing.assert_close(y[0, :, token, half + pair], a * math.cos(angle) - b * math.sin(angle))
                torch.testing.assert_close(y[0, :, token, half + pair + 2], b * math.cos(angle) + a * math.sin(angle))


def test_attention_knows_distances_and_no_places():
    """Also those of the pose token, which stands at -1."""
    q, k, v = (torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    at = torch.tensor([[[-1, -1], [0, 0], [0, 1], [1, 0]]])
    here, there = rotation(at, 8), rotation(at + 7, 8)
    torch.testing.assert_close(attend(q, k, v, 2, here, here), attend(q, k, v, 2, there, there), atol=1e-5, rtol=1e-5)
    flat = rotation(at.clamp(min=0), 8)
    assert not torch.allclose(attend(q, k, v, 2, here, here), attend(q, k, v, 2, flat, flat), atol=1e-4)


def test_the_state_stands_on_a_grid_of_even_width():
    published = state_positions(768)[0]
    assert published[27].tolist() == [0, 27] and published[28].tolist() == [1, 0]
    assert published[-1].tolist() == [27, 11] and state_positions(12)[0, 4].tolist() == [1, 0]


def test_a_pass_gives_a_state_more_than_frames_and_what_is_said_of_each(network):
    found, states = network(pictures())
    assert len(found) == 3 and [state.frames for state in states] == [0, 1, 2, 3]
    assert states[3].tokens.shape == (1, 12, 16) and states[3].slots.shape == (1, 5, 32)
    assert found[0].points_first.shape == (1, 32, 48, 3) and found[0].colour.shape == (1, 32, 48, 3)
    assert found[2].confidence_own.min() >= 1 and 0 < found[2].colour.min() < found[2].colour.max() < 1
    again, _ = network(pictures().flip(0))
    assert not torch.equal(found[1].points_own, again[1].points_own), "the state has no memory"


def test_a_step_is_the_published_recurrence(network):
    """Layer by layer: both see the other's tokens of the layer before, and the normalised state is the next one."""
    first, _ = network.step(network.start(), network.look(pictures()[0]))
    view = network.look(pictures()[1])
    after, seen = network.step(first, view)

    pose = network.pose_retriever.read(first.slots, view.tokens.mean(1, keepdim=True))
    s, x = first.tokens, torch.cat([pose, network.decoder_embed(view.tokens)], 1)
    by_s = rotation(state_positions(12), 8)
    by_x = rotation(torch.cat([torch.tensor([[[-1, -1]]]), view.positions], 1), 8)
    kept = []
    for layer in range(4):
        before = s, x
        s = network.dec_blocks_state[layer](before[0], before[1], by_s, by_x)
        x = network.dec_blocks[layer](before[1], before[0], by_x, by_s)
        kept.append(x)
    torch.testing.assert_close(after.tokens, network.dec_norm_state(s))
    torch.testing.assert_close(seen.layers[3], network.dec_norm(x))
    torch.testing.assert_close(seen.layers[1], kept[1][:, 1:])
    torch.testing.assert_close(seen.layers[2], kept[2][:, 1:])
    assert torch.equal(seen.layers[0], view.tokens)
    written = network.pose_retriever.write(first.slots, view.tokens.mean(1, keepdim=True), seen.layers[3][:, :1])
    torch.testing.assert_close(after.slots, written)


def test_rays_ask_a_state_and_leave_it_alone(network):
    _, states = network(pictures())
    kept = states[-1].tokens.clone()
    K = default_intrinsics(32, 48, 1)
    pose = torch.eye(4)[None].clone()
    here = network.query(states[-1], ray_map(pose, K, (32, 48)))
    pose[:, 0, 3] = 0.5
    there = network.query(states[-1], ray_map(pose, K, (32, 48)))
    assert here.colour.shape == (1, 32, 48, 3) and not torch.equal(here.colour, there.colour)
    assert torch.equal(states[-1].tokens, kept)
    with pytest.raises(ValueError, match="no frame"):
        network.query(states[0], ray_map(pose, K, (32, 48)))


def test_a_ray_map_has_the_camera_and_the_direction_of_the_point_at_depth_1():
    pose = torch.eye(4)[None].clone()
    pose[:, :3, 3] = torch.tensor([1.0, 0.0, 2.0])
    rays = ray_map(pose, default_intrinsics(32, 48, 1), (32, 48))
    assert rays.shape == (1, 6, 32, 48) and rays[0, :3, 3, 4].tolist() == [1, 0, 2]
    middle = rays[0, 3:, 15:17, 23:25].mean((-2, -1))
    torch.testing.assert_close(middle, torch.tensor([1.0, 0.0, 3.0]) / math.sqrt(10), atol=1e-3, rtol=0)


def test_a_pose_is_a_rigid_matrix_with_the_real_part_first():
    turn = math.radians(30)
    numbers = torch.tensor([[0.0, 0.0, math.log(3), 2 * math.cos(turn / 2), 0.0, 2 * math.sin(turn / 2), 0.0]])
    (matrix,) = pose_matrix(numbers)
    torch.testing.assert_close(matrix[:3, 3], torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(matrix[:3, :3] @ torch.tensor([0.0, 0, 1]), torch.tensor([0.5, 0, math.sqrt(0.75)]))
    assert torch.equal(matrix, pose_matrix(numbers * torch.tensor([1.0, 1, 1, -1, -1, -1, -1]))[0])
    assert lengthened(torch.zeros(3)).tolist() == [0, 0, 0]


def test_frames_are_shrunk_and_cropped_about_the_middle():
    wide = torch.zeros(2, 3, 480, 832)
    wide[..., 416:] = 1
    x = fitted(wide, 512)
    assert x.shape == (2, 3, 288, 512) and x.min() >= -1 and x.max() <= 1
    assert x[..., 250].max() < -0.999 and x[..., 261].min() > 0.999
    assert fitted(torch.rand(1, 3, 832, 480), 512).shape == (1, 3, 512, 288)


def test_the_encoder_keeps_every_fourth_state(network):
    frames = (pictures(9)[:, 0] + 1) / 2
    latents = CUT3REncoder(network).encode(frames)
    found, states = network(torch.stack([fitted(frame[None], 48) for frame in frames]))
    assert latents.tokens.shape == (3, 12, 16) and latents.unit > 0
    torch.testing.assert_close(latents.tokens, torch.cat([states[i].tokens for i in (1, 5, 9)]))
    torch.testing.assert_close(latents.world_from_cam[0], torch.eye(4))
    world = torch.linalg.inv(found[0].first_from_cam) @ found[8].first_from_cam
    torch.testing.assert_close(latents.world_from_cam[2], world[0], atol=1e-5, rtol=1e-5)
    assert latents.confidence is not None and latents.confidence.min() >= 1


def test_scene_latents_that_do_not_fit_are_refused():
    tokens, poses = torch.zeros(2, 3, 4), torch.eye(4).repeat(2, 1, 1)
    fine = SceneLatents(tokens, poses, 1.0, torch.ones(2))
    for wrong in ({"world_from_cam": poses[:1]}, {"unit": 0.0}, {"confidence": torch.ones(3)}, {"tokens": tokens[0]}):
        with pytest.raises(ValueError):
            replace(fine, **wrong)


def published(network: CUT3R, **others: object) -> dict:
    """What a published file holds: the weights as those of a distributed training have them, and the arguments."""
    model = {f"module.{key}": value for key, value in network.state_dict().items()}
    return {
        "model": model,
        "args": argparse.Namespace(model="ARCroco3DStereo(...)", lr=1e-4),
        "best": np.float64(0.5),
        **others,
    }


def test_the_published_pickle_becomes_safetensors_once(network, tmp_path):
    torch.save(published(network), tmp_path / "cut3r.pth")
    written = convert(tmp_path / "cut3r.pth", tmp_path / "out", ["cut3r"], TINY)
    with safe_open(written, framework="pt") as file:
        assert len(file.keys()) == len(list(network.parameters())) and "BY-NC-SA" in file.metadata()["licence"]
    loaded = load_cut3r(tmp_path / "out")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded(pictures())[1][-1].tokens, network(pictures())[1][-1].tokens)


def test_arguments_of_another_library_are_let_in_as_nothing(network, tmp_path, monkeypatch):
    """That library is not needed for it, and nothing of it is run."""
    module = types.ModuleType("omegaconf.dictconfig")
    ran = []

    class DictConfig:
        def __setstate__(self, state):
            ran.append(state)

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    given = DictConfig()
    given.content = {"model": "ARCroco3DStereo(...)", "kind": dict}
    torch.save(published(network, args=given), tmp_path / "cut3r.pth")
    monkeypatch.undo()
    convert(tmp_path / "cut3r.pth", tmp_path, ["cut3r"], TINY)
    assert not ran and load_cut3r(tmp_path).config == TINY


class Attack:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda given: given | {"args": Attack()}, "not opened.*print"),
        (lambda given: {"state": given["model"]}, "no weights under the name 'model'"),
        (lambda given: given | {"model": {"a": 1}}, "no weights under the name 'model'"),
        (lambda given: given | {"model": given["model"] | {"more": torch.ones(1)}}, "1 tensors are .* such as more"),
        (lambda given: given | {"model": dict(list(given["model"].items())[1:])}, "1 tensors are missing"),
        (
            lambda given: (
                given | {"model": {key: value + key.count("layer_rn.2") for key, value in given["model"].items()}}
            ),
            "layer_rn.2.weight differs from",
        ),
    ],
)
def test_other_files_are_refused_and_nothing_is_written(network, tmp_path, capfd, change, said):
    torch.save(change(published(network)), tmp_path / "other.pth")
    with pytest.raises(InputError, match=said):
        convert(tmp_path / "other.pth", tmp_path / "out", ["cut3r"], TINY)
    assert not (tmp_path / "out").exists() and "run" not in capfd.readouterr().out


def test_the_command_asks_for_the_terms_and_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    given = [str(tmp_path / "plain.pth"), "--output", str(tmp_path)]
    assert weights.main(given) == 2
    assert "CC BY-NC-SA 4.0" in (said := capsys.readouterr().err) and "--accept cut3r" in said
    assert weights.main([*given, "--accept", "cut3r"]) == 2
    assert "not opened" in capsys.readouterr().err
    assert weights.main([str(tmp_path / "none.pth"), "--output", str(tmp_path), "--accept", "cut3r"]) == 2
    assert "There is no file" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load_cut3r(tmp_path)
