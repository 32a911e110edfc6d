"""CUT3R (arXiv 2501.12387): a persistent state of a scene, which every frame of a video updates.

A class of ours, typed from the published configuration of `cut3r_512_dpt_4_64`; its tensors have the published names.
The facts are those of github.com/CUT3R/CUT3R (`src/dust3r/model.py`). The published weights are under CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.camera.geometry import invert_rigid, pixel_rays, transform
from pipeline.scene.heads import Heads, Prediction
from pipeline.scene.latents import SceneLatents
from pipeline.scene.layers import DecoderBlock, EncoderBlock, norm, rotation
from pipeline.stop import check

PATCH = 16  # pixels
_RAYS = 6  # numbers of a ray: where it starts and where it goes


@dataclass(frozen=True)
class Config:
    """The sizes of a CUT3R; the defaults are the published ones.

    encoder, decoder: widths of the tokens of an image and of all that the decoders see. state, slots: tokens of the
    state and entries of the memory of poses. maps, width: of the dense heads, see `heads.DenseHead`. side: of the
    longer side of a picture, in pixels.
    """

    encoder: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    ray_depth: int = 2
    decoder: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    state: int = 768
    slots: int = 256
    maps: tuple[int, int, int, int] = (96, 192, 384, 768)
    width: int = 256
    side: int = 512


@dataclass(frozen=True, eq=False)
class State:
    """All that is kept between frames. frames: how many it has seen."""

    tokens: Float[Tensor, "B s d"]
    slots: Float[Tensor, "B m 2d"]
    frames: int = 0


@dataclass(frozen=True, eq=False)
class Features:
    """A picture or a map of rays as the decoders see it: tokens, and the row and column of each."""

    tokens: Float[Tensor, "B n c"]
    positions: Int[Tensor, "B n 2"]
    grid: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Seen:
    """What the heads of CUT3R read of one view: tokens of four depths, the last with the pose token first."""

    layers: Sequence[Tensor]
    view: Features


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, PATCH, PATCH)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Features:
        tokens = self.proj(x)
        grid = (tokens.shape[-2], tokens.shape[-1])
        rows, columns = (torch.arange(n, device=x.device) for n in grid)
        positions = torch.cartesian_prod(rows, columns).expand(len(x), -1, -1)
        return Features(tokens.flatten(2).transpose(1, 2), positions, grid)


class PoseMemory(nn.Module):
    """Slots that are written with what a frame looks like and its pose token, and read by what a frame looks like."""

    def __init__(self, slots: int, inside: int, width: int, heads: int):
        super().__init__()
        self.proj_q = nn.Linear(inside, width)
        self.masked_token = nn.Parameter(torch.randn(1, 1, width) * 0.2)
        self.mem = nn.Parameter(torch.randn(1, slots, 2 * width) * 0.2)
        self.write_blocks = nn.ModuleList([DecoderBlock(2 * width, heads) for _ in range(2)])
        self.read_blocks = nn.ModuleList([DecoderBlock(2 * width, heads) for _ in range(2)])

    def write(self, slots: Tensor, look: Float[Tensor, "B 1 c"], pose: Float[Tensor, "B 1 d"]) -> Tensor:
        entry = torch.cat([self.proj_q(look), pose], -1)
        for block in self.write_blocks:
            slots = block(slots, entry)
        return slots

    def read(self, slots: Tensor, look: Float[Tensor, "B 1 c"]) -> Float[Tensor, "B 1 d"]:
        query = self.proj_q(look)
        width = query.shape[-1]
        query = torch.cat([query, self.masked_token.expand(len(query), -1, -1)], -1)
        for block in self.read_blocks:
            query = block(query, slots)
        return query[..., width:]


class CUT3R(nn.Module):
    """The network. Not every published tensor takes part: those of masked pictures and rays belong to its training."""

    def __init__(self, config: Config = Config()):
        super().__init__()
        self.config = c = config
        self.patch_embed, self.patch_embed_ray_map = PatchEmbed(3, c.encoder), PatchEmbed(_RAYS, c.encoder)
        blocks = lambda depth: nn.ModuleList([EncoderBlock(c.encoder, c.encoder_heads) for _ in range(depth)])
        self.enc_blocks, self.enc_blocks_ray_map = blocks(c.encoder_depth), blocks(c.ray_depth)
        self.enc_norm, self.enc_norm_ray_map = norm(c.encoder), norm(c.encoder)
        self.decoder_embed, self.decoder_embed_state = (nn.Linear(c.encoder, c.decoder) for _ in range(2))
        self.dec_blocks, self.dec_blocks_state = (
            nn.ModuleList([DecoderBlock(c.decoder, c.decoder_heads) for _ in range(c.decoder_depth)]) for _ in range(2)
        )
        self.dec_norm, self.dec_norm_state = norm(c.decoder), norm(c.decoder)
        self.pose_token = nn.Parameter(torch.randn(1, 1, c.decoder) * 0.02)
        self.pose_retriever = PoseMemory(c.slots, c.encoder, c.decoder, c.decoder_heads)
        self.register_tokens = nn.Embedding(c.state, c.encoder)
        self.masked_img_token = nn.Parameter(torch.randn(1, c.encoder) * 0.02)
        self.masked_ray_map_token = nn.Parameter(torch.randn(1, c.encoder) * 0.02)
        self.downstream_head = Heads(c.encoder, c.decoder, c.decoder_heads, c.maps, c.width)

    def start(self, batch: int = 1) -> State:
        """The state before any frame."""
        tokens = self.decoder_embed_state(self.register_tokens.weight)
        return State(tokens.expand(batch, -1, -1), self.pose_retriever.mem.expand(batch, -1, -1))

    def look(self, pictures: Float[Tensor, "B 3 H W"]) -> Features:
        """Features of pictures in [-1, 1], whose sides are multiples of 16."""
        return self._encoded(self.patch_embed(pictures), self.enc_blocks, self.enc_norm)

    def look_along(self, rays: Float[Tensor, "B 6 H W"]) -> Features:
        """Features of a map of rays, see `ray_map`."""
        return self._encoded(self.patch_embed_ray_map(rays), self.enc_blocks_ray_map, self.enc_norm_ray_map)

    def _encoded(self, view: Features, blocks: nn.ModuleList, last: nn.Module) -> Features:
        by = rotation(view.positions, self.config.encoder // self.config.encoder_heads)
        x = view.tokens
        for block in blocks:
            x = block(x, by)
        return Features(last(x), view.positions, view.grid)

    def step(self, state: State, view: Features) -> tuple[State, Seen]:
        """The state after a view, and what the heads read of it.

        In each layer the state and the view see the other's tokens of the layer before. The normalised state replaces
        the old one. The pose token stands at position -1; that of the first frame is learned, the others are read
        from the memory.
        """
        c = self.config
        look = view.tokens.mean(1, keepdim=True)
        pose = self.pose_token.expand(len(look), -1, -1)
        if state.frames:
            pose = self.pose_retriever.read(state.slots, look)
        head = c.decoder // c.decoder_heads
        corner = torch.full_like(view.positions[:, :1], -1)
        by_view = rotation(torch.cat([corner, view.positions], 1), head)
        by_state = rotation(state_positions(c.state, view.tokens.device).expand(len(look), -1, -1), head)
        x, s = torch.cat([pose, self.decoder_embed(view.tokens)], 1), state.tokens
        kept = [view.tokens]
        for block, block_state in zip(self.dec_blocks, self.dec_blocks_state, strict=True):
            x, s = block(x, s, by_view, by_state), block_state(s, x, by_state, by_view)
            kept.append(x)
        x, s = self.dec_norm(x), self.dec_norm_state(s)
        slots = self.pose_retriever.write(state.slots, look, x[:, :1])
        layers = [kept[0], *(kept[c.decoder_depth * part // 4][:, 1:] for part in (2, 3)), x]
        return State(s, slots, state.frames + 1), Seen(layers, view)

    def predict(self, seen: Seen) -> Prediction:
        """What the heads say of a view."""
        by = rotation(seen.view.positions, self.config.decoder // self.config.decoder_heads)
        return self.downstream_head(seen.layers, seen.view.grid, by)

    def forward(self, pictures: Float[Tensor, "T B 3 H W"]) -> tuple[list[Prediction], list[State]]:
        """What is said of each picture, in [-1, 1], and the T + 1 states, the first of them before any picture."""
        states, found = [self.start(pictures.shape[1])], []
        for picture in pictures:
            state, seen = self.step(states[-1], self.look(picture))
            states.append(state)
            found.append(self.predict(seen))
        return found, states

    def query(self, state: State, rays: Float[Tensor, "B 6 H W"]) -> Prediction:
        """What a camera that filmed nothing would see, by a map of its rays (`ray_map`). The state stays as it is.

        state: of at least one frame. Raises ValueError for the state before any frame.
        """
        if not state.frames:
            raise ValueError("the state has seen no frame")
        return self.predict(self.step(state, self.look_along(rays))[1])


def state_positions(count: int, device: torch.device | str = "cpu") -> Int[Tensor, "1 count 2"]:
    """Row and column of each token of the state, on a grid as wide as the root of their number, made even upwards.

    The 768 tokens of the published model stand on a grid 28 wide.
    """
    width = math.isqrt(count)
    width += width % 2
    index = torch.arange(count, device=device)
    return torch.stack([index // width, index % width], -1)[None]


def ray_map(first_from_cam: Float[Tensor, "B 4 4"], K: Float[Tensor, "B 3 3"], size: tuple[int, int]) -> Tensor:
    """The rays of cameras, B 6 H W, in the camera of the first frame and in the unit of CUT3R.

    The first three numbers are where the camera stands, the last three the direction to the point on a pixel's ray
    whose depth is 1, seen from the first camera: that is how CUT3R was trained, and not the direction of the ray.
    K: for pixels of `size`, H W.
    """
    points = transform(first_from_cam, pixel_rays(*size, K))
    middle = first_from_cam[:, None, None, :3, 3].expand_as(points)
    return torch.cat([middle, F.normalize(points, dim=-1)], -1).permute(0, 3, 1, 2)


def fitted(frames: Float[Tensor, "T 3 H W"], side: int) -> Float[Tensor, "T 3 h w"]:
    """Frames in [0, 1] as CUT3R takes them: in [-1, 1], the longer side that long, cropped to multiples of 16.

    832x480 becomes 512x288. The middle stays the middle.
    """
    height, width = frames.shape[-2:]
    scale = side / max(height, width)
    resized = (max(PATCH, round(height * scale)), max(PATCH, round(width * scale)))
    x = F.interpolate(frames, resized, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    h, w = (n // PATCH * PATCH for n in resized)
    top, left = (resized[0] - h) // 2, (resized[1] - w) // 2
    return 2 * x[..., top : top + h, left : left + w] - 1


class CUT3REncoder:
    """CUT3R as a scene encoder. every: of how many frames one state is kept, 4 for Wan's latent frames (inferred)."""

    def __init__(self, network: CUT3R, every: int = 4):
        self.network = network.eval().requires_grad_(False)
        self.every, self.width = every, network.config.decoder

    def encode(self, frames: Float[Tensor, "T 3 H W"]) -> SceneLatents:
        """See `SceneEncoder.encode`.

        unit: the median distance along the axis over the central half of the first frame. The paper says neither which
        states are kept nor in which unit poses are given (both inferred). confidence: the mean over the points of a
        frame.
        """
        states, found = [], []
        with torch.no_grad():
            for index, (state, seen) in enumerate(self._steps(frames)):
                if index % self.every == 0:
                    states.append(state.tokens[0])
                    found.append(self.network.predict(seen))
        first_from_cam = torch.cat([one.first_from_cam for one in found])
        return SceneLatents(
            torch.stack(states),
            invert_rigid(first_from_cam[:1]) @ first_from_cam,
            _distance(found[0]),
            torch.stack([one.confidence_own.mean() for one in found]),
        )

    def _steps(self, frames: Tensor) -> Iterator[tuple[State, Seen]]:
        state = self.network.start()
        device = self.network.pose_token.device
        for frame in frames:
            check()
            picture = fitted(frame[None].to(device, torch.float32), self.network.config.side)
            state, seen = self.network.step(state, self.network.look(picture))
            yield state, seen


def _distance(seen: Prediction) -> float:
    height, width = seen.points_own.shape[1:3]
    top, left = height // 4, width // 4
    middle = seen.points_own[0, top : height - top, left : width - left, 2]
    return middle.abs().median().clamp(min=1e-6).item()
