"""The training of LaVR's soft parts: what it begins with and reads, that it learns, goes on, and can be rendered."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import write_clip
from test_methods import known

from pipeline import InputError
from pipeline.camera.files import multicam_poses
from pipeline.camera.geometry import invert_rigid
from pipeline.depth.load import load_depth_model
from pipeline.method.guidance import Guidance
from pipeline.method.lavr import beside_of, lavr, scene_model_of
from pipeline.method.methods import METHODS, solve
from pipeline.prior.load import load_backbone
from pipeline.prior.posed import hooked
from pipeline.scene.recurrent import RecurrentScene, Sizes, inputs_of
from pipeline.training import lavr as training
from pipeline.training.lavr import Left, Trainee, begin
from pipeline.training.lavr_examples import Examples, scenes_of, shown_of, together
from pipeline.training.scene import save_recurrent
from pipeline.training.views import read_multicam, read_world, varied
from pipeline.world.dataset import render_to

DEPTH = Path(__file__).parents[1] / "assets" / "nano" / "depth"
FRAMES, SIZE = 5, (32, 48)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed in range(3):
        render_to(folder, seed, FRAMES, SIZE, 1)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    sizes = Sizes(width=16, heads=2, layers=1, state=6, pixels=32 * 48)
    trunk: Any = load_depth_model(str(DEPTH))
    folder = tmp_path_factory.mktemp("encoder") / "scene"
    save_recurrent(RecurrentScene(inputs_of(trunk), sizes), folder, DEPTH)
    return folder


@pytest.fixture
def backbone(tiny_backbone_folder):
    return load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)


@pytest.fixture
def encoder(encoder_folder):
    from pipeline.scene.recurrent import load_recurrent

    return load_recurrent(encoder_folder)


@pytest.fixture
def examples(data, backbone, encoder) -> Examples:
    return Examples(scenes_of([data], SIZE, FRAMES), backbone, encoder, 1)


def started(backbone, encoder, *, asymmetric: bool = True) -> Trainee:
    torch.manual_seed(1)
    return begin(backbone, encoder, argparse.Namespace(size=SIZE, grid=None, asymmetric=asymmetric, running=False))


def test_at_first_it_is_the_plain_prior(backbone, encoder, examples):
    """Poses add nothing, the projector passes on, the scene's latents are zero: bit for bit the prior's own answer."""
    trainee, batch = started(backbone, encoder), examples.make(examples.scenes.pair(examples.seen[0], _rng(0)), _rng(1))
    beside = trainee.beside(batch, Left())
    assert beside.scene is not None and torch.count_nonzero(beside.scene) == 0
    noisy = torch.cat([torch.randn_like(batch.z), batch.channels], 1)
    given = {"timestep": torch.tensor([700.0]), "encoder_hidden_states": batch.prompt, "return_dict": False}
    with torch.no_grad():
        plain = trainee.transformer(hidden_states=noisy, **given)[0]
        with hooked(trainee.transformer, trainee.layers, beside, slice(0, 1)):
            assert torch.equal(trainee.transformer(hidden_states=noisy, **given)[0], plain)


def test_what_learns_is_what_the_paper_trains(backbone, encoder):
    trainee = started(backbone, encoder)
    kinds = {".".join(name.split(".")[:2]) if name[0] in "al" else name.split(".")[3] for name in trainee.learned()}
    assert {"attn1", "layers.cam_encoder", "layers.source_encoder", "layers.projector", "layers.part"} <= kinds
    assert all("attn1" in name for name in trainee.learned() if name.startswith("transformer."))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_several_noise_levels_share_a_context(backbone, encoder, examples, asymmetric):
    trainee = started(backbone, encoder, asymmetric=asymmetric)
    batch = together([examples.draw(_rng(i)) for i in range(2)])
    for name, value in trainee.learned().items():
        torch.manual_seed(len(name))
        value.data += 0.1 * torch.randn_like(value)
    sigmas, noise = torch.rand(3, 2), torch.randn(3, *batch.z.shape)
    with torch.no_grad():
        whole = trainee(batch, Left(), sigmas, noise)
        each = [trainee(batch, Left(), sigmas[i : i + 1], noise[i : i + 1]) for i in range(3)] if asymmetric else []
    if asymmetric:
        torch.testing.assert_close(whole, torch.stack(each).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left", [Left(), Left(scene=True), Left(source=True, poses=True), Left(source_pose=True)])
def test_steps_lower_the_loss_on_one_example(backbone, encoder, examples, left):
    trainee, batch = started(backbone, encoder), examples.draw(_rng(3))
    optimiser = torch.optim.AdamW(trainee.learned().values(), 3e-3)
    sigmas, noise = torch.tensor([[0.9], [0.5]]), torch.randn(2, *batch.z.shape)
    frozen = trainee.transformer.blocks[0].ffn.net[0].proj.weight.clone()
    losses = []
    for _ in range(25):
        loss = trainee(batch, left, sigmas, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(trainee.transformer.blocks[0].ffn.net[0].proj.weight, frozen)


def test_training_and_render_show_the_model_the_same(
    backbone, encoder, examples, encoder_folder, tiny_backbone_folder, tmp_path
):
    """The example of a clip, as the training lays it out, is what `beside_of` lays out for its render."""
    trainee = started(backbone, encoder)
    scene = known()
    folder = _saved(trainee, encoder_folder, tiny_backbone_folder, tmp_path)
    loaded: Any = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    found = beside_of(loaded, loaded.soft, scene)
    from pipeline.training.views import Pair, Recording, middle_distance

    pair = Pair(
        Recording(scene.clip, scene.source, scene.z),
        Recording(scene.clip, scene.target),
        "",
        middle_distance(scene.z[0]),
    )
    batch = examples.make(pair, _rng(0), "nothing")
    wanted = trainee.beside(batch, Left())
    for name in ("source", "target_pose", "scene", "source_pose"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=2e-3, rtol=2e-3, msg=name)


def test_what_is_shown_of_the_target(data):
    pair = varied(read_world(data / "0.npz", FRAMES, SIZE))
    nothing, first, warp = (shown_of(pair, kind, _rng(0)) for kind in ("nothing", "first", "warp"))
    assert not nothing.mask.any() and not nothing.video.any()
    assert first.mask[0].all() and not first.mask[1:].any() and torch.equal(first.video[0], pair.target.frames[0])
    error = ((warp.video - pair.target.frames).abs() * warp.mask).sum() / (3 * warp.mask.sum())
    assert warp.mask.float().mean() > 0.3 and error < 0.12


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def write_multicam(root: Path, cameras: int = 3) -> Path:
    """A scene in the layout of MultiCamVideo: Unreal's axes and centimetres, rows that are columns."""
    scene = root / "train" / "f18_aperture10" / "scene1"
    (scene / "videos").mkdir(parents=True)
    (scene / "cameras").mkdir()
    given = {}
    for frame in range(6):
        given[f"frame{frame}"] = {
            # looks along x, as Unreal's cameras at rest do; camera n stands n metres to the right of the first
            f"cam{n + 1:02d}": f"[1 0 0 0] [0 1 0 0] [0 0 1 0] [{10 * frame} {100 * n} 150 1] "
            for n in range(cameras)
        }
    (scene / "cameras" / "camera_extrinsics.json").write_text(json.dumps(given))
    for n in range(cameras):
        write_clip(scene / "videos" / f"cam{n + 1:02d}.mp4")
    (scene / "caption.txt").write_text("a street\n")
    return scene


def test_the_layout_of_multicamvideo_is_read(tmp_path):
    scene = write_multicam(tmp_path)
    poses = multicam_poses(scene / "cameras" / "camera_extrinsics.json")
    between = invert_rigid(poses["cam01"][:1]) @ poses["cam03"]
    torch.testing.assert_close(between[0, :3, :3], torch.eye(3))
    torch.testing.assert_close(between[0, :3, 3], torch.tensor([2.0, 0, 0]))
    torch.testing.assert_close(between[5, :3, 3], torch.tensor([2.0, 0, 0.5]))
    pair = read_multicam(scene, _rng(0), FRAMES, SIZE)
    assert pair.source.frames.shape == pair.target.frames.shape == (FRAMES, 3, *SIZE)
    assert pair.caption == "a street" and pair.unit == 1.0 and pair.source.z is None
    with pytest.raises(InputError, match="frames"):
        read_multicam(scene, _rng(0), 99, SIZE)
    (scene / "videos" / "cam02.mp4").unlink()
    (scene / "videos" / "cam03.mp4").unlink()
    with pytest.raises(InputError, match="1 videos whose camera is known"):
        read_multicam(scene, _rng(0), FRAMES, SIZE)
    with pytest.raises(SystemExit, match="hold no scenes"):
        scenes_of([tmp_path / "empty"], SIZE, FRAMES)


def arguments(backbone: Path, encoder: Path, data: Path, out: Path, steps: int, *more: str) -> list[str]:
    given = {
        "backbone": backbone, "encoder": encoder, "data": data, "out": out, "steps": steps, "size": "32x48",
        "frames": FRAMES, "batch": 2, "held-out": 0, "lr": 1e-3, "device": "cpu",
    }  # fmt: skip
    return [*(text for name, value in given.items() for text in (f"--{name}", str(value))), *more]


def test_a_real_layout_is_trained_on_with_the_settings_of_the_paper(tiny_backbone_folder, encoder_folder, tmp_path):
    """A tiny random Wan, whose context and noisy part see each other, on a tiny folder of clips."""
    for number in range(2):
        write_multicam(tmp_path / "data" / str(number))
    given = arguments(
        tiny_backbone_folder,
        encoder_folder,
        tmp_path / "data",
        tmp_path / "soft",
        2,
        "--cache",
        str(tmp_path / "cache"),
    )
    training.main(given)
    config = json.loads((tmp_path / "soft" / "config.json").read_text())
    assert config["layers"]["asymmetric"] is False and config["adapter"]["tokens"] == 16
    assert list((tmp_path / "cache").glob("*.pt"))
    assert json.loads((tmp_path / "soft.figures.json").read_text())["step"] == 2


def test_a_training_goes_on_where_it_stopped(tiny_backbone_folder, encoder_folder, data, tmp_path):
    for out, steps in (("once", 3), ("twice", 1), ("twice", 3)):
        training.main(arguments(tiny_backbone_folder, encoder_folder, data, tmp_path / out, steps, "--asymmetric"))
    states = [torch.load(tmp_path / f"{name}.checkpoint.pt", weights_only=True) for name in ("once", "twice")]
    for kind in ("learned", "mean"):
        for name, value in states[0][kind].items():
            assert torch.equal(value, states[1][kind][name]), name


def _saved(trainee: Trainee, encoder_folder: Path, tiny: Path, tmp_path: Path) -> Path:
    """A backbone's folder with the soft parts of a trainee, all of whose weights have moved."""
    folder = shutil.copytree(tiny, tmp_path / "backbone")
    for name, value in trainee.learned().items():
        torch.manual_seed(len(name))
        value.data += 0.1 * torch.randn_like(value)
    namespace = argparse.Namespace(out=folder / "soft", encoder=encoder_folder)
    training.save_soft(trainee.learned(), trainee, namespace)
    settings = json.loads((folder / "recapture.json").read_text())
    (folder / "recapture.json").write_text(json.dumps(settings | {"soft": "soft"}))
    return folder


def test_trained_self_attention_serves_the_soft_methods_alone(
    backbone, encoder, encoder_folder, tiny_backbone_folder, tmp_path
):
    guidance = Guidance(steps=2, prompt="a red ball")
    last = lambda model, method: [*solve(model, METHODS[method](model, known(), guidance))][-1].z
    before = last(backbone, "inversecrafter")
    folder = _saved(started(backbone, encoder), encoder_folder, tiny_backbone_folder, tmp_path)
    loaded: Any = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    assert loaded.soft.weights and scene_model_of("lavr", str(folder)) == ""
    soft = last(loaded, "lavr")
    assert torch.equal(last(loaded, "inversecrafter"), before)
    untrained: Any = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    untrained.soft = replace(untrained.soft, weights={})
    assert not torch.allclose(last(untrained, "lavr"), soft, atol=1e-4)
    assert last(loaded, "both").isfinite().all()


def test_soft_parts_of_another_transformer_are_refused(
    backbone, encoder, encoder_folder, tiny_backbone_folder, tmp_path
):
    folder = _saved(started(backbone, encoder), encoder_folder, tiny_backbone_folder, tmp_path)
    tensors = load_file(folder / "soft" / "model.safetensors")
    name = next(name for name in tensors if name.startswith("transformer."))
    save_file(tensors | {name: tensors[name][:1].contiguous()}, folder / "soft" / "model.safetensors")
    with pytest.raises(InputError, match="another transformer"):
        lavr(load_backbone(str(folder), device="cpu", dtype=torch.float32), known(), Guidance(steps=1))
