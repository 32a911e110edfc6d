"""A file that ends the process that decodes it costs nothing but itself."""

import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from test_video import numbered, write_raw

from pipeline import InputError
from pipeline.media import child
from pipeline.media.video import probe, read_video, write_video

ROOT = Path(__file__).parents[1]


def helper() -> int:
    """The process that forks those that decode. It is this process's only child that serves."""
    children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    (found,) = [int(pid) for pid in children if b"child.serve()" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def workers() -> list[int]:
    pid = helper()
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def options(**more):
    return {"start": 0, "count": None, "stride": 1, "max_side": 1920, "mask": False} | more


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mkv"
    write_raw(path, numbered(60, 480, 640))
    return path


def test_a_process_that_dies_costs_only_its_own_file(clip):
    other = child.stream("read_frames", clip, **options())
    next(other)
    before = workers()
    messages = child.stream("read_frames", clip, **options())
    next(messages)
    (worker,) = set(workers()) - set(before)
    os.kill(worker, signal.SIGABRT)
    with pytest.raises(InputError, match=r"clip\.mkv ended the program that decodes it"):
        list(messages)
    assert len(list(other)) == 60
    assert len(read_video(clip, frames=3).frames) == 3


def test_the_helper_starts_again(clip):
    probe(clip)
    before = helper()
    os.kill(before, signal.SIGKILL)
    until = time.monotonic() + 5
    while b"Z" not in Path(f"/proc/{before}/stat").read_bytes().rpartition(b")")[2] and time.monotonic() < until:
        time.sleep(0.02)
    assert probe(clip).frames == 60 and helper() != before


def test_what_takes_too_long_is_ended(tmp_path):
    os.mkfifo(tmp_path / "endless.png")  # opening it waits for a writer
    with pytest.raises(InputError, match=r"endless\.png takes longer than 1 seconds"):
        child.run("read_colours", tmp_path / "endless.png", seconds=1)


def test_what_takes_too_much_memory_is_ended(tmp_path, monkeypatch):
    """A GIF of a few bytes that declares 12,000 x 12,000 pixels is refused before they are made."""
    header = b"GIF89a" + (12000).to_bytes(2, "little") * 2 + b"\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"," + bytes(4) + (12000).to_bytes(2, "little") * 2 + b"\0\x02\x02\x44\x01\0;"
    (tmp_path / "bomb.gif").write_bytes(header + frame)
    for read in (probe, read_video):
        with pytest.raises(InputError, match=r"bomb\.gif has 12000x12000 pixels"):
            read(tmp_path / "bomb.gif")


def test_nothing_is_left_when_the_caller_stops(clip):
    messages = child.stream("read_frames", clip, **options())
    next(messages)
    assert workers()
    messages.close()
    until = time.monotonic() + 5
    while workers() and time.monotonic() < until:
        time.sleep(0.02)
    assert not workers()


def test_sound_of_a_channel_order_of_its_own(tmp_path):
    """7.1 in QuickTime: some versions of PyAV free its layout twice, which ends their process."""
    path = tmp_path / "many.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=48000, layout="7.1")
        for _ in range(25):
            image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(image))
        container.mux(video.encode())
        tone = np.sin(np.arange(48000) * 0.1) * 8000
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, 8)[None].astype(np.int16), format="s16", layout="7.1")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    info = probe(path)
    write_video(tmp_path / "out.mp4", read_video(path), audio_from=path if info.has_audio else None)
    assert probe(tmp_path / "out.mp4").frames == 25
    assert info.has_audio == probe(tmp_path / "out.mp4").has_audio or info.notes


def test_without_forks(clip):
    """As on Windows, where there are none."""
    (clip.parent / "a.png").write_bytes(b"no picture")
    code = f"""
import os
del os.fork
from pipeline import InputError
from pipeline.media import child
frames = child.stream("read_frames", {str(clip)!r}, **{options(start=5, count=3)})
print([round(image[0][240:, 320:].mean() / 255 * 32) for _, image in frames if image])
try:
    child.run("read_colours", {str(clip.parent / "a.png")!r})
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("[5, 6, 7]\n") and "a.png is not a picture" in done.stdout


def test_a_forked_copy_of_the_server_reads_too(clip):
    """As the workers of a shared GPU are; the helper of the server stays the server's."""
    code = f"""
import os
from pipeline.media import child
assert child.run("probe_video", {str(clip)!r})[0]["frames"] == 60
if os.fork() == 0:
    os._exit(0 if child.run("probe_video", {str(clip)!r})[0]["frames"] == 60 else 1)
assert os.wait()[1] == 0
assert child.run("probe_video", {str(clip)!r})[0]["frames"] == 60
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_the_process_never_loads_pytorch():
    modules = ", ".join(sorted(set(child.TASKS.values())))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("text", [b"", b"\0\0\0\x02[]", b"\xff\xff\xff\xff", b'\0\0\0\x0f[{},[["O",[1]]]]'])
def test_what_is_no_message_is_data_at_most(text):
    with pytest.raises((EOFError, ValueError)):
        child.receive(BytesIO(text))
