"""Long work that may be stopped: its loops ask, so that a Stop acts within a second and not at the next event.

Who runs the work says with `stoppable` how to tell. Loops that may go on for more than a second call `check`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """Nobody waits for this work any more. Not an Exception: what mends faults has nothing to mend here."""


_asked: ContextVar[Callable[[], bool]] = ContextVar("asked")


@contextmanager
def stoppable(stopped: Callable[[], bool]) -> Iterator[None]:
    """Inside, in this thread, `check` raises `Stopped` once `stopped` says so."""
    token = _asked.set(stopped)
    try:
        yield
    finally:
        _asked.reset(token)


def checker() -> Callable[[], None]:
    """`check`, for threads that this one starts."""
    stopped = _asked.get(None)

    def ask() -> None:
        if stopped is not None and stopped():
            raise Stopped

    return ask


def check() -> None:
    """Raises `Stopped` if the work was stopped; does nothing where nobody can stop it."""
    stopped = _asked.get(None)
    if stopped is not None and stopped():
        raise Stopped


def checked(items: Iterable[T]) -> Iterator[T]:
    """The same items, with a `check` before each."""
    for item in items:
        check()
        yield item


def aside(work: Callable[[], T]) -> T:
    """What `work` returns or raises. A Stop leaves it to itself: for what cannot ask and harms nobody, as an import."""
    if _asked.get(None) is None:
        return work()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not outcome.done():
        check()
        wait([outcome], timeout=0.1)
    return outcome.result()


def check_in(module: Any) -> None:
    """Let each part of a PyTorch module, and of what is in it, `check` before it computes."""
    for part in module.modules():
        part.register_forward_pre_hook(lambda *_: check())
