"""Masks of the object: what files are read, how they are shaped, and that an object is followed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline import InputError, result_of
from pipeline.evaluation import segmentation
from pipeline.masks.files import load_mask
from pipeline.masks.flow import propagate
from pipeline.masks.follow import follow, follower
from pipeline.masks.sam2 import load_sam2, select_with_sam2, track_with_sam2
from pipeline.masks.shape import Click, fill_holes, grow
from pipeline.media.video import Clip, write_video
from pipeline.models import hub

SIZE = (40, 60)


def square(size=SIZE, top=10, left=15, side=16) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def textured(height: int, width: int, seed: int, level: tuple[float, float, float]) -> torch.Tensor:
    noise = torch.rand(1, 3, height // 4 + 2, width // 4 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")[0].clamp(0, 1)
    return (0.5 * smooth + 0.5 * torch.tensor(level)[:, None, None]).clamp(0, 1)


def moving_square(frames=8, size=(72, 96), side=24, start=(20, 10), step=(1, 4)):
    """A textured square that moves before a textured ground: the clip, and the truth T H W."""
    ground, patch = textured(*size, 1, (0.2, 0.5, 0.2)), textured(side, side, 2, (0.9, 0.3, 0.2))
    clip, truth = ground.repeat(frames, 1, 1, 1), torch.zeros(frames, *size, dtype=torch.bool)
    for t in range(frames):
        top, left = start[0] + step[0] * t, start[1] + step[1] * t
        rows, columns = slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0))
        shown = truth[t, rows, columns]
        clip[t, :, rows, columns] = patch[:, : shown.shape[0], : shown.shape[1]]
        truth[t, rows, columns] = True
    return clip, truth


def followed(clip, painted) -> torch.Tensor:
    progress = []
    mask = result_of(propagate(clip, painted), progress.append)
    assert [done for done, _ in progress] == list(range(1, len(progress) + 1))
    assert all(total == len(progress) for _, total in progress)
    assert mask.dtype == torch.bool and mask.shape == (len(clip), *clip.shape[2:])
    return mask


def iou(a, b) -> float:
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


# --- following --------------------------------------------------------------------------------------------------------


def test_a_still_clip_keeps_its_mask():
    clip, truth = moving_square(frames=5, step=(0, 0))
    mask = followed(clip, {0: truth[0]})
    assert (mask == truth).all()


def test_a_moving_square_is_followed():
    clip, truth = moving_square(size=(96, 128), side=36)
    mask = followed(clip, {0: truth[0]})
    assert min(iou(a, b) for a, b in zip(mask, truth, strict=True)) > 0.95


def test_the_table_of_how_well_is_followed():
    clip, truth = moving_square()
    rows = [line.split(" | ") for line in segmentation.evaluate([("square", clip, truth)]).splitlines()[2:]]
    figure = {row[0].strip("| "): float(row[1]) for row in rows}
    assert figure["propagate"] > 0.9 > figure["static mask"]


def test_a_large_picture_is_followed_at_a_smaller_size():
    clip, truth = moving_square(frames=4, size=(90, 640), side=60, start=(10, 300), step=(2, 6))
    assert min(iou(a, b) for a, b in zip(followed(clip, {0: truth[0]}), truth, strict=True)) > 0.9


def test_backwards_is_forwards_of_the_reversed_clip():
    clip, truth = moving_square(frames=5)
    assert torch.equal(followed(clip, {4: truth[4]}), followed(clip.flip(0), {0: truth[4]}).flip(0))


def test_painted_frames_come_back_exactly_and_both_sides_meet():
    clip, truth = moving_square(frames=7)
    odd = truth[6].clone()
    odd[:3, :3] = True  # whatever the user painted
    mask = followed(clip, {0: truth[0], 6: odd})
    assert torch.equal(mask[0], truth[0]) and torch.equal(mask[6], odd)
    assert iou(mask[3], truth[3]) > 0.9


def test_every_frame_painted_leaves_nothing_to_do():
    clip, truth = moving_square(frames=3)
    mask = result_of(propagate(clip, dict(enumerate(truth))))
    assert torch.equal(mask, truth)


def test_an_object_that_leaves_the_picture_is_gone():
    clip, truth = moving_square(frames=12, start=(20, 62), step=(0, 5))
    assert not truth[-1].any()
    mask = followed(clip, {0: truth[0]})
    assert iou(mask[4], truth[4]) > 0.8 and not mask[-1].any()


def test_an_object_is_found_again_behind_what_hid_it():
    clip, truth = moving_square(frames=16, size=(72, 128), side=16, start=(20, 6), step=(0, 6))
    clip[..., 50:64] = textured(72, 14, 3, (0.1, 0.1, 0.6))
    truth[..., 50:64] = False
    mask = followed(clip, {0: truth[0]})
    assert iou(mask[-1], truth[-1]) > 0.8
    assert not (mask[..., 50:64].float().mean() > 0.1)


def test_an_empty_painted_mask_says_that_nothing_is_there():
    clip, truth = moving_square(frames=4)
    assert not followed(clip, {0: torch.zeros_like(truth[0])}).any()


@pytest.mark.parametrize("painted", [{}, {9: square((72, 96))}, {0: square()}, {0: square((72, 96)).float()}])
def test_masks_that_do_not_fit_the_clip_are_refused(painted):
    with pytest.raises(ValueError, match="painted"):
        next(propagate(moving_square(frames=3)[0], painted))


# --- SAM 2 ------------------------------------------------------------------------------------------------------------


def tiny_sam2() -> torch.nn.Module:
    from transformers import Sam2VideoConfig, Sam2VideoModel

    torch.manual_seed(0)
    hidden = 128
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128],
        "blocks_per_stage": [1, 2, 1, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [2],
    }  # fmt: skip
    config = Sam2VideoConfig(
        image_size=128,
        vision_config={
            "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": hidden,
        },
        prompt_encoder_config={"hidden_size": hidden, "image_size": 128},
        mask_decoder_config={
            "hidden_size": hidden, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": hidden,
        },
        memory_attention_hidden_size=hidden, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=hidden, memory_encoder_output_channels=64, mask_downsampler_embed_dim=hidden,
        memory_fuser_embed_dim=hidden, memory_fuser_intermediate_dim=32, memory_fuser_num_layers=1,
    )  # fmt: skip
    return Sam2VideoModel(config).eval()


def test_sam2_runs_both_ways_and_keeps_what_was_painted():
    clip, truth = moving_square(frames=5)
    progress = []
    mask = result_of(track_with_sam2(clip, {1: truth[1], 3: truth[3]}, tiny_sam2()), progress.append)
    assert progress == [(n, 5) for n in range(1, 6)]
    assert mask.dtype == torch.bool and mask.shape == truth.shape
    assert torch.equal(mask[1], truth[1]) and torch.equal(mask[3], truth[3])


def test_sam2_finds_what_was_clicked():
    clip, _ = moving_square(frames=1)
    model = tiny_sam2()
    found = [select_with_sam2(clip[0], clicks, model) for clicks in ([Click(20, 25)], [Click(4, 60)])]
    assert all(mask.shape == clip.shape[-2:] and mask.dtype == torch.bool for mask in found)
    assert not torch.equal(*found), "it sees where the click is"


def test_sam2_is_read_from_a_folder_and_never_downloaded_unasked(tmp_path):
    made = tiny_sam2()
    made.save_pretrained(tmp_path)
    read = load_sam2(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), read.parameters(), strict=True))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"could not be loaded.*without a model"):
        load_sam2(str(tmp_path))
    with pytest.raises(InputError, match=r"nobody/nothing.*could not be loaded"):
        load_sam2("nobody/nothing")


# --- shaping ----------------------------------------------------------------------------------------------------------


def test_growing_and_shrinking():
    mask = square()
    assert grow(mask, 3).sum() == 16 * 16 + 4 * 3 * 16 + 4 * 4  # corners are round
    assert torch.equal(grow(mask, -3), square(top=13, left=18, side=10))
    assert torch.equal(grow(grow(mask, 3), -3), mask) and torch.equal(grow(mask, 0), mask)
    full = torch.ones(2, *SIZE, dtype=torch.bool)
    assert grow(full, -5).all() and not grow(~full, 5).any()


def test_holes_are_filled_in_each_frame():
    ring = square() & ~square(top=14, left=19, side=8)
    open_ring = ring & ~square(top=17, left=10, side=2)
    open_ring[17, 15:19] = False
    assert torch.equal(fill_holes(torch.stack([ring, open_ring])), torch.stack([square(), open_ring]))


# --- files ------------------------------------------------------------------------------------------------------------


def saved(path: Path, values) -> Path:
    (np.savez if path.suffix == ".npz" else np.save)(path, values)
    return path


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_of_every_frame(tmp_path, kind, suffix):
    masks = np.stack([square(left=n).numpy() for n in range(5)])
    path = saved(tmp_path / f"m.{suffix}", masks.astype(kind) * (255 if kind == np.uint8 else 1))
    found = load_mask(path, 5, SIZE)
    assert list(found) == [0, 1, 2, 3, 4] and all((found[t].numpy() == masks[t]).all() for t in found)
    found = load_mask(path, 2, SIZE, start=1, stride=2)
    assert list(found) == [0, 1] and (found[1].numpy() == masks[3]).all()


def test_one_frame_is_the_mask_of_the_frame_asked_for(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, other=np.zeros(3), picture=square().numpy())
    found = load_mask(path, 9, SIZE, at=4)
    assert list(found) == [4] and torch.equal(found[4], square())
    with pytest.raises(InputError, match=r"frame 9.*0 to 8"):
        load_mask(path, 9, SIZE, at=9)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_white_on_black_is_the_object(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    cv2.imwrite(str(path), cv2.cvtColor(square().numpy().astype(np.uint8) * 255, cv2.COLOR_GRAY2BGR))
    assert torch.equal(load_mask(path, 3, SIZE)[0], square())


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_painted_on_a_transparent_ground_is_the_object(tmp_path, suffix):
    picture = np.zeros((*SIZE, 4), np.uint8)
    picture[square().numpy()] = (10, 20, 90, 150)
    cv2.imwrite(str(tmp_path / f"m.{suffix}"), picture)
    assert torch.equal(load_mask(tmp_path / f"m.{suffix}", 1, SIZE)[0], square())


def test_label_maps_of_few_grey_levels(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), square().numpy().astype(np.uint8))
    assert torch.equal(load_mask(tmp_path / "m.png", 1, SIZE)[0], square())


def test_a_mask_video(tmp_path):
    masks = torch.stack([square(left=3 * n) for n in range(6)])
    write_video(tmp_path / "m.mp4", Clip(masks[:, None].float().expand(-1, 3, -1, -1), 8))
    found = load_mask(tmp_path / "m.mp4", 6, SIZE)
    assert len(found) == 6 and all(iou(found[t], masks[t]) > 0.95 for t in found)
    found = load_mask(tmp_path / "m.mp4", 2, SIZE, start=1, stride=3)
    assert len(found) == 2 and iou(found[1], masks[4]) > 0.95
    with pytest.raises(InputError, match=r"m.mp4 has 6 frames.*needs frames 0 to 8"):
        load_mask(tmp_path / "m.mp4", 9, SIZE)


def test_masks_of_the_same_proportions_are_resized(tmp_path):
    path = saved(tmp_path / "m.npy", square().numpy().repeat(2, 0).repeat(2, 1))
    assert torch.equal(load_mask(path, 1, SIZE)[0], square())


BAD = {
    "empty": (np.zeros((2, *SIZE)), "m.npz is empty: paint over"),
    "full": (np.ones((2, *SIZE)), "m.npz covers the whole picture"),
    "proportions": (np.ones((2, 60, 40)), r"m.npz is 40x60.*\(60x40\)"),
    "length": (np.ones((3, *SIZE)) * square().numpy(), "m.npz has 3 frames.*frames 0 to 3"),
    "nan": (np.where(square().numpy(), np.nan, 0), "m.npz has values that are NaN"),
    "text": (np.full(SIZE, "x"), "m.npz has shape.*give booleans or numbers"),
    "flat": (np.ones(7), "m.npz has the arrays arr_0; give one named mask"),
    "pickle": (np.full(SIZE, None), "m.npz has shape.*give booleans or numbers"),
    "wide": (np.ones((2, 9000), bool), "m.npz has shape.*8192 pixels a side"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_used_are_named(tmp_path, case):
    values, message = BAD[case]
    frames = 4 if case == "length" else len(values) if values.ndim == 3 else 1
    with pytest.raises(InputError, match=message):
        load_mask(saved(tmp_path / "m.npz", values), frames, SIZE)


def test_a_file_that_would_unpack_to_much_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("mask.npy", "w") as file:
        header = {"descr": "|b1", "fortran_order": False, "shape": (100_000, 4000, 4000)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match=r"bomb\.npz is too large"):
        load_mask(tmp_path / "bomb.npz", 3, SIZE)


@pytest.mark.parametrize("name", ["m.npz", "m.npy", "m.png", "m.mp4", "m.jpg"])
def test_damaged_and_missing_files_are_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} does not exist"):
        load_mask(tmp_path / name, 1, SIZE)
    (tmp_path / name).write_bytes(b"neither this nor that" * 9)
    with pytest.raises(InputError, match=f"{name} (cannot be read|is not a picture that can be read)"):
        load_mask(tmp_path / name, 1, SIZE)


def test_weights_that_are_fetched_while_the_app_runs_are_used(tmp_path, monkeypatch):
    here = []
    monkeypatch.setattr(hub, "at_hand", lambda ref: here[0] if here else None)
    assert follower() == "optical flow"
    tiny_sam2().save_pretrained(tmp_path)
    here.append(tmp_path)
    assert follower() == "SAM 2"


def test_without_weights_of_sam2_optical_flow_follows(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert follower() == "optical flow"
    ring = square() & ~square(top=14, left=19, side=8)
    clip = torch.where(ring, 0.9, 0.3).expand(3, 3, *SIZE).clone()
    mask = result_of(follow(clip, {1: ring}))
    assert torch.equal(mask[1], ring), "what was painted stays as it was"
    assert mask[0, 18, 23] and mask[2, 18, 23], "what is surrounded is filled in the other frames"
