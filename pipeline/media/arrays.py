"""Arrays in npy and npz files of others: what their headers declare is checked before anything is unpacked."""

from __future__ import annotations

from typing import IO

import numpy as np

MAX_SIDE = 8192  # pixels
MAX_BYTES = 2 * 2**30


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in an open .npy file. Raises ValueError for versions that are not known."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its arrays are of the unknown version {version}")
    shape, _, dtype = read(file)
    return shape, dtype
