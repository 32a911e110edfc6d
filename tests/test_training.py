"""The nano models' training: the network in one pass, its closed-form start, examples and the loss."""

from __future__ import annotations

import copy
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from pipeline.camera.geometry import static_path
from pipeline.evaluation import judge as classifier
from pipeline.training import Muon, check_gradients, orthogonalised, prior, prior_examples, text, vae
from pipeline.training.judge import accuracy
from pipeline.training.photos import load_photos, photo_clip
from pipeline.world.dataset import Stored, load, render_to
from pipeline.world.objects import COMPOUNDS, SHAPES, short_name
from pipeline.world.scenes import render_sample
from pipeline.world.textures import COLOURS

NANO = Path(__file__).parents[1] / "assets" / "nano"
FRAMES, SIZE = 9, (32, 48)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    frames = [render_sample(seed, frames=FRAMES, size=SIZE, supersample=1).source.frames for seed in range(6)]
    return (torch.stack(frames) * 2 - 1).transpose(1, 2)


@pytest.fixture(scope="module")
def started(clips) -> AutoencoderKLWan:
    torch.manual_seed(0)
    network = AutoencoderKLWan(**vae.CONFIG).eval()
    vae.linear_start(network, clips)
    return network


def _disturbed() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(**vae.CONFIG).eval()


def test_a_compiled_network_with_wrong_gradients_is_refused():
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4)), torch.randn(16, 8)
    loss_of = lambda run: run(x).square().mean()
    check_gradients(loss_of, net, lambda x: net(x.bfloat16().float()), net.parameters())
    half = lambda x: net[2](net[:2](x).detach())  # the same values; what comes before gets no gradient
    with pytest.raises(SystemExit, match="Leave out --compile"):
        check_gradients(loss_of, net, half, net.parameters())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalised_keeps_the_directions_and_evens_the_lengths(shape):
    torch.manual_seed(0)
    u, lengths, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    found = orthogonalised(u * torch.linspace(1, 30, len(lengths)) @ v)
    assert found.shape == shape and found.dtype == torch.float32
    inner = u.T @ found @ v.T
    assert (inner.diag() > 0.6).all() and (inner.diag() < 1.3).all()
    assert (inner - inner.diag().diag()).abs().max() < 0.1


def test_muon_leaves_to_adamw_what_is_not_its_own():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3), torch.nn.Conv2d(4, 4, 1))
    same = copy.deepcopy(net)
    x = torch.randn(6, 3, 5, 5)
    muon = Muon(net, outer=("2.",), lr=0.02)
    adamw = torch.optim.AdamW(same.parameters(), lr=0.02)

    def step(net, optimiser):
        optimiser.zero_grad()
        loss = (net(x).flatten(1) - x[:, 0, 0, :4]).square().mean()
        loss.backward()
        optimiser.step()
        return loss.item()

    before = net[1].weight.detach().clone()
    first = step(net, muon)
    assert step(same, adamw) == first
    for a, b in zip(net[:2], same[:2], strict=True):
        assert torch.equal(a.bias, b.bias) and not torch.equal(a.weight, b.weight)
    assert torch.equal(net[2].weight, same[2].weight)
    # as large as a step of AdamW on the whole: 0.2 of the rate for each weight
    assert (net[1].weight - before).square().mean().sqrt().item() == pytest.approx(0.2 * 0.02, rel=0.35)
    losses = [step(net, muon) for _ in range(60)]
    assert losses[-1] < 0.5 * first

    again = Muon(net, outer=("2.",), lr=0.02)
    again.load_state_dict(muon.state_dict())
    kernel = net[1].weight
    assert torch.equal(again.state[kernel]["momentum"], muon.state[kernel]["momentum"])


@torch.no_grad()
def test_one_pass_equals_the_chunked_network(clips):
    network = _disturbed()
    z = network.encode(clips[:1], return_dict=False)[0].mode()
    assert torch.allclose(vae.encode_once(network, clips[:1]), z, atol=1e-4)
    assert torch.allclose(vae.decode_once(network, z).clamp(-1, 1), network.decode(z, return_dict=False)[0], atol=1e-4)


@torch.no_grad()
def test_the_start_is_near_the_linear_floor(clips, started):
    z = vae.encode_once(started, clips)
    assert z.std() == pytest.approx(1, abs=0.15)
    restored = started.decode(z, return_dict=False)[0]
    flat = vae.psnr(clips.mean((2, 3, 4), keepdim=True).expand_as(clips), clips)
    assert vae.psnr(restored, clips) > max(22, flat + 5)


@torch.no_grad()
def test_the_start_is_a_block_transform(clips, started):
    """A change inside one block of 4x8x8 pixels changes one latent alone."""
    x = clips[:1].clone()
    x[:, :, 1:5, 8:16, 16:24] *= -1
    changed = (vae.encode_once(started, x) - vae.encode_once(started, clips[:1])).abs().amax(1)[0] > 1e-3
    assert changed[1, 1, 2] and changed.sum() == 1


def test_stored_scenes_come_back(tmp_path):
    path = render_to(tmp_path, 3, 5, (32, 48))
    stored, sample = load(path), render_sample(3, frames=5, size=(32, 48))
    assert torch.equal(stored.source, (sample.source.frames * 255).round().byte())
    assert torch.equal(stored.source_objects, sample.source.objects)
    assert stored.caption == sample.caption
    before = path.stat().st_mtime_ns
    assert render_to(tmp_path, 3, 5, (32, 48)) == path and path.stat().st_mtime_ns == before


def test_random_masks_are_of_every_kind():
    rng = np.random.default_rng(0)
    masks = [prior_examples.random_mask(rng, 9, 32, 48) for _ in range(60)]
    assert all(m.shape == (9, 1, 32, 48) and set(m.unique().tolist()) <= {0.0, 1.0} for m in masks)
    by_frame = [m.mean((1, 2, 3)) for m in masks]
    assert any((f[0] == 1) and (f[1:] == 0).all() for f in by_frame)  # the first frame alone
    assert any((f[0] == 1) and (f[-1] == 1) and (f[1:-1] == 0).all() for f in by_frame)
    assert any(((f > 0) & (f < 1)).all() for f in by_frame)  # shapes


def test_an_object_in_a_still_fills_its_cut_out(started):
    blank, none = torch.full((1, 3, 192, 320), 100, dtype=torch.uint8), torch.zeros(1, 2, 192, 320, dtype=torch.bool)
    one = static_path(torch.eye(3)[None])
    stored = Stored(
        source=blank.clone(),
        target=blank,
        source_z=torch.ones(1, 192, 320),
        target_z=torch.ones(1, 192, 320),
        source_objects=none.clone(),
        target_objects=none,
        source_path=one,
        target_path=one,
        caption="a red ball and a blue box",
        names=["a shiny red ball", "a blue box"],
    )
    stored.source_objects[:, 0, 60:130, 40:110] = True
    stored.source_objects[:, 1, 150:192, 150:190] = True  # it leaves the picture
    stored.source[:, 0][stored.source_objects[:, 0]] = 255
    names = []
    for seed in range(12):
        for example in prior_examples.still_examples(stored, started, np.random.default_rng(seed), "cpu"):
            names.append(example["name"])
            assert example["z"].shape[1:] == (1, *prior_examples.OBJECT_WINDOW)
            known = example["known"][0, 0].float()
            assert 0.1 < (known < 1).float().mean() < 0.9, "much of it is hidden, not all"
            if example["name"]:
                differs = (example["z"] - example["known"][4:])[:, 0].abs().float().amax(0) > 0.3
                assert 6 <= differs.sum() <= 80, "its hole takes 36 to 62 pixels of 64x96"
                near = torch.nn.functional.max_pool2d(1 - known[None], 3, 1, 1)[0]  # a cell is hidden by its centre
                assert not (differs & (near == 0)).any(), "what is around it is as it was"
    assert set(names) == {"a shiny red ball", ""} and names.count("") < 6


def test_a_mask_of_one_object_hides_it_and_its_short_name_names_it():
    objects = torch.zeros(5, 3, 32, 48, dtype=torch.bool)
    objects[:, 0, 10:18, 10:22] = True
    objects[:, 1, 0, 0] = True  # too small to be asked for
    assert prior_examples.well_seen(objects) == [0]
    for seed in range(8):
        known = prior_examples.without_object(np.random.default_rng(seed), objects[:, :1])
        assert known.shape == (5, 1, 32, 48) and not (known[:, 0] * objects[:, 0]).any()
        assert 0.3 < known.mean() < 1
    assert short_name("an orange egg") == "an orange egg"
    assert short_name("a glossy red striped ball") == "a red ball"
    assert short_name("a person in white") == "a person in white"
    assert (
        prior_examples.other_shape("a red ball") == "a red egg"
        and prior_examples.other_shape("an orange ring") == "an orange ball"
    )
    assert prior_examples.other_shape("a person in white") == "a person in white"


def test_every_object_has_a_cut_out_about_it(started):
    stored = Stored(
        source=torch.full((FRAMES, 3, 96, 160), 100, dtype=torch.uint8),
        target=torch.full((FRAMES, 3, 96, 160), 100, dtype=torch.uint8),
        source_z=torch.ones(FRAMES, 96, 160),
        target_z=torch.ones(FRAMES, 96, 160),
        source_objects=torch.zeros(FRAMES, 2, 96, 160, dtype=torch.bool),
        target_objects=torch.zeros(FRAMES, 2, 96, 160, dtype=torch.bool),
        source_path=static_path(torch.eye(3).expand(FRAMES, 3, 3)),
        target_path=static_path(torch.eye(3).expand(FRAMES, 3, 3)),
        caption="a red ball and a blue box",
        names=["a red ball", "a blue box"],
    )
    stored.source_objects[:, 0, 70:90, 130:150] = True
    stored.target_objects[:, 1, 8:24, 8:24] = True
    stored.source[:, 0, 70:90, 130:150] = 255
    for seed in range(4):
        examples = prior_examples.object_examples(stored, started, np.random.default_rng(seed), "cpu")
        ball, _, box, nothing = examples
        assert [example["name"] for example in examples] == ["a red ball", "", "a blue box", ""]
        for example in examples:
            channels, shape = len(example["z"]), (3, *prior_examples.OBJECT_WINDOW)
            assert example["z"].shape[1:] == shape and example["known"].shape == (4 + channels, *shape)
            inside = example["known"][:4].float().mean((0, 1))
            assert (inside.min() == 0).item() and inside.max() == 1, "what is hidden and what is around it"
        differs = (ball["z"] - ball["known"][4:]).abs().float().amax((0, 1)) > 0.05
        hidden = ball["known"][:4].float().amin((0, 1)) < 1
        hidden = torch.nn.functional.max_pool2d(hidden[None].float(), 3, 1, 1)[0] > 0  # a cell is hidden by its centre
        assert differs.any() and not (differs & ~hidden).any(), "the ball is filled in, the rest is as it was"
        assert torch.allclose(nothing["z"], nothing["known"][4:], atol=0.02), "plain ground, carried on"

    z, known, captions = prior_examples.draw_objects(
        [(ball, stored.caption), (box, stored.caption)], 32, np.random.default_rng(0)
    )
    assert z.shape == (32, channels, *shape) and known.shape == (32, 4 + channels, *shape)
    assert {"", "a red ball", "a blue box"} <= set(captions)
    assert f"a red ball, {stored.caption}" in captions and f", {stored.caption}" not in captions


def test_examples_are_held_out_with_their_objects(tmp_path):
    for number in range(4):
        for folder, kept in ((tmp_path, "whole"), (tmp_path / "objects", "object")):
            folder.mkdir(exist_ok=True)
            torch.save({"examples": [{"name": f"{kept} {number}"}] * 2, "caption": ""}, folder / f"{number}.pt")
    names = lambda items: {example["name"] for example, _ in items}
    examples = prior_examples.Examples(tmp_path, 3)
    assert names(examples.held_out) == {"whole 0", "whole 1"} and names(examples.scenes) == {"whole 2", "whole 3"}
    assert names(examples.held_out_objects) == {"object 0", "object 1"}
    assert names(examples.objects) == {"object 2", "object 3"} and len(examples.objects) == 4
    torch.save({"examples": [{"name": "object 4"}], "caption": ""}, tmp_path / "objects" / "4.pt")
    (tmp_path / "objects" / "0.pt").unlink()
    late = prior_examples.Examples(tmp_path, 3)
    torch.save({"examples": [{"name": "object 0"}], "caption": ""}, tmp_path / "objects" / "0.pt")
    late.refresh()
    assert "object 0" not in names(late.objects), "encoded after the start, held out all the same"
    (tmp_path / "stills").mkdir()
    torch.save({"examples": [{"name": "object 0"}], "caption": ""}, tmp_path / "stills" / "0.pt")
    examples.refresh()
    assert names(examples.objects) == {"object 2", "object 3", "object 4"} and len(examples.scenes) == 4
    assert names(examples.stills) == {"object 0"}, "other scenes than those held out"
    for number in range(1, 5):
        torch.save({"examples": [{"name": f"object {number}"}], "caption": ""}, tmp_path / "stills" / f"{number}.pt")
    with_stills = prior_examples.Examples(tmp_path, 3)
    assert names(with_stills.held_out_stills) == {"object 0", "object 1", "object 2"}
    assert names(with_stills.stills) == {"object 3", "object 4"}


def test_validation_tells_whether_the_prompt_is_followed(monkeypatch, tmp_path):
    """With an error for the shapes that are not there, each kind of prompt gets the error it must."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "stills").mkdir()
    z, known = torch.zeros(2, 1, 4, 4), torch.zeros(3, 6, 1, 4, 4)
    example = lambda name, known: {"z": z, "known": known, "name": name}
    whole = {"examples": [example("a red ball", known)], "caption": "a red ball"}
    torch.save(whole, tmp_path / "0.pt")
    objects = [example(name, known[0]) for name in ("a red ball", "a blue box", "")]
    for folder in ("objects", "stills"):
        torch.save({"examples": objects, "caption": ""}, tmp_path / folder / "0.pt")
    monkeypatch.setattr(prior, "embed", lambda encoder, tokenizer, captions, device: captions[0])
    said = []

    def loss(transformer, z, known, prompt, sigma, noise):
        said.append(prompt)
        return torch.tensor(0.0 if prompt.endswith(("ball", "box")) else 1.0)

    monkeypatch.setattr(prior, "flow_loss", loss)
    found = prior.validation(None, None, None, prior_examples.Examples(tmp_path, 1), torch.zeros(2, 1, 1, 1), "cpu")
    kinds = [f"{kind}{suffix}" for kind in ("object", "still") for suffix in ("", " misnamed", " misshaped")]
    assert list(found) == [*kinds, "warp", "random", "whole", "nothing"]
    assert said[:2] == ["a red ball", "a blue box"] and said[6:8] == ["a blue box", "a red ball"]
    assert found["object"] == found["still misnamed"] == 0 and found["object misshaped"] == 1


def test_photographs_become_moving_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "colour.png", picture)
    iio.imwrite(tmp_path / "grey.jpg", picture[..., 0])
    photos = load_photos(tmp_path, longest=100)
    assert [photo.shape for photo in photos] == [(64, 100, 3)] * 2
    clips = [photo_clip(photos, np.random.default_rng(seed), 5, (32, 48)) for seed in range(12)]
    assert all(clip.shape == (5, 3, 32, 48) and clip.dtype == torch.uint8 for clip in clips)
    assert all((clip.float().std((2, 3)) > 2).all() for clip in clips), "there is something in every frame"
    moves = [(clip[0].float() - clip[-1].float()).abs().mean().item() for clip in clips]
    assert max(moves) > 5 and len({round(move, 3) for move in moves}) == len(moves)
    assert torch.equal(clips[3], photo_clip(photos, np.random.default_rng(3), 5, (32, 48)))
    with pytest.raises(FileNotFoundError, match="no pictures"):
        load_photos(tmp_path / "..", longest=100)


def test_prior_examples_and_loss(tmp_path, started):
    stored = load(render_to(tmp_path, 4, FRAMES, SIZE))
    examples = prior_examples.make_examples(stored, started, np.random.default_rng(0), "cpu")
    channels = vae.CONFIG["z_dim"]
    assert [e["z"].shape for e in examples] == [(channels, 3, 4, 6)] * 2
    assert [e["known"].shape for e in examples] == [(3 if e["name"] else 2, 4 + channels, 3, 4, 6) for e in examples]
    items = [(example, stored.caption) for example in examples]
    grey = torch.zeros(channels, 3, 1, 1)
    z, known, captions = prior_examples.draw(items, 8, (2, 4), np.random.default_rng(1), grey)
    assert z.shape == (8, channels, 3, 2, 4) and known.shape == (8, 4 + channels, 3, 2, 4)
    names = {e["name"] for e in examples}
    said = {"", stored.caption} | names | {short_name(name) for name in names if name}
    assert all(c in said or c.endswith(f", {stored.caption}") for c in captions)

    text.train_tokenizer([stored.caption], tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    encoder = UMT5EncoderModel(UMT5Config(**text.TEXT_CONFIG))
    settings = prior.transformer_config(channels)
    settings["num_layers"] = 1
    transformer = WanTransformer3DModel(**settings)
    optimiser = torch.optim.AdamW([*transformer.parameters(), *encoder.parameters()], lr=1e-3)
    noise, sigma = torch.randn(z.shape), torch.full((8,), 0.7)
    losses = []
    for _ in range(12):
        prompt = prior.embed(encoder, tokenizer, captions, "cpu")
        loss = prior.flow_loss(transformer, z, known, prompt, sigma, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_short_prompts_weigh_as_if_all_their_tokens_were_there():
    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    names = [f"{colour} {shape}" for colour in COLOURS for shape in (*SHAPES, *COMPOUNDS)] + ["a person in yellow"]
    assert max(len(tokenizer(f"an {name}").input_ids) for name in names) < prior.SHORT
    encoder = UMT5EncoderModel.from_pretrained(NANO / "text_encoder", torch_dtype=torch.float32)
    transformer = WanTransformer3DModel.from_pretrained(NANO / "transformer", torch_dtype=torch.float32)
    prompts = ["a red ball", "", "a person in yellow"]
    torch.manual_seed(0)
    x, t = torch.randn(3, transformer.config.in_channels, 1, 4, 6), torch.full((3,), 900.0)
    run = lambda prompt: transformer(x, t, prompt, return_dict=False)[0]
    with torch.no_grad():
        whole = run(prior.embed(encoder, tokenizer, prompts, "cpu"))
        short = prior.ShortPrompts()
        for block in transformer.blocks:
            block.attn2.set_processor(short)
        prompt = prior.embed(encoder, tokenizer, prompts, "cpu", prior.SHORT)
        assert (run(prompt) - whole).abs().max() > 0.01, "fewer zeros weigh less"
        short.expect(prompt)
        torch.testing.assert_close(run(prompt), whole, atol=1e-4, rtol=1e-4)
        long = prior.embed(encoder, tokenizer, prompts, "cpu")
        short.expect(long)
        torch.testing.assert_close(run(long), whole, atol=1e-4, rtol=1e-4)


def test_tokenizer_reads_any_prompt(tmp_path):
    text.train_tokenizer(["a red ball rolls on a tiled floor"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in ("", "a red ball", "ein grüner Würfel, 立方体 🎥"):
        ids = tokenizer(prompt).input_ids
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert len(tokenizer("a red ball").input_ids) <= 5


def test_velocity_levels_are_shifted():
    levels = prior.noise_levels(4000, torch.Generator().manual_seed(0), shift=3.0)
    assert levels.min() > 0 and levels.max() <= 1
    assert levels.median() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=0.03)


def test_the_classifier_sees_the_box_and_learns(tmp_path):
    assert classifier.labels("a glossy red striped ball") == (classifier.NAMES.index("red"), 0)
    assert classifier.labels("a person in red") is None and classifier.labels("a blue table") is None
    frames, hidden = torch.zeros(6, 3, 40, 60), torch.zeros(6, 40, 60, dtype=torch.bool)
    hidden[2:, 4:12, 50:60] = True
    frames[2:, :, 4:12, 50:60] = 1.0
    seen = classifier.cut_outs(frames, hidden)
    assert seen.shape == (classifier.VIEWS, 3, classifier.SIDE, classifier.SIDE)
    assert 0.6 < seen.mean() < 1, "the box, its border repeated where it leaves the picture"
    assert classifier.cut_outs(frames[:1], hidden[:1]).shape == seen.shape, "nothing hidden, a single frame"

    torch.manual_seed(0)
    model = classifier.Classifier(width=8)
    colours = torch.rand(12, 1, 3, 1, 1).expand(12, classifier.VIEWS, 3, classifier.SIDE, classifier.SIDE)
    numbers = torch.stack([torch.arange(12), torch.arange(12) % 8], 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        colour, shape = model(colours)
        loss = torch.nn.functional.cross_entropy(colour, numbers[:, 0])
        loss = loss + torch.nn.functional.cross_entropy(shape, numbers[:, 1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert accuracy(model, (colours * 255).byte(), numbers)["both"] > 0.8
