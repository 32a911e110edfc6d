"""Find what stands out in real pictures, for the training of the click network, by a network for just that.

    python -m pipeline.training.cutouts --model isnet.onnx --pairs PAIRS --clips CLIPS --out CUTOUTS

PAIRS is a folder as `pipeline.training.pairs` reads it, CLIPS one as `pipeline.training.clips` does; of each clip two
frames are taken. MODEL is an ONNX file of IS-Net (Qin et al., arXiv 2203.03041) of a fixed size; the program needs the
package onnxruntime. A file of the folder is ID.npz: image uint8 H W 3, mask uint8 H W, split.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

SIDE = 416  # pixels of the longer side of what is kept
PAIRS, CLIPS = (0.2, 0.8), (0.1, 0.6)  # where in a clip the frames are


@dataclass(frozen=True)
class Item:
    """A picture of an index: the file, and for a clip where in it the frame is, from 0 to 1."""

    name: str
    file: Path
    at: float | None
    split: str


def items_of(pairs: Path, clips: Path) -> Iterator[Item]:
    """All pictures of both folders. Clips that the first folder has, too, are taken from there."""
    for line in (pairs / "index.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "image":
            yield Item(row["id"], pairs / f"images/{row['id']}.jpg", None, row["split"])
            continue
        for at in PAIRS:
            name, file = f"{row['id']}-{int(at * 10)}", pairs / f"clips/{row['id']}/rgb.mp4"
            yield Item(name, file, at, row["split"])
    for line in (clips / "index.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if not row["id"].startswith("depthset"):
            for at in CLIPS:
                yield Item(f"{row['id']}-{int(at * 10)}", clips / row["file"], at, row["split"])


def picture_of(item: Item) -> np.ndarray:
    """uint8 H W 3, its longer side at most `SIDE`."""
    if item.at is None:
        image = cv2.cvtColor(np.asarray(cv2.imread(str(item.file))), cv2.COLOR_BGR2RGB)
    else:
        with av.open(str(item.file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        image = frames[int(item.at * len(frames))]
    scale = SIDE / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file of IS-Net")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    session = importlib.import_module("onnxruntime").InferenceSession(str(args.model))
    given, found = session.get_inputs()[0], session.get_outputs()[0].name
    height, width = given.shape[2:]
    args.out.mkdir(parents=True, exist_ok=True)
    items = list(items_of(args.pairs, args.clips))
    random.Random(0).shuffle(items)
    for item in items:
        path = args.out / f"{item.name}.npz"
        if path.exists():
            continue
        image = picture_of(item)
        x = (cv2.resize(image, (width, height)).astype(np.float32) - 128) / 256
        alpha = session.run([found], {given.name: x.transpose(2, 0, 1)[None]})[0][0, 0]
        alpha = cv2.resize(alpha, (image.shape[1], image.shape[0]))
        partial = path.with_suffix(f".{os.getpid()}.part")
        with open(partial, "wb") as file:
            np.savez_compressed(file, image=image, mask=(alpha * 255).astype(np.uint8), split=item.split)
        partial.replace(path)


if __name__ == "__main__":
    main()
