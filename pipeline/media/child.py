"""Files of visitors are read and written in processes that may die.

FFmpeg, Pillow, OpenCV and OpenEXR are native code: a damaged file can end the process that decodes it, or take all its
memory. So a small helper process, which has these libraries loaded and never PyTorch, forks one process for each file.
That costs milliseconds, has limits of time and memory, and ends when the caller goes away. Messages between them are
JSON and raw arrays, never pickles, so that what comes from such a process can only be data. Where processes cannot be
forked (Windows), each file gets a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import InputError
from pipeline.stop import check

Message = tuple[dict[str, Any], list[np.ndarray]]
Task = Callable[..., Iterator[Message]]  # called with the options of the job, and `sent` where the caller sends arrays

TASKS = {  # by name: the module that holds the function of that name; none of them imports PyTorch
    "probe_video": "pipeline.media.decode",
    "read_frames": "pipeline.media.decode",
    "read_sound": "pipeline.media.sound",
    "write_frames": "pipeline.media.encode",
    "read_colours": "pipeline.media.pictures",
    "read_levels": "pipeline.media.pictures",
    "pages_of": "pipeline.media.pictures",
    "read_paint": "pipeline.media.pictures",
    "read_depth_picture": "pipeline.media.pictures",
}
SECONDS = 600.0  # that one file may take
BYTES = 4 * 2**30  # that the process of one file may take beyond what the libraries take
_ASKED_EVERY = 0.2  # seconds, in which whoever waits for a process asks whether it was stopped
_MAX_MESSAGE = 1 << 22  # bytes of JSON
_MAX_ARRAY = 1 << 32  # bytes
_FORKS = hasattr(os, "fork") and hasattr(socket, "send_fds")


def run(task: str, path: str | os.PathLike, *, seconds: float | None = SECONDS, **options: Any) -> Message:
    """The only message of a task, see `stream`."""
    found = None
    for message in stream(task, path, seconds=seconds, **options):
        found = message
    if found is None:
        raise InputError(f"{Path(path).name} cannot be read: it is damaged. Export or save it again.")
    return found


def stream(
    task: str,
    path: str | os.PathLike,
    *,
    seconds: float | None = SECONDS,
    arrays: Iterable[np.ndarray] | None = None,
    **options: Any,
) -> Generator[Message, None, None]:
    """The messages of one of `TASKS` on a file, each a dictionary and arrays, as they come.

    seconds: that it may take; None for a file of our own, which has no limits. arrays: what is sent to the task, one
    after the other. Closing the generator ends the process. Raises `InputError`, which names the file, for whatever
    goes wrong with it there, and OSError where a file of our own cannot be written.
    """
    name = Path(path).name or str(path)
    begun = time.monotonic()
    job = {
        "task": task,
        "path": os.path.abspath(path),
        "seconds": seconds,
        "options": options,
        "sends": arrays is not None,
    }
    with _opened() as (incoming, outgoing):
        try:
            _send(outgoing, (job, []))
            for array in arrays or ():
                _send(outgoing, ({}, [array]))
            if arrays is not None:
                _send(outgoing, ({"end": True}, []))
            while True:
                message = receive(incoming)
                if "refused" in message[0]:
                    raise InputError(str(message[0]["refused"]))
                if "errno" in message[0]:
                    raise _Unwritten(int(message[0]["errno"]), os.strerror(int(message[0]["errno"])))
                if "fault" in message[0]:
                    raise InputError(f"{name} cannot be read: it is damaged. Export or save it again.")
                if message[0].get("end"):
                    return
                yield message
        except (EOFError, OSError, ValueError, TypeError) as error:
            if isinstance(error, (InputError, _Unwritten)):
                raise
            if seconds and time.monotonic() - begun >= seconds:
                raise Died(
                    f"{name} takes longer than {seconds:.0f} seconds to be read: give a shorter or smaller one."
                ) from error
            raise Died(
                f"{name} ended the program that decodes it, so that it cannot be used: convert it to a plain MP4 "
                "(H.264, stereo sound) or PNG first. Nothing else was lost."
            ) from error


class Died(InputError):
    """The process of a file came to an end that it did not choose."""


class _Unwritten(OSError):
    """What kept the other process from writing."""


# --- the caller's side ------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_helper: tuple[socket.socket, subprocess.Popen] | None = None


def _command(mode: str) -> dict[str, Any]:
    """Arguments of Popen. The current folder is kept off the path of modules: it may be anyone's."""
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path[0] = {root!r}; from pipeline.media import child; child.{mode}()"
    # One process decodes one file: threads of the linear algebra would only take memory.
    return {"args": [sys.executable, "-c", code], "env": os.environ | {"OPENBLAS_NUM_THREADS": "1"}}


def _ask_for_process() -> socket.socket:
    """A socket to a process that was just forked for it."""
    global _helper
    ours, theirs = socket.socketpair()
    with theirs, _lock:
        for _ in range(3):
            if _helper is None or _helper[1].poll() is not None:
                control, end = socket.socketpair()
                with end:
                    process = subprocess.Popen(**_command("serve"), stdin=end.fileno(), stdout=subprocess.DEVNULL)
                _helper = control, process
            try:
                socket.send_fds(_helper[0], [b"+"], [theirs.fileno()])
                return ours
            except OSError:  # it was ended
                _stop()
    ours.close()
    raise RuntimeError("the process that reads media cannot be started")


def _stop() -> None:
    global _helper
    if _helper is not None:
        control, process = _helper
        _helper = None
        control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def _forget() -> None:
    """In a forked copy of this process: the helper is the other's, and nobody will release the lock."""
    global _lock, _helper
    _lock = threading.Lock()
    if _helper is not None:
        _helper[1].returncode = 0  # not a child of this process: nothing to wait for
        _helper[0].close()
        _helper = None


atexit.register(_stop)
if _FORKS:
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Any, Any]]:
    if _FORKS:
        with _ask_for_process() as connection:
            connection.settimeout(_ASKED_EVERY)
            line = _Line(connection)
            try:
                yield line, line
            finally:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        return
    process = subprocess.Popen(**_command("serve_one"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout, process.stdin
    finally:
        process.kill()
        process.communicate()


class _Line:
    """A connection as a file, for a caller who may be stopped while it waits."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def readinto(self, view: Any) -> int:
        while True:
            check()
            with contextlib.suppress(TimeoutError):
                return self._connection.recv_into(view)

    def read(self, count: int) -> bytes:
        data, at = bytearray(count), 0
        while at < count and (got := self.readinto(memoryview(data)[at:])):
            at += got
        return bytes(data[:at])

    def write(self, data: Any) -> None:
        left = memoryview(data)
        while len(left):
            check()
            with contextlib.suppress(TimeoutError):
                left = left[self._connection.send(left) :]

    def flush(self) -> None:
        pass


# --- messages ---------------------------------------------------------------------------------------------------------


def _send(file: Any, message: Message) -> None:
    values, arrays = message
    about = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps([values, about]).encode()
    file.write(len(text).to_bytes(4, "big") + text)
    for array in arrays:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    file.flush()


def receive(file: Any) -> Message:
    """Raises EOFError at the end, ValueError for what is not a message."""
    size = int.from_bytes(_exactly(file, 4), "big")
    if size > _MAX_MESSAGE:
        raise ValueError("too long a message")
    values, about = json.loads(_exactly(file, size))
    if not isinstance(values, dict):
        raise ValueError("not a message")
    arrays = []
    for kind, sides in about:
        dtype, shape = np.dtype(str(kind)), [int(side) for side in sides]
        if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > _MAX_ARRAY or min(shape, default=0) < 0:
            raise ValueError("an array that nobody asked for")
        array = np.empty(shape, dtype)
        view, at = array.reshape(-1).view(np.uint8).data, 0
        while at < len(view):
            read = file.readinto(view[at:])
            if not read:
                raise EOFError
            at += read
        arrays.append(array)
    return values, arrays


def _exactly(file: Any, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


# --- the other side ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork a process for each socket that comes through standard input, until its other end is closed."""
    for module in sorted(set(TASKS.values())):
        importlib.import_module(module)
    control = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the caller
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what was forked
    while True:
        data, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                connection = socket.socket(fileno=descriptors[0])
                threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
                with connection.makefile("rwb", buffering=1 << 16) as file:
                    _work(file, file)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def serve_one() -> None:
    """One job through standard input and output."""
    _work(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)


def _end_with(connection: socket.socket) -> None:
    """Ends this process once the caller has closed the connection, whatever is being decoded."""
    gone = select.poll()
    gone.register(connection, 0)  # only that the other end is gone
    gone.poll()
    os._exit(1)


def _work(incoming: Any, outgoing: Any) -> None:
    job, _ = receive(incoming)
    if job["seconds"]:
        _limit(float(job["seconds"]))
    task: Task = getattr(importlib.import_module(TASKS[job["task"]]), job["task"])
    sent = {"sent": _sent(incoming)} if job["sends"] else {}
    try:
        for message in task(Path(job["path"]), **job["options"], **sent):
            _send(outgoing, message)
        last: dict[str, Any] = {"end": True}
    except InputError as error:
        last = {"refused": str(error)}
    except MemoryError:
        last = {"refused": f"{Path(job['path']).name} needs too much memory to be read: give a smaller one."}
    except OSError as error:
        last = {"errno": error.errno} if job["sends"] and error.errno else {"fault": type(error).__name__}
    except Exception as error:  # whatever a damaged file brings about
        last = {"fault": type(error).__name__}
    with contextlib.suppress(OSError, EOFError, ValueError):
        for _ in sent.get("sent", ()):  # the caller reads the answer only when it has sent everything
            pass
        _send(outgoing, (last, []))


def _sent(incoming: Any) -> Iterator[np.ndarray]:
    while not (message := receive(incoming))[0].get("end"):
        yield message[1][0]


def _limit(seconds: float) -> None:
    """The process is ended after so many seconds, and gets no more than `BYTES` more of memory."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, taken + BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
