"""What LaVR learns from: two views of a scene in latents, their cameras, tokens of the scene, and at times a warp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.camera.geometry import invert_rigid
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.prior.backbone import Backbone
from pipeline.scene.latents import SceneEncoder
from pipeline.training import save_state
from pipeline.training.vae import encode_once
from pipeline.training.views import Pair, read_multicam, read_world, varied

KINDS = {"nothing": 0.5, "first": 0.15, "warp": 0.35}  # what the inpainting channels show, and how often
AT_ONCE = 2_000_000  # pixels of a clip up to which the VAE encodes it in one pass


@dataclass(frozen=True, eq=False)
class Example:
    """One direction of a pair; a batch has B examples of one shape.

    z, source: latents of the target and of the source. channels: what the model's own channels show of the target,
    0 of them for a text-to-video model. tokens: of the scene. Poses: see `prior.posed.Beside`. prompt: embedded.
    """

    z: Float[Tensor, "B C t h w"]
    source: Float[Tensor, "B C t h w"]
    channels: Float[Tensor, "B P t h w"]
    tokens: Float[Tensor, "B t s d"]
    target_pose: Float[Tensor, "B t 12"]
    source_pose: Float[Tensor, "B t 12"]
    prompt: Float[Tensor, "B L D"]

    def to(self, device: torch.device) -> Example:
        """The same on a device."""
        return Example(*(getattr(self, name).to(device) for name in Example.__dataclass_fields__))


def together(examples: list[Example]) -> Example:
    """Several as one batch."""
    return Example(*(torch.cat([getattr(e, name) for e in examples]) for name in Example.__dataclass_fields__))


class Scenes(Protocol):
    """Where pairs come from. names: of the scenes. metres: poses are in metres, not in distances of the subject."""

    names: list[str]
    metres: bool

    def pair(self, name: str, rng: np.random.Generator) -> Pair:
        """A pair of this scene, as the generator draws it."""
        ...


class World:
    """Scenes of folders made by `pipeline.world.dataset`: views exchanged, mirrored and reversed by chance."""

    metres = False

    def __init__(self, folders: list[Path], size: tuple[int, int], frames: int, stride: int = 1):
        self.size, self.frames, self.stride = size, frames, stride
        self.names = [str(file) for folder in folders for file in sorted(folder.glob("*.npz"))]

    def pair(self, name: str, rng: np.random.Generator) -> Pair:
        """See `Scenes.pair`."""
        swap, mirror, reverse = (bool(rng.integers(2)) for _ in range(3))
        pair = read_world(Path(name), self.frames, self.size, self.stride)
        return varied(pair, swap=swap, mirror=mirror, reverse=reverse)


class MultiCam:
    """Scenes in the layout of MultiCamVideo (KwaiVGI): any two cameras of a scene, mirrored and reversed by chance."""

    metres = True

    def __init__(self, folder: Path, size: tuple[int, int], frames: int, stride: int = 1):
        self.size, self.frames, self.stride = size, frames, stride
        self.names = [str(path.parents[1]) for path in sorted(folder.rglob("cameras/camera_extrinsics.json"))]

    def pair(self, name: str, rng: np.random.Generator) -> Pair:
        """See `Scenes.pair`."""
        pair = read_multicam(Path(name), rng, self.frames, self.size, self.stride)
        return varied(pair, mirror=bool(rng.integers(2)), reverse=bool(rng.integers(2)))


def scenes_of(folders: list[Path], size: tuple[int, int], frames: int, stride: int = 1) -> World | MultiCam:
    """The scenes of folders, of whichever kind they are. Raises SystemExit for folders without scenes."""
    found = World(folders, size, frames, stride)
    if found.names:
        return found
    multicam = [MultiCam(folder, size, frames, stride) for folder in folders]
    names = [name for scenes in multicam for name in scenes.names]
    if not names:
        raise SystemExit(
            f"{', '.join(map(str, folders))} hold no scenes: neither .npz files of pipeline.world.dataset nor folders "
            "with cameras/camera_extrinsics.json and videos/, as MultiCamVideo has them."
        )
    multicam[0].names = names
    return multicam[0]


class Examples:
    """Makes examples of scenes; the first `held_out` of them are not drawn.

    encoder: None to leave the scene out; the source's poses are then those of the data. cache: a folder that keeps the
    latents of each draw, for models that are slow to encode; None to make all anew.
    """

    def __init__(
        self,
        scenes: World | MultiCam,
        backbone: Backbone,
        encoder: SceneEncoder | None,
        held_out: int,
        cache: Path | None = None,
    ):
        if len(scenes.names) <= held_out:
            raise SystemExit(f"{len(scenes.names)} scenes are too few to hold {held_out} of them out")
        self.scenes, self.backbone, self.encoder, self.cache = scenes, backbone, encoder, cache
        self.unseen = scenes.names[:held_out]
        self.seen = [name for name in scenes.names if name not in set(self.unseen)]  # a folder may be named twice

    def draw(self, rng: np.random.Generator, variants: int = 64) -> Example:
        """A random example. variants: of each scene, where they are kept."""
        name = self.seen[int(rng.integers(len(self.seen)))]
        if self.cache is None:
            return self.make(self.scenes.pair(name, rng), rng)
        variant = int(rng.integers(variants))
        file = self.cache / f"{Path(name).parent.name}-{Path(name).stem}-{variant}.pt"
        if not file.exists():
            own = np.random.default_rng([variant, len(name)])
            made = self.make(self.scenes.pair(name, own), own)
            self.cache.mkdir(parents=True, exist_ok=True)
            save_state({key: getattr(made, key).half() for key in Example.__dataclass_fields__}, file)
        return Example(**{key: value.float() for key, value in torch.load(file, weights_only=True).items()})

    def make(self, pair: Pair, rng: np.random.Generator, kind: str | None = None) -> Example:
        """The example of a pair. kind: of `KINDS`, None to draw one; a pair without depth has no warp to show."""
        kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
        encode = self._encode
        z, source = encode(pair.target.frames), encode(pair.source.frames)
        first = invert_rigid(pair.source.path.world_from_cam[:1])
        every = slice(None, None, self.backbone.temporal)
        target = numbers((first @ pair.target.path.world_from_cam)[every], pair.unit)
        own, tokens = (
            numbers((first @ pair.source.path.world_from_cam)[every], pair.unit),
            z.new_zeros(z.shape[1], 0, 0),
        )
        if self.encoder is not None:
            with torch.no_grad():
                told = self.encoder.encode(pair.source.frames)
            tokens = told.tokens
            own = own if self.scenes.metres else numbers(told.world_from_cam.cpu(), told.unit)
        channels = z[:0]
        if self.backbone.inpaints:
            shown = shown_of(pair, "nothing" if kind == "warp" and pair.source.z is None else kind, rng)
            filled = fill_unknown(shown) if self.backbone.settings.fill_condition else shown.video
            latents = encode(filled) if self.backbone.settings.fill_condition else None
            channels = self.backbone.condition(shown.video, shown.mask, latents)
        prompt = self.backbone.embed("" if rng.uniform() < 0.1 else pair.caption)
        parts = (z, source, channels, tokens, target, own, prompt)
        return Example(*(part[None].float().cpu() for part in parts))

    @torch.no_grad()
    def tokens(self, count: int) -> Float[Tensor, "N t s d"]:
        """What the encoder makes of the first scenes that are drawn, at most `count` of them."""
        assert self.encoder is not None
        pairs = [self.scenes.pair(name, np.random.default_rng([9, n])) for n, name in enumerate(self.seen[:count])]
        return torch.stack([self.encoder.encode(pair.source.frames).tokens.cpu() for pair in pairs])

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        if video.numel() > 3 * AT_ONCE:
            return self.backbone.encode(video)
        x = video.to(self.backbone.device).mul(2).sub(1).transpose(0, 1)[None]
        return (encode_once(self.backbone.vae, x)[0] - self.backbone.mean) * self.backbone.scale


def numbers(first_from_cam: Float[Tensor, "t 4 4"], unit: float) -> Float[Tensor, "t 12"]:
    """Poses as the transformer reads them, see `pipeline.method.lavr.pose_numbers`."""
    matrix = first_from_cam[:, :3].clone().float()
    matrix[..., 3] /= unit
    return matrix.flatten(1)


def shown_of(pair: Pair, kind: str, rng: np.random.Generator) -> Measurement:
    """What is shown of the target: nothing, its first frame, or a warp of the source by a depth that errs somewhat."""
    frames = pair.target.frames
    if kind != "warp":
        mask = torch.zeros_like(frames[:, :1], dtype=torch.bool)
        mask[: 1 if kind == "first" else 0] = True
        return Measurement(frames * mask, mask)
    assert pair.source.z is not None
    z, source, target = perturbed(pair.source.z, rng), pair.source.path, pair.target.path
    seen = warp_to_path(pair.source.frames, z, source, target)
    return Measurement(seen.video, seen.mask, warp_depth(z, source, target))


def perturbed(z: Float[Tensor, "T H W"], rng: np.random.Generator) -> Float[Tensor, "T H W"]:
    """Depth as estimates err: by a smooth field that stays in time, its strength drawn up to 0.2; a third is exact."""
    if rng.uniform() < 1 / 3:
        return z
    coarse = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.2), (1, 1, 4, 6))).to(z)
    field = F.interpolate(coarse, z.shape[-2:], mode="bicubic", align_corners=True)[0]
    return z * field.exp()
