"""Files that are written whole or not at all, and failures to write in plain words."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import InputError


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as strict JSON, whole or not at all."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path), whole(path) as part:
        part.write_text(text, encoding="utf-8")


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz, whole or not at all. Raises OSError."""
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes when nothing went wrong."""
    with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as folder:
        part = Path(folder) / "part"
        yield part
        os.replace(part, path)


def make_writable(folder: Path) -> None:
    """Create folder if need be. Raises `InputError` if it cannot be written, before anything long is begun."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns a failure to write into an `InputError`."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise InputError(
                f"The disk is full, so that {place} could not be written. Free some space there, or try again later."
            ) from error
        raise InputError(f"Cannot write to {place}: {error.strerror or error}.") from error


def is_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's share of it, has no space left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
