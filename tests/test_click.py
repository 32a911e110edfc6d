"""Objects found by clicks: what a click promises, the network, its training, and how it is measured."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.depth.network import DepthNet
from pipeline.evaluation import clicks as measured
from pipeline.masks.click import ClickNet, answers, first_click, held, load_clicker, next_click, see, select
from pipeline.masks.shape import Click
from pipeline.media.video import resize
from pipeline.training import click as training
from pipeline.training.click import Cutout, cropped, four_in_one, pasted, read_cutouts, spoilt
from pipeline.training.cutouts import items_of, picture_of
from pipeline.world.scenes import render_sample

TRUNK = (8, 8, 8, 8, 8, 8, 8)
TINY = {"trunk": (8, 8, 8, 8, 8), "channels": (8, 8, 8, 8, 8), "compared": 4, "heads": 2}


def tiny_depth() -> DepthNet:
    torch.manual_seed(0)
    net = DepthNet(repeats=(1,) * 7, trunk=TRUNK, channels=(8,) * 5, heads=2)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def still():
    """A frame of the world, and the mask of its largest object."""
    view = render_sample(3, frames=1, size=(96, 160), supersample=1).source
    largest = view.objects[0].flatten(1).sum(1).argmax()
    return view.frames[0], view.objects[0, largest]


# --- what a click promises --------------------------------------------------------------------------------------------


def test_a_click_never_selects_less_than_its_pixel():
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    for size in ((40, 64), (61, 33), (33, 70)):
        frame = torch.rand(3, *size, generator=generator)
        clicks = [Click(int(rng.integers(size[0])), int(rng.integers(size[1])), n != 1) for n in range(3)]
        mask = select(frame, clicks)
        assert mask.shape == size
        for click in clicks:
            assert mask[click.row, click.column] == click.positive


def test_a_further_click_only_adds_or_only_takes_away():
    torch.manual_seed(1)
    net, frame = ClickNet(**TINY).eval(), torch.rand(1, 3, 64, 64)
    seen = see(frame, tiny_depth())
    clicks = [Click(10, 10), Click(50, 50), Click(20, 40, False), Click(5, 60), Click(60, 5, False)]
    steps = [answers(net, seen, clicks[: n + 1]) for n in range(len(clicks))]
    for click, before, after in zip(clicks[1:], steps, steps[1:], strict=False):
        change = after - before
        assert (change >= 0).all() if click.positive else (change <= 0).all()


def test_only_the_parts_that_were_clicked_or_stood_before_are_held():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[2:6, 2:6] = mask[10:14, 2:6] = mask[2:6, 20:24] = True
    assert torch.equal(held(mask, [Click(3, 3)]).nonzero().amin(0), torch.tensor([2, 2]))
    assert held(mask, [Click(3, 3)]).sum() == 16
    before = torch.zeros_like(mask)
    before[11, 3] = True
    assert held(mask, [Click(3, 3)], before).sum() == 32
    assert held(mask, [Click(3, 3), Click(4, 4, False)]).sum() == 15
    assert not held(mask, [Click(3, 3, False)]).any(), "nothing was asked for"


def test_clicks_find_a_solid_and_correct_a_mask(still):
    frame, truth = still
    found = select(frame, [first_click(truth.numpy())])
    iou = lambda mask: float((mask & truth).sum() / (mask | truth).sum())
    assert iou(found) > 0.75
    off = truth.clone()
    rows = truth.any(1).nonzero()
    off[: int(rows.float().mean())] = False
    click = next_click(off.numpy(), truth.numpy())
    assert click is not None and click.positive
    assert iou(select(frame, [click], off)) > iou(off) + 0.1


@pytest.mark.parametrize(
    ("clicks", "words"),
    [
        ([], "Click on the object first"),
        ([Click(3, 3, False)], "Click on the object first"),
        ([Click(3, 64)], "column 64 is not on the picture"),
        ([Click(-1, 3)], "row -1"),
    ],
)
def test_clicks_that_say_nothing_are_refused(clicks, words):
    with pytest.raises(InputError, match=words):
        select(torch.rand(3, 48, 64), clicks)


def test_a_mask_is_made_by_clicks_on_the_command_line(tmp_path, still, capsys):
    frame, truth = still
    clip = tmp_path / "still.png"
    Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()).save(clip)
    on, beside = first_click(truth.numpy()), first_click(~truth.numpy())
    command = ["mask", str(clip), "--click", f"{on.column},{on.row}", "--not", f"{beside.column},{beside.row}"]
    assert main([*command, "--output", str(tmp_path / "object.png")]) == 0
    assert f"--mask {tmp_path / 'object.png'} --frame 0" in capsys.readouterr().out
    mask = np.asarray(Image.open(tmp_path / "object.png")) > 127
    assert mask.shape == tuple(truth.shape) and mask[on.row, on.column] and not mask[beside.row, beside.column]
    for wrong, words in (
        (["--click", "160,3", "--output", "object.png"], "160,3 is not on the picture"),
        (["--output", "object.png"], "Click on the object first"),
        (["--click", "3,3", "--output", "object.jpg"], "must end in .png"),
    ):
        assert main(["mask", str(clip), *wrong]) == 2
        assert words in capsys.readouterr().err


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_network_reads_its_clicks_at_any_size():
    torch.manual_seed(0)
    depth, net = tiny_depth(), ClickNet(**TINY).eval()
    for size in ((32, 64), (45, 77)):
        seen = see(torch.rand(2, 3, *size), depth)
        assert seen.disparity.shape == (2, 1, *size)
        one = net(seen, [[Click(size[0] - 1, size[1] - 1)], [Click(0, 0)]])
        assert one.shape == (2, 1, *size)
        assert not torch.equal(one, net(seen, [[Click(3, 3)], [Click(0, 0)]]))
        negative = net(seen, [[Click(size[0] - 1, size[1] - 1), Click(3, 3, False)], [Click(0, 0)]])
        assert not torch.equal(one[0], negative[0]) and torch.allclose(one[1], negative[1], atol=1e-5)


def test_what_is_seen_on_the_way_is_the_depth_that_is_estimated():
    depth, pictures = tiny_depth(), torch.rand(2, 3, 45, 77)
    features, disparity = depth.seen(pictures[:, None])
    assert torch.equal(disparity, depth(pictures[:, None]))
    padded = torch.nn.functional.pad(pictures, (0, 96 - 77, 0, 64 - 45), mode="replicate")
    for one, other in zip(features, depth.features(padded), strict=True):
        torch.testing.assert_close(one, other)


# --- training ---------------------------------------------------------------------------------------------------------


def cutout(seed: int, size=(60, 90)) -> Cutout:
    rng = np.random.default_rng(seed)
    part = np.zeros(size, bool)
    part[15:40, 20:50] = True
    image = np.where(part[..., None], rng.integers(150, 255, (*size, 3)), rng.integers(0, 100, (*size, 3)))
    return Cutout(image.astype(np.uint8), [part])


def test_what_is_pasted_is_where_its_mask_says():
    under, over = cutout(0), cutout(1)
    shares = []
    for seed in range(20):
        image, mask = pasted(under, over, random.Random(seed))
        changed = (image != under.image).any(-1)
        if mask.any():
            shares.append((changed & mask).sum() / mask.sum())
    assert all(share > 0.9 or share < 0.15 for share in shares), "the thing itself, or what is left of one below"
    assert any(share > 0.9 for share in shares) and any(share < 0.15 for share in shares)


def test_four_pictures_stand_in_one():
    places = set()
    for seed in range(8):
        dark = Cutout(np.zeros((60, 90, 3), np.uint8), [])
        image, mask = four_in_one([cutout(0), dark, dark, dark], random.Random(seed))
        assert image.shape == (60, 90, 3) and mask.sum() == 12 * 15
        assert (image.mean(-1) > 120)[mask].mean() > 0.9 and not (image.mean(-1) > 120)[~mask].mean() > 0.05
        places.add(tuple(np.argwhere(mask)[0] // (30, 45)))
    assert len(places) > 1


def test_a_piece_keeps_picture_and_mask_together():
    one = cutout(0)
    for seed in range(10):
        example = cropped(one.image, one.parts[0], (32, 48), random.Random(seed))
        assert example.picture.shape == (3, 32, 48) and example.mask.any()
        bright = example.picture.mean(0) > 0.5
        assert (bright == example.mask).float().mean() > 0.9


def test_a_spoilt_mask_is_off_but_about_there():
    mask = cutout(0).parts[0]
    for seed in range(20):
        off = spoilt(mask, random.Random(seed))
        assert off.dtype == bool and (off != mask).any() and (off & mask).any()


def test_the_next_click_is_where_the_answer_errs_most():
    truth, found = np.zeros((2, 40, 60), bool)
    truth[5:15, 5:15] = True
    found[30:34, 40:44] = True
    assert next_click(found, truth) == Click(9, 9)
    found[5:15, 5:15] = True
    click = next_click(found, truth)
    assert click is not None and not click.positive and 30 <= click.row < 34
    assert next_click(truth, truth) is None


def test_training_learns_goes_on_and_writes_weights(tmp_path, monkeypatch):
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for number in range(4):
        one = cutout(number)
        split = "val" if number == 3 else "train"
        np.savez(folder / f"{number}.npz", image=one.image, mask=one.parts[0].astype(np.uint8) * 255, split=split)
    assert len(read_cutouts(folder, "train")) == 3
    monkeypatch.setattr(training, "SIZES", ((32, 64),))
    monkeypatch.setattr(training, "ClickNet", lambda: ClickNet(**TINY))
    monkeypatch.setattr(training, "load_depth_model", lambda ref: tiny_depth())
    out = tmp_path / "click"
    run = ["--cutouts", str(folder), "--depth", "depth", "--out", str(out), "--batch", "2"]
    training.main([*run, "--steps", "2"])
    training.main([*run, "--steps", "3"])
    assert torch.load(f"{out}.checkpoint.pt", weights_only=True)["step"] == 3
    assert (out / "model.safetensors").is_file()
    torch.manual_seed(0)
    net, depth, rng = ClickNet(**TINY), tiny_depth(), random.Random(0)
    batch = [cropped(one.image, one.parts[0], (32, 64), rng) for one in read_cutouts(folder, "train")]
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = training.step_of(net, depth, batch, random.Random(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_pictures_to_cut_out_of_are_found(pairs, tmp_path):
    (tmp_path / "index.jsonl").write_text("")
    items = list(items_of(pairs, tmp_path))
    assert {item.at for item in items} >= {None, 0.2, 0.8}
    for item in items:
        image = picture_of(item)
        assert image.dtype == np.uint8 and image.ndim == 3 and max(image.shape) <= 416


# --- how it is measured -----------------------------------------------------------------------------------------------


def test_grabcut_finds_a_disc_by_dots():
    y, x = torch.meshgrid(torch.arange(96), torch.arange(160), indexing="ij")
    disc = (x - 60) ** 2 + (y - 50) ** 2 < 28**2
    ground = 0.45 + 0.1 * torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(0))
    frame = torch.where(disc, torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1) + 0.05 * ground, ground)
    found = measured.grabcut(frame, [Click(50, 60)])
    assert (found & disc).sum() / (found | disc).sum() > 0.93
    assert not measured.grabcut(frame, [Click(50, 60), Click(50, 70, False)])[50, 70]


def test_the_table_counts_clicks(still):
    frame, truth = still
    perfect = lambda frame, clicks: truth
    halves = lambda frame, clicks: truth & (torch.arange(truth.shape[1]) < truth.nonzero()[:, 1].float().mean())
    table = measured.evaluate([("one", frame, truth)], {"perfect": perfect, "half": halves})
    assert "| perfect | 1.000 | 1.000 | 1.000 |" in table
    assert "| half | 0." in table
    assert measured.main(["--video", str(Path("no.mp4")), "--masks", "no.npz"]) == 2


def test_shipped_weights_fit_their_network():
    net, depth = load_clicker()
    seen = see(resize(torch.rand(1, 3, 96, 160), (96, 160)), depth)
    assert net(seen, [[Click(5, 5)]]).isfinite().all()
