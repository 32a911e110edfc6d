"""The procedural world and the trainings of the nano models on it."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and numbers with `torch.save`; a reader sees the old file or the new one, never a part."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    torch.save(state, partial)
    partial.replace(path)


def save_half(net: Any, folder: Path) -> None:
    """A copy of a diffusers or transformers model in float16, in their layout.

    The folder that the training started from is left out of its config: nobody else's business.
    """
    copy.deepcopy(net).half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
