"""Render the procedural world to disk, one file a seed, so that several trainings can share the frames.

    python -m pipeline.world.dataset --out DIR --first 100000 --count 1000

Seeds below TRAIN_FROM are never trained on: evaluation and tests draw from them. Interrupted runs continue where they
stopped.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline.camera.geometry import CameraPath
from pipeline.world.objects import object_name
from pipeline.world.scenes import render_sample

TRAIN_FROM = 100_000


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds: frames uint8 T 3 H W, depth T H W, object masks T N H W, poses and the caption.

    names: of the N objects, such as "a red ball".
    """

    source: torch.Tensor
    target: torch.Tensor
    source_z: torch.Tensor
    target_z: torch.Tensor
    source_objects: torch.Tensor
    target_objects: torch.Tensor
    source_path: CameraPath
    target_path: CameraPath
    caption: str
    names: list[str]


def render_to(folder: Path, seed: int, frames: int, size: tuple[int, int], supersample: int = 2) -> Path:
    """Render one seed into `folder` unless it is there already."""
    path = folder / f"{seed}.npz"
    if path.exists():
        return path
    sample = render_sample(seed, frames=frames, size=size, supersample=supersample)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with open(partial, "wb") as file:
        np.savez(
            file,
            source=_bytes(sample.source.frames),
            target=_bytes(sample.target.frames),
            source_z=sample.source.z.half().numpy(),
            target_z=sample.target.z.half().numpy(),
            source_objects=np.packbits(sample.source.objects.numpy(), axis=-1),
            target_objects=np.packbits(sample.target.objects.numpy(), axis=-1),
            source_pose=sample.source.path.world_from_cam.numpy(),
            target_pose=sample.target.path.world_from_cam.numpy(),
            K=sample.source.path.K.numpy(),
            caption=np.array(sample.caption),
            names=np.array([object_name(solid) for solid in sample.scene.solids], dtype=str),
        )
    os.replace(partial, path)
    return path


def load(path: Path) -> Stored:
    """Read a file written by `render_to`."""
    with np.load(path) as data:
        K = torch.from_numpy(data["K"])
        return Stored(
            source=torch.from_numpy(data["source"]),
            target=torch.from_numpy(data["target"]),
            source_z=torch.from_numpy(data["source_z"]),
            target_z=torch.from_numpy(data["target_z"]),
            source_objects=_unpacked(data["source_objects"]),
            target_objects=_unpacked(data["target_objects"]),
            source_path=CameraPath(torch.from_numpy(data["source_pose"]), K),
            target_path=CameraPath(torch.from_numpy(data["target_pose"]), K),
            caption=str(data["caption"]),
            names=[str(name) for name in data["names"]],
        )


def _unpacked(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(bits, axis=-1)).bool()


def _bytes(frames: torch.Tensor) -> np.ndarray:
    return (frames * 255).round().byte().numpy()


def _one(job: tuple[Path, int, int, tuple[int, int], int]) -> None:
    torch.set_num_threads(1)
    render_to(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=TRAIN_FROM)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", default="128x208", help="HxW")
    parser.add_argument("--supersample", type=int, default=2, help="rays along either side of a pixel")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    height, width = (int(n) for n in args.size.split("x"))
    seeds = range(args.first, args.first + args.count)
    jobs = [(args.out, seed, args.frames, (height, width), args.supersample) for seed in seeds]
    with ProcessPoolExecutor(args.workers) as pool:
        for _ in tqdm(pool.map(_one, jobs), total=len(jobs), unit="scene"):
            pass


if __name__ == "__main__":
    main()
