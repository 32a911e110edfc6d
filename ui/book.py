"""What is known of the jobs, on disk: a server that was killed finds them again.

An SQLite file lies beside the folder of the jobs, and a lock file that is held for as long as the server lives. Who
gets the lock of such a folder knows that its server is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "recapture-"
_TABLE = """CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, visitor TEXT, state TEXT, message TEXT, request TEXT, accepted TEXT, report TEXT, touched REAL
)"""


@dataclass(frozen=True)
class Entry:
    """A job as it is kept. request: its JSON; accepted: names of models; report: JSON of a finished one, or ""."""

    id: str
    visitor: str
    state: str
    message: str
    request: str
    accepted: tuple[str, ...]
    report: str
    touched: float


class Book:
    """The entries of one folder of jobs, `root`, whose name with .sqlite and .lock the two files have."""

    def __init__(self, root: Path) -> None:
        self.files = [root.with_name(root.name + end) for end in (".sqlite", ".lock")]
        self._lock = _locked(self.files[1])
        if self._lock is None:
            raise OSError(f"another server uses {root}")
        with closing(self._open()) as book, book:
            book.execute(_TABLE)

    def write(self, entry: Entry) -> None:
        """Keep an entry, in the place of an older one of the same job."""
        values = vars(entry) | {"accepted": json.dumps(entry.accepted)}
        with closing(self._open()) as book, book:
            book.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(values.values()))

    def forget(self, job_id: str) -> None:
        with closing(self._open()) as book, book:
            book.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def entries(self) -> list[Entry]:
        """All that are kept, in the order in which they were submitted."""
        with closing(self._open()) as book:
            rows = book.execute("SELECT * FROM jobs ORDER BY rowid").fetchall()
        return [
            Entry(job, visitor, state, message, request, tuple(json.loads(accepted)), report, touched)
            for job, visitor, state, message, request, accepted, report, touched in rows
        ]

    def close(self) -> None:
        """Remove the files, and let go of the lock."""
        for file in self.files:
            file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.files[0], timeout=10)


def find_root(place: str | None, keep_seconds: float) -> Path:
    """The folder of a server that was killed, else a new one that only this user can read. Old ones are removed.

    place: the folder to look in, None for that of temporary files.
    """
    found = list(_orphans(Path(place or tempfile.gettempdir())))
    found.sort(key=lambda root: root.with_name(root.name + ".sqlite").stat().st_mtime, reverse=True)
    for root in found[1:]:
        if time.time() - root.with_name(root.name + ".sqlite").stat().st_mtime > keep_seconds:
            shutil.rmtree(root, ignore_errors=True)
            for end in (".sqlite", ".lock"):
                root.with_name(root.name + end).unlink(missing_ok=True)
    return found[0] if found else Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))


def _orphans(place: Path) -> Iterator[Path]:
    """Folders of jobs of this user whose server is gone."""
    for file in place.glob(f"{PREFIX}*.sqlite") if os.name == "posix" else ():
        root = file.with_suffix("")
        with suppress(OSError):
            ours = not hasattr(os, "getuid") or (root.stat().st_uid == os.getuid() == file.stat().st_uid)
            lock = _locked(root.with_name(root.name + ".lock")) if ours and not root.is_symlink() else None
            if lock is not None:
                os.close(lock)
                yield root


def _locked(file: Path) -> int | None:
    """A descriptor that holds the lock until it is closed or this process ends; None if another process has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows, where whose server is gone cannot be told
        pass
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def as_entry(job: Any) -> Entry:
    """The entry of a `jobs.Job`."""
    view = job.view
    report = json.dumps(view.result.report.to_dict()) if view.result is not None else ""
    return Entry(
        job.id, job.visitor, view.state, view.message, job.request.to_json(), job.request.accepted, report, job.touched
    )
