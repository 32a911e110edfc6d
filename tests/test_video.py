import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from av.stream import Disposition
from PIL import Image

from pipeline import InputError
from pipeline.media.video import (
    Clip,
    crop_to_aspect,
    probe,
    read_picture,
    read_video,
    resize,
    working_size,
    write_video,
)


def numbered(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Frame k is grey of brightness k / 32, with a red bar along the top and a blue one along the left."""
    video = (torch.arange(frames) / 32 % 1).view(-1, 1, 1, 1).repeat(1, 3, height, width)
    video[:, :, : height // 4] = torch.tensor([1.0, 0, 0])[:, None, None]
    video[:, :, :, : width // 4] = torch.tensor([0, 0, 1.0])[:, None, None]
    return video


def numbers(video: torch.Tensor) -> list[int]:
    return (video[..., video.shape[-2] // 2 :, video.shape[-1] // 2 :].mean((1, 2, 3)) * 32).round().int().tolist()


def write_raw(path, frames, *, times=None, fmt="yuv420p", codec="libx264", rate=25, sound=None, aspect=None):
    """A file as others make them: any codec, pixel format, time stamps (in ms), pixel aspect."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            audio = container.add_stream("aac" if str(path).endswith("mp4") else "pcm_s16le", rate=48000, layout="mono")
            resampler = av.AudioResampler("fltp" if audio.codec_context.name == "aac" else "s16", "mono", 48000)
            for part in np.split(sound[None].astype(np.float32), len(sound) // 1000, axis=1):
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate = 48000
                for resampled in resampler.resample(frame):
                    container.mux(audio.encode(resampled))
            container.mux(audio.encode())
        for k, image in enumerate(frames):
            data = (image.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(data, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rotate_in_metadata(path, quarter_turns_clockwise):
    """Rewrites the display matrix in the track header, as phones do for portrait clips."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns_clockwise]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean().item() + 1e-12)


def smooth(frames=5, height=48, width=64):
    torch.manual_seed(0)
    return F.interpolate(torch.rand(frames, 3, 4, 5), (height, width), mode="bicubic").clamp(0, 1)


def test_what_is_written_is_read_again(tmp_path):
    clip = Clip(smooth(5, 96, 160), 24000 / 1001)
    write_video(tmp_path / "a.mp4", clip)
    again = read_video(tmp_path / "a.mp4")
    assert again.frames.shape == clip.frames.shape
    assert again.frames.dtype == torch.float32
    assert again.fps == pytest.approx(24000 / 1001)
    assert psnr(again.frames, clip.frames) > 38
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames, info.has_audio) == (160, 96, 5, False)
    assert info.duration == pytest.approx(5 * 1001 / 24000, rel=0.01)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]  # no temporary files stay


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 0.8, 0.3), (1, 1, 1), (0, 0, 0)])
def test_colours_survive(tmp_path, colour):
    flat = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    write_video(tmp_path / "a.mp4", Clip(flat, 10))
    assert (read_video(tmp_path / "a.mp4").frames - flat).abs().max() < 0.03


def test_the_file_is_what_browsers_play(tmp_path):
    write_video(tmp_path / "a.mp4", Clip(smooth(), 25))
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts before it is loaded
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_odd_sizes_gain_a_row_or_column(tmp_path):
    clip = Clip(smooth(3, 99, 151), 25)
    write_video(tmp_path / "a.mp4", clip)
    frames = read_video(tmp_path / "a.mp4").frames
    assert frames.shape == (3, 3, 100, 152)
    assert psnr(frames[..., :99, :151], clip.frames) > 35


def test_one_frame(tmp_path):
    write_video(tmp_path / "a.mp4", Clip(smooth(1), 25))
    assert len(read_video(tmp_path / "a.mp4").frames) == 1
    assert probe(tmp_path / "a.mp4").frames == 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_start_stride_and_count(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_raw(path, numbered(30))
    assert numbers(read_video(path).frames) == list(range(30))
    clip = read_video(path, start=4, frames=5, stride=3)
    assert numbers(clip.frames) == [4, 7, 10, 13, 16]
    assert clip.fps == pytest.approx(25 / 3)
    assert numbers(read_video(path, start=27, frames=9).frames) == [27, 28, 29]  # fewer when the video ends
    assert numbers(read_video(path, start=29).frames) == [29]


def test_seeking_finds_the_same_frames(tmp_path):
    path = tmp_path / "a.mp4"
    write_raw(path, numbered(300))
    whole = read_video(path).frames
    assert len(whole) == 300
    for start in (60, 149, 250, 251, 299):
        assert torch.equal(read_video(path, start=start, frames=1).frames, whole[start : start + 1])


def test_a_variable_frame_rate_becomes_constant(tmp_path):
    """Twenty frames, 100 ms apart at first and 50 ms later: at each time of the grid, the frame that is on show."""
    times = [100 * k for k in range(10)] + [1000 + 50 * k for k in range(10)]
    path = tmp_path / "a.mkv"
    write_raw(path, numbered(20), times=times)
    clip, info = read_video(path), probe(path)
    assert info.fps == clip.fps
    assert len(clip.frames) == pytest.approx(info.frames, abs=1)
    on_show = [max(k for k in range(20) if times[k] <= 1000 * n / clip.fps + 30) for n in range(len(clip.frames))]
    assert all(abs(a - b) <= 1 for a, b in zip(numbers(clip.frames), on_show, strict=True))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_in_the_metadata_is_applied(tmp_path, turns):
    path = tmp_path / "phone.mp4"
    video = numbered(3)
    write_raw(path, video)
    rotate_in_metadata(path, turns)
    upright = torch.rot90(video, -turns, (2, 3))
    frames, info = read_video(path).frames, probe(path)
    assert (info.height, info.width) == tuple(upright.shape[-2:])
    assert frames.shape == upright.shape
    assert psnr(frames, upright) > 20


@pytest.mark.parametrize(
    "name, fmt, codec",
    [
        ("a.mkv", "yuv444p10le", "ffv1"),
        ("b.mkv", "gray", "ffv1"),
        ("c.mkv", "bgra", "ffv1"),
        ("d.mp4", "yuvj420p", "mjpeg"),
    ],
)
def test_pixel_formats(tmp_path, name, fmt, codec):
    video = smooth(2, 31, 45) if codec == "ffv1" else smooth(2)
    write_raw(tmp_path / name, video, fmt=fmt, codec=codec)
    frames = read_video(tmp_path / name).frames
    wanted = video if fmt != "gray" else frames.mean(1, keepdim=True).expand_as(frames)
    assert psnr(frames, wanted) > 30


def test_pixels_that_are_not_square(tmp_path):
    write_raw(tmp_path / "a.mp4", numbered(2), aspect=Fraction(4, 3))
    assert (probe(tmp_path / "a.mp4").height, probe(tmp_path / "a.mp4").width) == (48, 85)
    assert read_video(tmp_path / "a.mp4").frames.shape == (2, 3, 48, 85)


def test_long_sides_are_scaled_down(tmp_path):
    write_raw(tmp_path / "a.mp4", numbered(2, 96, 192))
    assert read_video(tmp_path / "a.mp4", max_side=64).frames.shape == (2, 3, 32, 64)


def tone_by_second(seconds=4):
    """Second k sounds at 400 (k + 1) Hz."""
    t = np.arange(48000 * seconds) / 48000
    return 0.5 * np.sin(2 * np.pi * 400 * (np.floor(t) + 1) * t)


def loudest(path):
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(sound))
    return np.argmax(spectrum) / len(sound) * 48000, len(sound) / 48000


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_is_cut_to_the_clip(tmp_path, suffix):
    source = tmp_path / f"a.{suffix}"
    write_raw(source, numbered(100), sound=tone_by_second())
    assert probe(source).has_audio
    for start, stride, frequency in ((0, 1, 400), (50, 1, 1200), (25, 2, 800), (80, 1, 1600)):
        clip = read_video(source, start=start, frames=20 // stride, stride=stride)
        write_video(tmp_path / "out.mp4", clip, audio_from=source, audio_start=start / 25)
        heard, seconds = loudest(tmp_path / "out.mp4")
        assert heard == pytest.approx(frequency, abs=5)
        assert seconds == pytest.approx(0.8, abs=0.05)
        assert probe(tmp_path / "out.mp4").has_audio
        assert len(read_video(tmp_path / "out.mp4").frames) == len(clip.frames)


@pytest.mark.parametrize(("pace", "frequencies"), [(0.5, (1200, 1200)), (2.0, (800, 1200))])
def test_sound_is_played_slower_and_faster_at_its_pitch(tmp_path, pace, frequencies):
    source = tmp_path / "a.mp4"
    write_raw(source, numbered(100), sound=tone_by_second())
    start = 2.1 if pace < 1 else 1.2
    write_video(tmp_path / "out.mp4", Clip(smooth(20), 25), audio_from=source, audio_start=start, audio_pace=pace)
    with av.open(str(tmp_path / "out.mp4")) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(sound) / 48000 == pytest.approx(0.8, abs=0.05)
    for part, frequency in zip((sound[:15000], sound[-15000:]), frequencies, strict=True):
        assert np.argmax(np.abs(np.fft.rfft(part))) / len(part) * 48000 == pytest.approx(frequency, abs=25)


def test_a_silent_source_or_a_span_without_sound(tmp_path):
    source = tmp_path / "a.mp4"
    write_raw(source, numbered(25))
    write_video(tmp_path / "out.mp4", Clip(smooth(), 25), audio_from=source)
    assert not probe(tmp_path / "out.mp4").has_audio
    write_raw(source, numbered(25), sound=tone_by_second(1))
    write_video(tmp_path / "out.mp4", Clip(smooth(), 25), audio_from=source, audio_start=1000)
    assert not probe(tmp_path / "out.mp4").has_audio


def test_files_that_are_no_videos(tmp_path):
    write_raw(tmp_path / "good.mp4", numbered(25), sound=tone_by_second(1))
    good = (tmp_path / "good.mp4").read_bytes()
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"hello, I am no video\n" * 50,
        "cut.mp4": good[: len(good) // 3],  # without the index at its end
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "picture.png": b"any name of an image",
        "list.mp4": b"ffconcat version 1.0\nfile good.mp4\n",
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        for function in (probe, read_video):
            with pytest.raises(InputError, match=name):
                function(tmp_path / name)
    for missing in (tmp_path / "missing.mp4", "https://example.com/a.mp4"):
        with pytest.raises(InputError, match="does not exist"):
            read_video(missing)


def test_a_folder_of_numbered_pictures_is_a_video(tmp_path):
    folder, blue = tmp_path / "frames", [10, 60, 110, 160]
    folder.mkdir()
    for number, value in zip((2, 9, 10, 11), blue, strict=True):
        Image.fromarray(np.full((20, 30, 3), (0, 0, value), np.uint8)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    info, clip = probe(folder), read_video(folder, start=1, frames=2, stride=2)
    assert (info.width, info.height, info.frames, info.fps, info.has_audio) == (30, 20, 4, 24, False)
    assert clip.fps == 12 and (clip.frames[:, 2, 0, 0] * 255).round().tolist() == [60, 160]
    assert read_video(folder, max_side=16).frames.shape == (4, 3, 11, 16)
    write_video(tmp_path / "out.mp4", clip, audio_from=folder)
    assert not probe(tmp_path / "out.mp4").has_audio
    with pytest.raises(InputError, match="start 4 is past the end of frames"):
        read_video(folder, start=4)
    (tmp_path / "none").mkdir()
    for function in (probe, read_video):
        with pytest.raises(InputError, match="holds no pictures"):
            function(tmp_path / "none")


def test_a_picture_named_as_a_video(tmp_path):
    image = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    image.save(str(tmp_path / "still.png"))
    (tmp_path / "still.png").rename(tmp_path / "still.mp4")
    with pytest.raises(InputError, match=r"still\.mp4"):
        read_video(tmp_path / "still.mp4")


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone_by_second(1)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    with pytest.raises(InputError, match="no pictures"):
        read_video(tmp_path / "song.mp4")


def test_damage_on_the_way_costs_only_some_frames(tmp_path):
    write_video(tmp_path / "a.mp4", Clip(numbered(60, 96, 128) + 0.05 * torch.rand(60, 3, 96, 128), 25))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert len(read_video(tmp_path / "cut.mp4").frames) >= 5
    start = data.index(b"mdat") + len(data) // 2
    data[start : start + 200] = bytes(200)
    (tmp_path / "hit.mp4").write_bytes(data)
    assert len(read_video(tmp_path / "hit.mp4").frames) >= 5


@pytest.mark.parametrize(
    "numbers",
    [
        *({"start": -1}, {"start": 0.5}, {"start": 10**12}, {"frames": 0}, {"frames": -3}, {"frames": True}),
        *({"stride": 0}, {"stride": math.nan}, {"max_side": 0}),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, numbers):
    write_raw(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(InputError, match=next(iter(numbers))):
        read_video(tmp_path / "a.mp4", **numbers)


@pytest.mark.parametrize("start", [5, 60, 100_000])
def test_start_past_the_end(tmp_path, start):
    write_raw(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(InputError, match=r"start .* past the end of a\.mp4"):
        read_video(tmp_path / "a.mp4", start=start)


def test_clips_that_cannot_be_written(tmp_path):
    for clip in (Clip(smooth()[:0], 25), Clip(smooth(), 0), Clip(smooth(), math.nan), Clip(smooth()[:, :1], 25)):
        with pytest.raises(InputError, match=r"a\.mp4"):
            write_video(tmp_path / "a.mp4", clip)
    with pytest.raises(InputError, match="audio start"):
        write_video(tmp_path / "a.mp4", Clip(smooth(), 25), audio_start=-1)
    with pytest.raises(InputError, match=r"gone\.mp4"):
        write_video(tmp_path / "a.mp4", Clip(smooth(), 25), audio_from=tmp_path / "gone.mp4")
    assert list(tmp_path.iterdir()) == []


def test_working_size():
    assert working_size(480, 832, pixels=128 * 208, multiple=16) in {(128, 224), (128, 208)}
    assert working_size(832, 480, pixels=480 * 832, multiple=16) == (832, 480)
    for height, width in [(1080, 1920), (1920, 1080), (333, 777), (500, 500), (90, 2000), (7, 5)]:
        h, w = working_size(height, width, pixels=128 * 208, multiple=16)
        assert h % 16 == w % 16 == 0
        assert 0.6 < h * w / (128 * 208) <= 1.1
        if max(height, width) < 3 * min(height, width):
            assert abs(math.log(h / w * width / height)) < 0.1
    assert working_size(480, 832, pixels=1, multiple=16) == (16, 16)
    with pytest.raises(InputError, match="width"):
        working_size(480, 0, pixels=1000, multiple=16)


def test_crop_to_aspect():
    u = torch.arange(200).float().expand(1, 3, 101, 200)
    clip = crop_to_aspect(Clip(u, 10), (50, 50))
    assert clip.frames.shape == (1, 3, 100, 100)
    assert clip.frames[0, 0, 0, 0] == 50  # centred
    assert crop_to_aspect(Clip(u, 10), (16, 64)).frames.shape == (1, 3, 50, 200)
    for size in [(1, 1000), (1000, 1)]:
        assert min(crop_to_aspect(Clip(u, 10), size).frames.shape[-2:]) == 2
    with pytest.raises(InputError, match="1x5"):
        crop_to_aspect(Clip(torch.rand(1, 3, 5, 1), 10), (16, 16))


def test_resize():
    video = torch.rand(2, 3, 40, 60)
    assert resize(video, (40, 60)) is video
    flat = torch.full((1, 1, 33, 47), 0.25)
    for mode in ("area", "bilinear", "bicubic", "nearest"):
        for size in [(10, 13), (50, 99), (1, 1)]:
            assert torch.allclose(resize(flat, size, mode=mode), torch.tensor(0.25))
    # Stripes finer than the new grid become grey, not moiré.
    stripes = (torch.arange(120) % 2).float().expand(1, 1, 8, 120)
    assert (resize(stripes, (8, 37))[..., 1:-1] - 0.5).abs().max() < 0.1
    # A ramp keeps its place: resizing scales coordinates about the image border.
    u = ((torch.arange(60) + 0.5) / 60).expand(1, 1, 4, 60)
    for size in (25, 30, 90):
        wanted = (torch.arange(size) + 0.5) / size
        assert (resize(u, (4, size))[0, 0, 0] - wanted)[3:-3].abs().max() < 1e-3
    labels = torch.randint(0, 5, (1, 1, 40, 60)).float()
    assert set(resize(labels, (13, 17), mode="nearest").unique().tolist()) <= set(range(5))


@pytest.mark.parametrize(("millimetres", "fov"), [("26", 71.9), ("0", None), ("wide", None), ("4000", None)])
def test_the_lens_that_a_phone_writes_gives_the_field_of_view(tmp_path, millimetres, fov):
    path = tmp_path / "phone.mov"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["com.apple.quicktime.camera.focal_length.35mm_equivalent"] = millimetres
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((36, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert probe(path).fov == (None if fov is None else pytest.approx(fov, abs=0.1))
    write_raw(tmp_path / "other.mp4", numbered(3))
    assert probe(tmp_path / "other.mp4").fov is None


@pytest.mark.parametrize("turn", [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)])
def test_a_mirrored_display_matrix(tmp_path, turn):
    """Front cameras mirror: swapped, across, down as in `colour.turned`."""
    swapped, across, down = turn
    write_raw(tmp_path / "a.mp4", numbered(3, 48, 64))
    plain = read_video(tmp_path / "a.mp4").frames
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    x, y = (-1) ** across << 16, (-1) ** down << 16
    data[at : at + 36] = struct.pack(">9i", *((0, y, 0, x, 0) if swapped else (x, 0, 0, 0, y)), 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    wanted = plain.transpose(-1, -2) if swapped else plain
    wanted = wanted.flip([dim for dim, flip in ((-1, across), (-2, down)) if flip])
    assert torch.equal(read_video(tmp_path / "a.mp4").frames, wanted)


def scene():
    """Patches as a display shows them, H W 3 in [0, 1], and their light relative to white (BT.1886)."""
    patches = np.array([(200, 60, 40), (60, 160, 60), (50, 80, 190), (128,) * 3, (230,) * 3, (30,) * 3]) / 255
    shown = np.repeat(np.repeat(patches[None], 16, 1), 16, 0)
    return shown, shown**2.4


def as_pq(light):
    y = (light * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def as_hlg(light):
    light = light * 203 / 1000
    scene = light * (light @ np.array([0.2627, 0.6780, 0.0593]))[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


@pytest.mark.parametrize("transfer, encode", [(16, as_pq), (18, as_hlg)])
def test_hdr_becomes_what_a_screen_shows(tmp_path, transfer, encode):
    """A scene put into HDR as BT.2408 says, with white at 203 cd/m2, comes out as that scene."""
    shown, light = scene()
    wide = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    signal = (encode(light @ wide.T).clip(0, 1) * 65535).round().astype(np.uint16)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], "gbrp16le"
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, transfer
        frame = av.VideoFrame.from_ndarray(signal, format="rgb48le").reformat(format="gbrp16le")
        for _ in range(3):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    read = read_video(tmp_path / "a.mkv").frames[0].permute(1, 2, 0).numpy()
    assert np.abs(read - shown)[:, 4::16].max() * 255 <= 3
    assert any("HDR" in note for note in probe(tmp_path / "a.mkv").notes)


def test_highlights_of_hdr_keep_their_order():
    from pipeline.media.colour import to_sdr

    light = np.array([0.5, 0.78, 1, 1.5, 2, 3, 4.5])
    signal = (as_pq(light) * 65535).round().astype(np.uint16)
    seen = to_sdr(np.repeat(signal[None, :, None], 3, 2), 16)[0, :, 0]
    assert (np.diff(seen.astype(int)) > 0).all() and 240 <= seen[2] < 255


def test_interlaced_fields_become_whole_pictures(tmp_path):
    """A bar that moves three pixels a field, top field first."""
    fields = torch.full((40, 3, 96, 160), 0.25)
    for k in range(40):
        fields[k, :, :, 10 + 3 * k : 22 + 3 * k] = 0.85
    woven = fields[::2].clone()
    woven[:, :, 1::2] = fields[1::2, :, 1::2]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        options = {"crf": "8", "x264opts": "tff=1", "flags": "+ilme+ildct"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for image in woven:
            data = (image.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(data, format="rgb24")))
        container.mux(stream.encode())
    clip = read_video(tmp_path / "a.mp4")
    assert len(clip.frames) == 20
    x = clip.frames[1, 0] * 255
    assert (2 * x[2:-2] - x[1:-3] - x[3:-1]).abs().mean() < 2
    assert any("interlaced" in note for note in probe(tmp_path / "a.mp4").notes)


@pytest.mark.parametrize(
    "suffix, codec, fmt",
    [("mov", "qtrle", "argb"), ("mov", "prores_ks", "yuva444p10le"), ("webm", "libvpx-vp9", "yuva420p")],
)
def test_transparency_never_shows_the_hidden_colour(tmp_path, suffix, codec, fmt):
    path = tmp_path / f"a.{suffix}"
    picture = np.full((48, 64, 4), (200, 60, 40, 255), np.uint8)
    picture[:, :32] = (0, 255, 0, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, fmt
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=fmt)))
        container.mux(stream.encode())
    frames = read_video(path).frames * 255
    assert (frames[:, :, :, 4:28] - 127.5).abs().max() <= 4
    assert (frames[0, :, 24, 50] - torch.tensor([200.0, 60, 40])).abs().max() <= 12
    assert any("transparent" in note for note in probe(path).notes)
    cut = read_video(path, mask=True).frames
    assert cut[..., 4:28].max() < 0.05 and cut[..., 36:60].min() > 0.95


def test_the_stream_that_is_marked_is_taken(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size in ((36, 64), (48, 96)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            streams.append(stream)
        streams[0].disposition = 0
        streams[1].disposition = Disposition.default.value
        for _ in range(3):
            for stream in streams:
                image = np.zeros((stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert read_video(path).frames.shape == (3, 3, 48, 96)


def test_pictures_of_16_bits_and_with_transparency(tmp_path):
    grey = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(48, 0)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    for name in ("grey.png", "grey.tif"):
        assert (read_picture(tmp_path / name)[0, 0] - torch.linspace(0, 1, 64)).abs().max() < 0.004
    rgba = np.full((48, 64, 4), (0, 255, 0, 0), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert (read_picture(tmp_path / "rgba.png") - 0.5).abs().max() < 0.01


def test_a_film_that_is_cut_off_loses_no_whole_frame(tmp_path):
    """B-frames wait in the decoder, and its threads, for what comes after them."""
    path, found = tmp_path / "a.mp4", []
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "b-pyramid": "normal"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in (255 * numbered(16)).byte().permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
        packets = [(p.pos, p.size, round(p.pts * unit * 25)) for p in container.demux(video=0) if p.size]
    for (at, size, _), before in zip(packets[6:], range(6, len(packets)), strict=False):
        (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[: at + size // 2])
        found = numbers(read_video(tmp_path / "cut.mp4").frames)
        assert set(found) == {number for *_, number in packets[:before]}, before


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path / "folder")
    with pytest.raises(InputError, match="holds no pictures"):
        read_video(tmp_path / "folder")
