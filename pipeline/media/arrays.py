"""Arrays in npy and npz files of others: what their headers declare is checked before anything is unpacked."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from pipeline import InputError

MAX_SIDE = 8192  # pixels
MAX_BYTES = 2 * 2**30
_MAX_ARRAYS = 1000

Header = tuple[tuple[int, ...], np.dtype]


@contextlib.contextmanager
def guarded(what: str, remedy: str) -> Iterator[None]:
    """Whatever goes wrong in reading a file of a visitor becomes one `InputError`: "<what>; <remedy>".

    A damaged file brings about errors of any kind: of zip, zlib and JSON, of numbers, of recursion and of memory.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}; {remedy}") from error


def headers(file: Path | io.BytesIO) -> dict[str, Header]:
    """Shape and type of each array of an npz, by name; of an npy under the name "". No pickles. Raises anything."""
    if isinstance(file, Path) and file.suffix.lower() == ".npy":
        with file.open("rb") as stream:
            return {"": _header(stream)}
    found = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist()[:_MAX_ARRAYS]:
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as stream:
                    found[entry.filename.removesuffix(".npy")] = _header(stream)
    return found


def size_of(header: Header) -> int:
    """Bytes of the array once it is unpacked."""
    return math.prod(header[0]) * header[1].itemsize


def read_array(file: Path | io.BytesIO, name: str) -> np.ndarray:
    """An array whose header was found to be fine. Raises anything."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with np.load(file, allow_pickle=False) as data:
        return data[name]


def _header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its arrays are of the unknown version {version}")
    shape, _, dtype = read(file)
    return shape, dtype
