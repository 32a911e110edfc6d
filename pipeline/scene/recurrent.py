"""A small recurrent scene encoder on the features of the nano depth network, in the manner of CUT3R.

State tokens are updated by every fourth frame; a pose token stands with the tokens of the frame. Rays ask the state for
the depth and colours of a view that nobody filmed. `python -m pipeline.training.scene` trains it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import InputError
from pipeline.camera.geometry import invert_rigid
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet
from pipeline.scene.cut3r import ray_map, state_positions
from pipeline.scene.heads import POSE_NUMBERS, pose_matrix
from pipeline.scene.latents import SceneLatents
from pipeline.scene.layers import DecoderBlock, norm, rotation
from pipeline.stop import check

KIND, CONFIG, WEIGHTS = "recurrent", "config.json", "model.safetensors"
PATCH = 16  # pixels of a token
CELL = 4  # pixels of a cell, for which the heads speak
_SAID = 8  # numbers of a cell: log depth, a point, confidence, colour
_SIDE = PATCH // CELL


@dataclass(frozen=True)
class Sizes:
    """The sizes of a `RecurrentScene`.

    width, heads, layers: of the decoder of the frame, and of that of the state. state: how many tokens it has. pixels:
    H*W of the pictures that it was trained on, to which clips are resized. every: of how many frames one is read.
    """

    width: int = 192
    heads: int = 6
    layers: int = 4
    state: int = 96
    pixels: int = 64 * 112
    every: int = 4


@dataclass(frozen=True, eq=False)
class Said:
    """What the network says of B views, in cells of 4x4 pixels. The unit of length is the subject's distance.

    log_depth: logarithm of the distance along the optical axis. points: in the camera of the first frame, lengths made
    smaller by log(1 + x), see `shortened`. confidence: logarithmic. colour: in [0, 1]. first_from_cam: the camera.
    """

    log_depth: Float[Tensor, "B h w"]
    points: Float[Tensor, "B h w 3"]
    confidence: Float[Tensor, "B h w"]
    colour: Float[Tensor, "B 3 h w"]
    first_from_cam: Float[Tensor, "B 4 4"]


@dataclass(frozen=True, eq=False)
class View:
    """A picture, or a map of rays, as tokens in the order of the rows."""

    tokens: Float[Tensor, "B n d"]
    grid: tuple[int, int]


class RecurrentScene(nn.Module):
    """The network without the trunk. inputs: numbers of a patch, see `patches`."""

    def __init__(self, inputs: int, sizes: Sizes = Sizes()):
        super().__init__()
        self.sizes = s = sizes
        self.embed = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, s.width))
        self.embed_rays = nn.Conv2d(6, s.width, _SIDE, _SIDE)
        self.state = nn.Parameter(torch.randn(1, s.state, s.width) * 0.2)
        self.pose = nn.Parameter(torch.randn(2, 1, s.width) * 0.2)  # of the first frame, and of the others
        blocks = lambda: nn.ModuleList([DecoderBlock(s.width, s.heads) for _ in range(s.layers)])
        self.blocks, self.state_blocks = blocks(), blocks()
        self.norm, self.state_norm = norm(s.width), norm(s.width)
        self.dense = nn.Linear(s.width, _SAID * _SIDE**2)
        self.camera = nn.Linear(s.width, POSE_NUMBERS)
        with torch.no_grad():
            self.camera.weight *= 0.1
            self.camera.bias.copy_(torch.tensor([0.0, 0, 0, 1, 0, 0, 0]))  # stands at the first

    def look(self, given: Float[Tensor, "B h w c"]) -> View:
        """Patches of pictures, see `patches`, as tokens."""
        return View(self.embed(given).flatten(1, 2), (given.shape[1], given.shape[2]))

    def look_along(self, rays: Float[Tensor, "B 6 h w"]) -> View:
        """A map of rays, one for each cell (`cut3r.ray_map`), as tokens."""
        tokens = self.embed_rays(rays)
        return View(tokens.flatten(2).mT, (tokens.shape[-2], tokens.shape[-1]))

    def step(
        self, state: Float[Tensor, "B s d"], view: View, *, first: bool
    ) -> tuple[Float[Tensor, "B s d"], Float[Tensor, "B 1+n d"]]:
        """The state after a view, and the tokens of the view, the pose's before them.

        As in CUT3R: in each layer both see the other's tokens of the layer before, and the normalised state replaces
        the old one.
        """
        batch, head = len(view.tokens), self.sizes.width // self.sizes.heads
        rows, columns = (torch.arange(n, device=view.tokens.device) for n in view.grid)
        places = torch.cartesian_prod(rows, columns)
        places = torch.cat([torch.full_like(places[:1], -1), places])[None]
        by_view = rotation(places, head)
        by_state = rotation(state_positions(self.sizes.state, view.tokens.device), head)
        x, s = torch.cat([self.pose[0 if first else 1].expand(batch, 1, -1), view.tokens], 1), state
        for block, state_block in zip(self.blocks, self.state_blocks, strict=True):
            x, s = block(x, s, by_view, by_state), state_block(s, x, by_state, by_view)
        return self.state_norm(s), self.norm(x)

    def say(self, tokens: Float[Tensor, "B 1+n d"], grid: tuple[int, int]) -> Said:
        """What the heads say of a view's tokens."""
        shape = {"h": grid[0], "p": _SIDE, "q": _SIDE}
        cells = rearrange(self.dense(tokens[:, 1:]), "b (h w) (c p q) -> b c (h p) (w q)", **shape)
        pose = pose_matrix(self.camera(tokens[:, 0]))
        return Said(cells[:, 0], cells[:, 1:4].movedim(1, -1), cells[:, 4], cells[:, 5:].sigmoid(), pose)

    def forward(self, given: Float[Tensor, "B G h w c"]) -> tuple[list[Tensor], list[Said]]:
        """The states after each of G pictures, and what is said of each."""
        state = self.state.expand(len(given), -1, -1)
        states, said = [], []
        for index in range(given.shape[1]):
            view = self.look(given[:, index])
            state, tokens = self.step(state, view, first=index == 0)
            states.append(state)
            said.append(self.say(tokens, view.grid))
        return states, said

    def query(self, state: Float[Tensor, "B s d"], rays: Float[Tensor, "B 6 h w"]) -> Said:
        """What a camera that filmed nothing would see, by its rays, one for each cell. The state stays as it is."""
        view = self.look_along(rays)
        return self.say(self.step(state, view, first=False)[1], view.grid)


def patches(trunk: DepthNet, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w c"]:
    """What the network reads of pictures in [0, 1], whose sides are multiples of 16; without gradients.

    For each patch of 16x16 pixels the trunk's features at stride 16, the four at stride 8, and the colours in cells.
    """
    with torch.no_grad():
        levels = trunk.features(pictures)
        fine, coarse = F.pixel_unshuffle(levels[2], 2), levels[3]
        colours = F.pixel_unshuffle(F.avg_pool2d(2 * pictures - 1, CELL), _SIDE)
        return torch.cat([fine, coarse, colours], 1).movedim(1, -1).contiguous()


def inputs_of(trunk: DepthNet) -> int:
    """Numbers of a patch."""
    return patches(trunk, torch.zeros(1, 3, 2 * PATCH, 2 * PATCH)).shape[-1]


def fitted(frames: Float[Tensor, "T 3 H W"], pixels: int) -> Float[Tensor, "T 3 h w"]:
    """Frames resized to about so many pixels, either side to the nearest multiple of 16."""
    height, width = frames.shape[-2:]
    scale = (pixels / (height * width)) ** 0.5
    size = [max(1, round(side * scale / PATCH)) * PATCH for side in (height, width)]
    if size == [height, width]:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def shortened(points: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Points with their lengths x made log(1 + x): the inverse of `heads.lengthened`."""
    length = points.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return points / length * length.log1p()


def rays_of(
    first_from_cam: Float[Tensor, "B 4 4"], K: Float[Tensor, "B 3 3"], size: tuple[int, int]
) -> Float[Tensor, "B 6 h w"]:
    """The rays through the cells of pictures of `size`, whose K is given, see `cut3r.ray_map`."""
    scaled = K.clone()
    scaled[:, :2] /= CELL
    return ray_map(first_from_cam, scaled, (size[0] // CELL, size[1] // CELL))


class RecurrentEncoder:
    """The network as a scene encoder, see `latents.SceneEncoder`."""

    def __init__(self, trunk: DepthNet, network: RecurrentScene):
        self.trunk = trunk.eval().requires_grad_(False)
        self.network = network.eval().requires_grad_(False)
        self.every, self.width = network.sizes.every, network.sizes.width

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "T 3 H W"]) -> SceneLatents:
        """See `SceneEncoder.encode`. unit: the median depth of the central half of the first frame, as it is said.

        Frames between the kept ones are not looked at. confidence: of the mean of a frame, 1 + exp of it.
        """
        check()
        device = self.network.state.device
        kept = fitted(frames[:: self.every].to(device, torch.float32), self.network.sizes.pixels)
        states, said = self.network(patches(self.trunk, kept)[None])
        depth = said[0].log_depth[0].exp()
        top, left = depth.shape[0] // 4, depth.shape[1] // 4
        middle = depth[top : depth.shape[0] - top, left : depth.shape[1] - left]
        first_from_cam = torch.cat([one.first_from_cam for one in said])
        return SceneLatents(
            torch.cat(states),
            invert_rigid(first_from_cam[:1]) @ first_from_cam,
            middle.median().item(),
            torch.stack([1 + one.confidence.mean().exp() for one in said]),
        )


def load_recurrent(folder: str | Path, device: str | torch.device = "cpu") -> RecurrentEncoder:
    """The scene encoder of a folder, as `save_recurrent` writes it, in float32. Raises `InputError`."""
    folder = Path(folder)
    try:
        given = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        trunk = load_depth_model(str((folder / given["depth"]).resolve()), device)
        if not isinstance(trunk, DepthNet):
            raise ValueError(f"{given['depth']} is no depth network of this program")
        network = RecurrentScene(inputs_of(trunk), Sizes(**given["sizes"]))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The scene encoder in {str(folder)!r} cannot be read: {error}") from error
    return RecurrentEncoder(trunk, network.to(device))


def config_of(sizes: Sizes, depth: str) -> dict[str, object]:
    """What config.json holds. depth: the folder of the depth network, relative to that of the encoder."""
    return {"kind": KIND, "depth": depth, "sizes": asdict(sizes)}
