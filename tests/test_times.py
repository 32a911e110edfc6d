"""The uniform grid of times of files as people have them."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image
from test_video import numbered, numbers, tone_by_second, write_raw

from pipeline.media.times import times_of
from pipeline.media.video import probe, read_video

MS = Fraction(1, 1000)


def grid(milliseconds, declared=(), last=40):
    packets = [(int(t), int(t), last) for t in milliseconds]
    return times_of(packets, MS, declared, False)


@pytest.mark.parametrize("rate", [24000 / 1001, 24, 25, 30000 / 1001, 30, 50, 60])
def test_a_constant_rate_in_coarse_stamps(rate):
    times = grid(np.round(np.arange(200) * 1000 / rate), last=round(1000 / rate))
    assert times.fps == pytest.approx(rate, rel=2e-3)
    assert times.slots.tolist() == list(range(200))
    assert times.total == 200


def test_what_the_container_claims_is_taken_where_it_is_true():
    stamps = np.round(np.arange(100) * 1000 / 30)
    assert grid(stamps, [30.0]).fps == 30
    assert grid(stamps, [5.0, 30.0]).fps == 30
    assert grid(stamps, [90000.0, 1.0]).fps == pytest.approx(30, rel=2e-3)


def test_jitter_is_no_variable_rate():
    jitter = np.random.default_rng(0).uniform(-12, 12, 300)
    times = grid(np.sort(np.arange(300) * 1000 / 30 + jitter), [29.97, 30.0])
    assert times.fps == pytest.approx(30, rel=2e-3)
    assert (times.slots >= 0).all() and len(set(times.slots.tolist())) == 300


def test_the_shortest_common_interval_counts():
    screen = [17 * k for k in range(60)] + [12000, 12017, 12034]
    times = grid(screen, [63 / 12.05])
    assert times.fps == pytest.approx(1000 / 17, rel=1e-3)
    assert len(set(times.slots.tolist())) == 63
    phone = [k * 1000 / 30 for k in range(20)] + [20 * 1000 / 30 + k * 1000 / 24 for k in range(20)]
    assert len(set(grid(phone, [26.7]).slots.tolist())) == 40


def test_one_glitch_does_not_set_the_rate():
    times = grid([*range(0, 4000, 40), 4001], [25.0])
    assert times.fps == 25


def test_a_taken_slot_gives_the_next_one():
    """Two frames that round to one slot, of which the next is free."""
    times = grid([0, 40, 80, 121, 139, 200, 240, 280, 320, 360, 1000], [11.0])
    assert times.fps == pytest.approx(25, rel=0.05)
    assert (times.slots >= 0).all() and (np.diff(times.slots) > 0).all()


def test_time_that_starts_over_goes_on():
    packets = [(1000 + 40 * k, 1000 + 40 * k, 40) for k in range(10)] * 2
    times = times_of(packets, MS, [25.0], False)
    assert times.by_order and times.total == 20 and times.seconds[-1] == pytest.approx(0.76)


def test_stamps_of_decoding_are_no_stamps_of_showing():
    packets = [(2 * k + 2, 2 * k, 1) for k in range(10)]
    times = times_of(packets, Fraction(1, 50), [50.0, 25.0], True)
    assert times.by_order and times.fps == 25 and times.total == 10
    assert [times.index_of(0.16, after) for after in (-1, 0, 1)] == [0, 1, 2]


def test_without_any_stamps():
    times = times_of([(None, None, 40)] * 5, MS, [25.0], False)
    assert times.total == 5 and times.by_order


def test_a_sound_track_longer_than_the_picture(tmp_path):
    write_raw(tmp_path / "a.mkv", numbered(20), sound=tone_by_second(6))
    assert probe(tmp_path / "a.mkv").frames == 20
    assert len(read_video(tmp_path / "a.mkv").frames) == 20


def test_a_file_that_begins_at_an_hour(tmp_path):
    write_raw(tmp_path / "a.mkv", numbered(20), times=[3_600_000 + 40 * k for k in range(20)])
    assert probe(tmp_path / "a.mkv").frames == pytest.approx(20, abs=1)
    assert numbers(read_video(tmp_path / "a.mkv").frames)[:20] == list(range(20))


def test_a_live_recording_has_no_duration(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in numbered(20):
            data = (image.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(data, format="rgb24")))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.webm").frames == 20


def test_appended_files(tmp_path):
    parts = []
    for first in (0, 10):
        write_raw(tmp_path / "part.ts", numbered(20)[first : first + 10])
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    assert numbers(read_video(tmp_path / "a.ts").frames) == list(range(20))
    assert probe(tmp_path / "a.ts").frames == 20


def test_b_frames_in_avi(tmp_path):
    """AVI has no stamps of showing: the order in which the decoder shows frames is right."""
    write_raw(tmp_path / "a.mp4", numbered(25))
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "a.avi"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 25)
        annexb = BitStreamFilterContext("h264_mp4toannexb", source.streams.video[0])
        packets = [done for packet in source.demux(video=0) for done in annexb.filter(packet if packet.size else None)]
        for n, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = n
            target.mux(packet)
    clip = read_video(tmp_path / "a.avi")
    assert numbers(clip.frames) == list(range(25))
    assert clip.fps == pytest.approx(25)


def test_packed_b_frames_of_divx(tmp_path):
    """A packet holds a picture and the one that is shown before it. A file may end without what should follow."""
    begin = b"\x00\x00\x01\xb6"
    for name in ("whole.avi", "cut.avi"):
        with av.open(str(tmp_path / name), "w") as target:
            options = {"bf": "1", "g": "100", "q": "2", "sc_threshold": "1000000000"}
            stream = target.add_stream("mpeg4", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            pictures = (numbered(9).permute(0, 2, 3, 1) * 255).round().byte().numpy()
            frames = [av.VideoFrame.from_ndarray(picture, "rgb24") for picture in pictures]
            coded = [bytes(packet) for frame in (*frames, None) for packet in stream.encode(frame)]
            assert [data[data.index(begin) + 4] >> 6 for data in coded] == [0, *[1, 2] * 4]  # I P B P B P B P B
            packets = [coded[0].replace(begin, b"\x00\x00\x01\xb2DivX503b1393p" + begin, 1)]
            for reference, between in zip(coded[1::2], coded[2::2], strict=True):
                packets += [reference + between, begin + b"\x50\x7f"]
            for n, data in enumerate(packets[: -1 if name == "cut.avi" else None]):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), n, n
                packet.is_keyframe = n == 0
                target.mux(packet)
        assert probe(tmp_path / name).frames == 9, name
        assert numbers(read_video(tmp_path / name).frames) == list(range(9)), name


def animated(path, durations, **more):
    images = [Image.fromarray(np.full((48, 64, 3), 40 + 12 * k, np.uint8)) for k in range(len(durations))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, **more)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animated_pictures_with_uneven_delays(tmp_path, name):
    durations = [40] * 5 + [400] + [40] * 4
    animated(tmp_path / name, durations, **({"lossless": True} if name == "a.webp" else {}))
    info, clip = probe(tmp_path / name), read_video(tmp_path / name)
    assert info.fps == clip.fps == pytest.approx(25)
    assert info.frames == len(clip.frames) == 19
    levels = [round(float(frame.mean()) * 255 / 12 - 40 / 12) for frame in clip.frames]
    assert levels == [0, 1, 2, 3, 4, *[5] * 10, 6, 7, 8, 9]
    seen = read_video(tmp_path / name, start=15, frames=2).frames
    assert [round(float(frame.mean()) * 255 / 12 - 40 / 12) for frame in seen] == [6, 7]
