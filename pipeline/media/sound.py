"""The sound of visitors' files to samples. This runs in a process of its own (see `child`), without PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph

from pipeline.media.child import Message
from pipeline.media.decode import chosen, decoded, open_container, times_in

RATE = 48000  # Hz
# PyAV 17.1 to 18.1 free a channel order of the file's own (dual mono, 7.1 of QuickTime) twice: with a frame and with
# its layout. What is never freed does no harm, and the process ends with the file.
_KEPT: list[Any] = []


def read_sound(path: Path, start: float, duration: float, pace: float = 1.0) -> Iterator[Message]:
    """Stereo samples (2, n) float32 at `RATE` of a span counted from the first picture; no array for a silent file.

    start, duration: seconds, the latter of what is returned. pace: how many times as fast the span is played.
    """
    with open_container(path) as container:
        stream = chosen(container.streams.audio)
        if stream is None:
            yield {}, []
            return
        pictures = chosen(container.streams.video)
        times = times_in(container, pictures) if pictures is not None else None
        sound = _samples(container, stream, start + (times.origin if times else 0.0), duration * pace)
        if sound is not None and pace != 1:
            sound = _at_pace(sound, pace, round(duration * RATE))
        yield {}, [sound] if sound is not None else []


def _samples(container: Any, stream: Any, start: float, duration: float) -> np.ndarray | None:
    sound = np.zeros((2, round(duration * RATE)), np.float32)
    resampler = av.AudioResampler("fltp", "stereo", RATE)
    at = None  # where the next sample goes, in samples from `start`
    heard = False
    for frame in _from(container, stream, start - 1):
        _KEPT.append((frame, frame.layout))
        stamp = at if frame.time is None else round((frame.time - start) * RATE)
        # Time stamps jitter by a sample or so; only a real gap may break the stream of samples.
        if stamp is not None and (at is None or abs(stamp - at) > RATE // 50):
            at = stamp
        at = at or 0
        if at >= sound.shape[1]:
            break
        frame.pts = None
        for part in resampler.resample(frame):
            samples = part.to_ndarray()
            first, last = max(0, -at), min(samples.shape[1], sound.shape[1] - at)
            if last > first:
                sound[:, at + first : at + last] = samples[:, first:last]
                heard = True
            at += samples.shape[1]
    # Many channels may add up to more than a player can play.
    return sound / max(1.0, float(np.abs(sound).max(initial=0))) if heard else None


def _at_pace(sound: np.ndarray, pace: float, samples: int) -> np.ndarray:
    """Played `pace` times as fast at the same pitch, by FFmpeg's atempo, and cut or filled with silence to a length."""
    graph = Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="fltp", layout="stereo", time_base=Fraction(1, RATE))
    tempo = graph.add("atempo", str(pace))
    planar = graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo")
    for one, next_one in pairwise([source, tempo, planar, graph.add("abuffersink")]):
        one.link_to(next_one)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts = RATE, 0
    graph.push(frame)
    graph.push(None)
    parts = []
    with contextlib.suppress(EOFError, BlockingIOError):
        while True:
            parts.append(graph.pull().to_ndarray())
    played = np.concatenate(parts, 1) if parts else np.zeros((2, 0), np.float32)
    return np.pad(played, ((0, 0), (0, max(0, samples - played.shape[1]))))[:, :samples]


def _from(container: Any, stream: Any, time: float) -> Iterator[Any]:
    """Frames from a place before `time` seconds on, or from the beginning if the file has no good index."""
    if time > 2:  # near the beginning, decoding on is as fast as seeking
        with contextlib.suppress(FFmpegError):
            container.seek(int(time * av.time_base), backward=True)
            frames = decoded(container, stream)
            first = next(frames, None)
            if first is not None and first.time is not None and first.time <= time:
                yield first
                yield from frames
                return
    with contextlib.suppress(FFmpegError):
        container.seek(0)
    yield from decoded(container, stream)
