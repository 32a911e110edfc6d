"""The procedural world and the trainings of the nano models on it."""

import os
from pathlib import Path
from typing import Any

import torch


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and numbers with `torch.save`; a reader sees the old file or the new one, never a part."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    torch.save(state, partial)
    partial.replace(path)
