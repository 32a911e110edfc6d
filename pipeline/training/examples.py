"""Render the clips in examples/ from the procedural world, and the mask of an object that an example replaces.

python -m pipeline.training.examples
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.media.video import Clip, write_video
from pipeline.world.cameras import source_path
from pipeline.world.raycast import render_view
from pipeline.world.scenes import make_scene

FOLDER = Path(__file__).parents[2] / "examples"
CLIPS = {"ball-behind-pillar": 1044, "street": 1093, "crab-on-sand": 1056}  # name: seed, none of them trained on
MASKS = {"crab-on-sand": "crab"}  # name: shape of the object
FRAMES, FPS, SIZE = 25, 12.0, (480, 832)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, seed in CLIPS.items():
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, FRAMES)
        path, words = source_path(rng, scene, FRAMES, SIZE)
        view = render_view(scene, path, SIZE)
        write_video(FOLDER / f"{name}.mp4", Clip(view.frames, FPS))
        if name in MASKS:
            index = [solid.shape for solid in scene.solids].index(MASKS[name])
            np.savez_compressed(FOLDER / f"{name}-mask.npz", mask=view.objects[:, index].numpy())
        print(f"{name}: {scene.caption}, {words}")


if __name__ == "__main__":
    main()
