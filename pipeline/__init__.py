"""Re-capture a video: depth, warp, latent mask, data consistency inside flow-matching sampling."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the input and the remedy."""


def result_of(events: Generator[Any, Any, T], each: Callable[[Any], Any] | None = None) -> T:
    """What a generator returns once it has yielded everything. each: is called with what it yields on the way."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        if each is not None:
            each(event)


def relayed(events: Generator[A, Any, T], say: Callable[[A], B]) -> Generator[B, None, T]:
    """The same generator, with what it yields on the way in other words."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        yield say(event)
