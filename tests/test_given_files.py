"""Masks and depth in the forms in which other programs save them."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import InputError
from pipeline.depth.files import load_depth
from pipeline.masks.files import check_mask_file, load_mask
from pipeline.media.video import probe, read_video

SIZE = H, W = 48, 80
LABELS = np.zeros(SIZE, np.uint8)
for _label, (_top, _left) in enumerate([(5, 5), (20, 30), (8, 55)], 1):
    LABELS[_top : _top + 14, _left : _left + 16] = _label


def pascal() -> list[int]:
    """The colour map of PASCAL VOC and DAVIS."""
    colours = []
    for index in range(256):
        bits = [(index >> n & 1) for n in range(8)]
        colours += [sum(bits[3 * k + c] << 7 - k for k in range(3) if 3 * k + c < 8) for c in range(3)]
    return colours


def save_palette(path, labels, colours=None):
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(colours or pascal())
    picture.save(path)


def mask(path, frames=1, **options):
    return next(iter(load_mask(path, frames, SIZE, **options).values())).numpy()


def same(found, wanted):
    return (found & wanted).sum() / (found | wanted).sum()


def test_label_maps_count_with_all_their_labels(tmp_path):
    save_palette(tmp_path / "davis.png", LABELS)
    Image.fromarray(LABELS).save(tmp_path / "index.png")
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "index16.png")
    Image.fromarray(LABELS.astype(np.uint16) * 1000 + (LABELS > 0)).save(tmp_path / "instances.png")
    Image.fromarray(np.array([0, 85, 170, 255], np.uint8)[LABELS]).save(tmp_path / "spread.png")
    np.savez(tmp_path / "labels.npz", mask=LABELS)
    for name in ("davis.png", "index.png", "index16.png", "instances.png", "spread.png", "labels.npz"):
        assert (mask(tmp_path / name) == (LABELS > 0)).all(), name
    for name in ("davis.png", "index.png", "index16.png", "labels.npz"):
        assert (mask(tmp_path / name, label=2) == (LABELS == 2)).all(), name


def test_void_is_no_object(tmp_path):
    void = LABELS.copy()
    void[(LABELS == 0) & (np.roll(LABELS, 2, 1) > 0)] = 255
    save_palette(tmp_path / "voc.png", void)
    Image.fromarray(void).save(tmp_path / "grey.png")
    colours = np.array(pascal(), np.uint8).reshape(-1, 3)
    Image.fromarray(colours[void]).save(tmp_path / "colour.png")
    for name in ("voc.png", "grey.png", "colour.png"):
        assert (mask(tmp_path / name) == (LABELS > 0)).all(), name


def test_black_is_the_ground_of_a_palette_whatever_its_index(tmp_path):
    save_palette(tmp_path / "a.png", np.where(LABELS > 0, 0, 1), [255, 0, 0, 0, 0, 0])
    assert (mask(tmp_path / "a.png") == (LABELS > 0)).all()
    save_palette(tmp_path / "grey.png", np.where(LABELS > 0, 0, 1), [255, 255, 255, 0, 0, 0])
    assert (mask(tmp_path / "grey.png") == (LABELS > 0)).all()


def test_soft_rims_and_compression_stay_as_good(tmp_path):
    white = Image.fromarray(np.where(LABELS > 0, 255, 0).astype(np.uint8))
    white.resize((2 * W, 2 * H), Image.Resampling.BICUBIC).save(tmp_path / "soft.png")
    white.save(tmp_path / "noise.jpg", quality=40)
    red = np.where(LABELS[..., None] > 0, np.array([255, 0, 0]), 0).astype(np.uint8)
    Image.fromarray(red).save(tmp_path / "red.jpg", quality=92, subsampling=0)
    Image.fromarray(red).save(tmp_path / "red.png")
    grey = np.where(LABELS > 0, 40000, 0).astype(np.float32) + np.random.default_rng(0).uniform(0, 2000, SIZE)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "grey16.png")
    for name in ("soft.png", "noise.jpg", "red.jpg", "red.png", "grey16.png"):
        assert same(mask(tmp_path / name), LABELS > 0) > 0.97, name


def test_pictures_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    white = Image.fromarray(np.where(LABELS == 1, 255, 0).astype(np.uint8))
    white.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert same(mask(tmp_path / "a.jpg"), LABELS == 1) > 0.97


def test_a_folder_of_masks(tmp_path):
    for n in range(5):
        save_palette(tmp_path / f"{n:05d}.png", np.roll(LABELS, n, 1))
    found = load_mask(tmp_path, 2, SIZE, start=1, stride=2)
    assert list(found) == [0, 1]
    assert (found[1].numpy() == (np.roll(LABELS, 3, 1) > 0)).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        load_mask(tmp_path / "empty", 2, SIZE)


@pytest.mark.parametrize("shape", [(3, 1, *SIZE), (1, 3, *SIZE), (3, *SIZE, 1), (3, *SIZE)])
def test_what_segmenters_save(tmp_path, shape):
    moving = np.stack([np.roll(LABELS == 1, n, 1) for n in range(3)])
    np.savez(tmp_path / "a.npz", frames=np.ones((3, *SIZE), np.uint8), masks=moving.reshape(shape))
    np.savez(tmp_path / "logits.npz", video_res=np.where(moving, 8.0, -12.0).astype(np.float32).reshape(shape))
    for name in ("a.npz", "logits.npz"):
        found = load_mask(tmp_path / name, 3, SIZE)
        assert all((found[n].numpy() == moving[n]).all() for n in range(3)), name


def test_objects_beside_each_other_count_together(tmp_path):
    masks = np.stack([LABELS == 1, LABELS == 3])[None].repeat(3, 0)
    np.savez(tmp_path / "objects.npz", masks=masks)
    np.save(tmp_path / "logits.npy", np.where(masks, 8.0, -8.0))
    for name in ("objects.npz", "logits.npy"):
        assert (mask(tmp_path / name, 3) == ((LABELS == 1) | (LABELS == 3))).all(), name


def test_an_array_for_each_object_counts_with_the_others(tmp_path):
    both = {f"obj{n}": (n == LABELS)[None].repeat(3, 0) for n in (1, 3)}
    np.savez(tmp_path / "objects.npz", **both, scores=np.ones((3, *SIZE), bool)[:, :1])
    assert (mask(tmp_path / "objects.npz", 3) == ((LABELS == 1) | (LABELS == 3))).all()


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_animated_picture_is_the_mask_of_each_frame(tmp_path, kind):
    moving = np.stack([np.roll(LABELS == 1, 3 * n, 1) for n in range(4)])
    pictures = [Image.fromarray((255 * picture).astype(np.uint8)) for picture in moving]
    lossless = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"a.{kind}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, **lossless)
    check_mask_file(path)
    found = load_mask(path, 4, SIZE)
    assert [n for n in range(4) if (found[n].numpy() == moving[n]).all()] == [0, 1, 2, 3]


def test_the_pages_of_a_tiff_are_frames(tmp_path):
    """As microscopes and ImageJ save a stack; a thumbnail among them is none, and labels stay labels."""
    shifted = [np.roll(LABELS, 2 * n, 1) for n in range(5)]
    pages = [Image.fromarray(labels) for labels in shifted]
    others = [pages[1], pages[0].resize((20, 12)), *pages[2:]]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=others)
    found = load_mask(tmp_path / "stack.tif", 5, SIZE)
    assert all((found[n].numpy() == (shifted[n] > 0)).all() for n in range(5))
    assert (load_mask(tmp_path / "stack.tif", 2, SIZE, start=1, stride=2)[1].numpy() == (shifted[3] > 0)).all()
    assert (load_mask(tmp_path / "stack.tif", 5, SIZE, label=3)[4].numpy() == (shifted[4] == 3)).all()
    with pytest.raises(InputError, match="has 5 frames; the clip needs frames 0 to 6"):
        load_mask(tmp_path / "stack.tif", 7, SIZE)
    assert probe(tmp_path / "stack.tif").frames == len(read_video(tmp_path / "stack.tif").frames) == 5
    pages[0].save(tmp_path / "photo.tif", save_all=True, append_images=[pages[0].resize((20, 12))])
    assert probe(tmp_path / "photo.tif").still


def test_a_label_that_is_not_there_and_what_is_no_mask(tmp_path):
    save_palette(tmp_path / "a.png", LABELS)
    with pytest.raises(InputError, match="no label 9"):
        load_mask(tmp_path / "a.png", 1, SIZE, label=9)
    (tmp_path / "rle.json").write_text('{"size": [48, 80], "counts": "abc"}')
    for read in (lambda path: load_mask(path, 1, SIZE), check_mask_file):
        with pytest.raises(InputError, match=r"A mask may also be an \.npz"):
            read(tmp_path / "rle.json")


# --- depth ------------------------------------------------------------------------------------------------------------


def scene(frames=3):
    """A wall at 6 with a box at 2."""
    z = np.full((frames, *SIZE), 6.0, np.float32)
    z[:, 15:35, 30:55] = 2
    return z


def is_right(depth):
    return float(depth.z[0, 2, 2] / depth.z[0, 25, 40]) > 1.5


def normalised():
    disparity = 1 / scene()
    return (disparity - disparity.min()) / (disparity.max() - disparity.min())


@pytest.mark.parametrize("name, values", [("depth", normalised()), ("depths", (300 / scene()).astype(np.float16))])
def test_what_may_be_disparity_is_asked_about(tmp_path, name, values):
    """DepthCrafter saves `depth` from 0 to 1, near = 1; Video Depth Anything `depths`, near is large."""
    np.savez(tmp_path / "d.npz", **{name: values})
    with pytest.raises(InputError, match=r"--depth-kind"):
        load_depth(tmp_path / "d.npz", 3, SIZE)
    depth = load_depth(tmp_path / "d.npz", 3, SIZE, kind="disparity")
    assert depth.kind == "disparity" and is_right(depth) and not depth.metric
    assert float(depth.z.max() / depth.z.min()) < 50  # nothing of this scene is at infinity


@pytest.mark.parametrize("values", [normalised(), 300 / scene()])
def test_disparity_in_exr_is_asked_about(tmp_path, values):
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for n, plane in enumerate(values.astype(np.float32)):
        OpenEXR.File(header, {"Z": plane}).write(str(tmp_path / f"{n}.exr"))
    with pytest.raises(InputError, match=r"--depth-kind"):
        load_depth(tmp_path, 3, SIZE)
    assert is_right(load_depth(tmp_path, 3, SIZE, kind="disparity"))


def test_what_is_said_counts(tmp_path):
    np.savez(tmp_path / "d.npz", depth=scene() / 10)
    assert is_right(load_depth(tmp_path / "d.npz", 3, SIZE, kind="depth"))
    assert load_depth(tmp_path / "d.npz", 3, SIZE, kind="metric").metric
    np.savez(tmp_path / "d.npz", z=scene(), metric=True)
    assert load_depth(tmp_path / "d.npz", 3, SIZE).kind == "metric"
    np.savez(tmp_path / "d.npz", inverse_depth=1 / scene())
    assert load_depth(tmp_path / "d.npz", 3, SIZE).kind == "disparity"
    with pytest.raises(InputError, match="choose one of"):
        load_depth(tmp_path / "d.npz", 3, SIZE, kind="height")


def test_an_array_without_a_name_is_asked_about(tmp_path):
    np.save(tmp_path / "d.npy", scene()[:, None])
    with pytest.raises(InputError, match=r"--depth-kind"):
        load_depth(tmp_path / "d.npy", 3, SIZE)
    assert is_right(load_depth(tmp_path / "d.npy", 3, SIZE, kind="depth"))


def test_a_sky_is_only_in_distance(tmp_path):
    z = scene()
    z[:, :5] = 1e10
    np.savez(tmp_path / "d.npz", arr_0=z)
    depth = load_depth(tmp_path / "d.npz", 3, SIZE)
    assert depth.kind == "depth" and is_right(depth)


def test_what_was_not_measured_is_not_far(tmp_path):
    z = (scene(1)[0] * 1000).astype(np.uint16)
    z[20:24, 35:45] = 65535
    z[:, :3] = 0
    Image.fromarray(z).save(tmp_path / "d.png")
    depth = load_depth(tmp_path / "d.png", 1, SIZE)
    assert torch.allclose(depth.z[0, 20:24, 35:45], torch.tensor(2000.0))
    assert depth.z.max() == 6000


def test_brightness_of_16_bits_is_asked_about(tmp_path):
    Image.fromarray(np.linspace(0, 65535, H * W).reshape(SIZE).astype(np.uint16)).save(tmp_path / "d.png")
    with pytest.raises(InputError, match=r"--depth-kind"):
        load_depth(tmp_path / "d.png", 1, SIZE)
