"""Several photographs as one clip, which a browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline import InputError
from pipeline.media.times import PICTURES_RATE
from pipeline.media.video import Clip, crop_to_aspect, read_video, resize, size_of, write_video

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
HELD = 24  # frames of all photographs together, unless there are more of them
LONGEST = 1280  # pixels of the longer side


def joined(files: Sequence[str], folder: Path) -> str:
    """The file itself where it is one; of several photographs a film in folder that shows each for as long as another.

    They are shown in the order given, in the size of the first. Raises `InputError` where one is no photograph.
    """
    if len(files) == 1:
        return files[0]
    for file in files:
        if Path(file).suffix.lower() not in SUFFIXES:
            raise InputError(f"{Path(file).name} is no photograph: give one film, or one or several photographs.")
    shown: list[Tensor] = []
    for file in files:
        picture = read_video(file, frames=1, max_side=LONGEST)
        height, width = size_of(shown[0] if shown else picture.frames)
        size = height - height % 2, width - width % 2  # as a film has it
        shown.append(resize(crop_to_aspect(picture, size).frames, size))
    frames = torch.cat(shown).repeat_interleave(max(1, HELD // len(files)), 0)
    write_video(folder / "photographs.mp4", Clip(frames, PICTURES_RATE))
    return str(folder / "photographs.mp4")
