"""Results that are dear to compute, kept on disk under the hash of everything that they depend on.

A cache must never be the reason that a render fails: an entry that cannot be read is computed again, and a folder that
cannot be written is done without. Entries appear atomically, so that any number of processes may share the folder. Each
holds a checksum of its arrays' names, types, shapes and contents: what does not fit it is made anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import platformdirs

Arrays = dict[str, np.ndarray]

LIMIT_BYTES = 4 * 2**30
_CHECKSUM = "sha256 of the others"
STALE_SECONDS = 24 * 3600  # a temporary file this old belongs to a process that died


def cache_folder() -> Path:
    """`$RECAPTURE_CACHE`, or the user's cache folder. Read anew at each call; it may not exist yet."""
    return Path(os.environ.get("RECAPTURE_CACHE") or platformdirs.user_cache_dir("recapture"))


def content_key(*parts: object) -> str:
    """SHA-256 over parts: a `Path` counts by the content of the file (or of all files in the folder but its README.md),
    else its repr."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Path):
            _add(digest, repr(part).encode())
        elif part.is_dir():
            for file in sorted(file for file in part.rglob("*") if file.is_file() and file.name != "README.md"):
                _add(digest, file.relative_to(part).as_posix().encode())
                _add(digest, _file_digest(file))
        else:
            _add(digest, _file_digest(part))
    return digest.hexdigest()


def cached(key: str, compute: Callable[[], Arrays], *, limit_bytes: int = LIMIT_BYTES) -> Arrays:
    """The arrays kept under key, or those that compute() returns, which are then kept."""
    kept = look_up(key)
    if kept is not None:
        return kept
    arrays = compute()
    with suppress(OSError):
        _store(cache_folder() / f"{key}.npz", arrays)
        evict(limit_bytes)
    return arrays


def look_up(key: str) -> Arrays | None:
    """The arrays kept under key, if there are any."""
    return _load(cache_folder() / f"{key}.npz")


def evict(limit_bytes: int = LIMIT_BYTES) -> None:
    """Remove the least recently used entries beyond limit_bytes, and leftovers of dead writers."""
    entries = []
    for path in cache_folder().iterdir():
        with suppress(OSError):  # another process may have removed it
            status = path.stat()
            if path.suffix == ".npz":
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif path.suffix == ".part" and time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size


def _add(digest, data: bytes) -> None:
    # the length first, so that ("ab", "c") and ("a", "bc") differ
    digest.update(len(data).to_bytes(8, "big") + data)


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _checksum(arrays: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        array = np.ascontiguousarray(values)
        _add(digest, repr((name, array.dtype.str, np.shape(values))).encode())
        _add(digest, array.tobytes())
    return digest.digest()


def _load(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if arrays.pop(_CHECKSUM).tobytes() != _checksum(arrays):
            raise ValueError("the entry is not what was kept")
    except FileNotFoundError:
        return None
    except Exception:  # damage of any kind
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)  # used just now: the last to be evicted
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            checksum = np.frombuffer(_checksum(arrays), np.uint8)
            np.savez(file, **arrays, **{_CHECKSUM: checksum})  # type: ignore[arg-type]
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
