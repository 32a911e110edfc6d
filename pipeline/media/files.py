"""Files that are written whole or not at all, and failures to write in plain words."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import InputError


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as strict JSON."""
    with writing(path):
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


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
        raise InputError(f"Cannot write to {place}: {error.strerror or error}.") from error
