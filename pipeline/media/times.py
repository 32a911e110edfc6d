"""When each frame of a video is shown, and the uniform grid of times that this makes.

A container's header says little that can be relied on: live recordings have no duration, the average rate of a screen
recording is a tenth of its nominal one, sound may last longer than the picture, time may start over. What counts are
the time stamps of the packets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

MAX_RATE = 1000.0  # Hz; containers with broken time bases claim 90000
UNKNOWN_RATE = 25.0  # of a video of one frame
PICTURES_RATE = 24.0  # frames per second of pictures, which say nothing of it; DAVIS was filmed so
_STANDARD = [24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 90, 100, 120, 240]
_ALIKE = 1.2  # intervals up to this factor above the shortest are the same one with jitter
_COMMON = 0.1  # share of the intervals that must be alike to set the rate


@dataclass(frozen=True, eq=False)
class Times:
    """seconds: N, from the first frame on, ascending; origin: what the container calls the first one's, in seconds.

    slots: N, the place of each frame on the uniform grid of `fps`, strictly ascending but for frames that share one,
    which are dropped (-1). total: places of the grid, the last frame's stay included. by_order: the stamps can't be
    matched with decoded frames, whose order counts instead.
    """

    seconds: np.ndarray
    origin: float
    slots: np.ndarray
    fps: float
    total: int
    by_order: bool

    def index_of(self, time: float | None, after: int) -> int:
        """Which frame was decoded: its time as the container says, the index of the one before (-1: none)."""
        if self.by_order or time is None:
            return after + 1
        at = int(np.abs(self.seconds - (time - self.origin)).argmin())
        return at if at > after else after + 1


def times_of(
    packets: Iterable[tuple[int | None, int | None, int]], unit: Fraction, declared: Iterable[float], reorders: bool
) -> Times | None:
    """packets: (presentation stamp, decoding stamp, duration) of all that can be decoded, in the order of the file.

    unit: seconds of a stamp. declared: rates in Hz that the container claims. reorders: the decoder may show frames in
    another order than that of the file. None where there are no packets.
    """
    found = list(packets)
    if not found:
        return None
    stamps, by_order = _unwrapped(found)
    ascending = all(later > earlier for earlier, later in pairwise(stamps))
    # A decoder that reorders must get stamps that are not ascending: then they are those of decoding (AVI).
    by_order |= reorders and ascending and len(stamps) > 1
    stamps.sort()
    seconds = np.array(stamps, np.float64) * float(unit)
    origin = seconds[0]
    seconds = seconds - origin
    fps, slots = _grid(seconds, [rate for rate in declared if 0 < rate <= MAX_RATE])
    stay = found[-1][2] * float(unit)  # the last frame stays on show for its own duration
    hold = min(max(1, round(stay * fps)), max(1, int(np.ceil(fps))))
    return Times(seconds, float(origin), slots, fps, int(slots.max()) + hold, by_order)


def _unwrapped(found: list[tuple[int | None, int | None, int]]) -> tuple[list[int], bool]:
    """Stamps that go on where time starts over, and whether they can be matched with decoded frames no more."""
    stamps: list[int] = []
    shift, begun, latest, lost = 0, 0, None, False
    for pts, dts, duration in found:
        if dts is not None and latest is not None and dts < latest:
            # Appended files: what comes now follows on the latest frame so far.
            tail = stamps[begun:]
            steps = np.diff(np.sort(tail))
            step = int(np.median(steps)) if len(steps) else max(1, duration)
            shift = max(stamps) + max(1, step) - (pts if pts is not None else dts)
            begun, lost = len(stamps), True
        if dts is not None:
            latest = dts
        stamp = pts if pts is not None else dts
        if stamp is None:
            stamp, lost = (max(stamps) if stamps else -shift) + max(1, duration) - shift, True
        stamps.append(stamp + shift)
    if len(set(stamps)) < len(stamps):
        lost = True
    return stamps, lost


def _grid(seconds: np.ndarray, declared: list[float]) -> tuple[float, np.ndarray]:
    """The rate, and the slot of each frame."""
    count = len(seconds)
    if count < 2 or seconds[-1] <= 0:
        return (declared or [UNKNOWN_RATE])[0], np.arange(count)
    average = (count - 1) / seconds[-1]
    for rate in (*declared, _standard(average)):
        slots = np.floor(seconds * rate + 0.5).astype(np.int64)
        # A constant rate, perhaps with jitter: each frame has a slot of its own, each slot a frame.
        if 0 < rate <= MAX_RATE and (np.diff(slots) > 0).all() and slots[-1] <= count * 1.001:
            return rate, slots
    steps = np.sort(np.diff(seconds))
    steps = steps[steps > 0.9 / MAX_RATE]
    if not len(steps):
        return (declared or [UNKNOWN_RATE])[0], np.arange(count)
    alike = np.searchsorted(steps, steps * _ALIKE, side="right") - np.arange(len(steps))
    enough = min(max(2, _COMMON * len(steps)), alike.max())
    first = int(np.argmax(alike >= enough))
    rate = _standard(1 / float(steps[first : first + alike[first]].mean()))
    return rate, _own_slots(seconds * rate)


def _standard(rate: float) -> float:
    """The standard rate that is meant: stamps in milliseconds make 30 Hz to 30.3."""
    nearest = min(_STANDARD, key=lambda known: abs(known - rate))
    return nearest if abs(nearest - rate) <= 0.002 * rate else rate


def _own_slots(at: np.ndarray) -> np.ndarray:
    """Rounded positions; a frame whose slot is taken gets the next one if that is less than one slot away, else -1."""
    slots, last = np.full(len(at), -1, np.int64), -1
    for index, position in enumerate(at):
        slot = max(int(np.floor(position + 0.5)), last + 1)
        if slot - position < 1:
            slots[index] = last = slot
    return slots
