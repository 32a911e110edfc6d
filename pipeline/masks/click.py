"""An object by clicks on it: a small network of our own on what the depth network sees of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import InputError
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import STRIDE, Attention, Block, DepthNet, mixed, waves
from pipeline.masks.sam2 import sam2_at_hand, select_with_sam2
from pipeline.masks.shape import Click
from pipeline.media.video import resize
from pipeline.models import hub

SIDE = 416  # pixels of the longer side at which the network sees a picture
ROOM, CLOSER = 0.4, 0.5  # about what was found, of its size; share of the frame up to which that is looked at again
_RADII = (4.0, 40.0)  # pixels, of the clicks' spots
_LEVELS = (2, 3, 4)  # where what was clicked is compared with the rest: strides 8, 16 and 32
_MAPS = 2 * len(_RADII) + 4  # see `_told`, and the answer before


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of a picture before any click.

    features: of the depth network's trunk, at strides 2 to 32 of the padded picture. disparity: from 0 to 1.
    """

    picture: Float[Tensor, "B 3 h w"]
    features: list[Float[Tensor, "B c _ _"]]
    disparity: Float[Tensor, "B 1 h w"]


class ClickNet(nn.Module, PyTorchModelHubMixin):
    """The mask of what was clicked, from a picture's features, its disparity, and all clicks so far.

    What is clicked is told in three ways: as spots around the clicks (the answer before beside them, as in RITM, arXiv
    2102.06583), as how far each pixel's disparity and colour are from those at the clicks, and as how much each place's
    features are like those there. The trunk is the depth network's and does not learn.

    trunk: channels of its features at strides 2 to 32. channels: of the decoder there. compared: of the features as
    they are compared. attentions: layers at strides 16 and 32.
    """

    def __init__(
        self,
        trunk: Sequence[int] = (16, 24, 48, 120, 352),
        channels: Sequence[int] = (24, 40, 64, 96, 128),
        compared: int = 32,
        attentions: Sequence[int] = (1, 2),
        heads: int = 4,
    ):
        super().__init__()
        told = [_MAPS + (2 if level in _LEVELS else 0) for level in range(5)]
        self.laterals = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(trunk, channels, strict=True))
        self.prompts = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(told, channels, strict=True))
        self.compared = nn.ModuleList(nn.Conv2d(trunk[level], compared, 1) for level in _LEVELS)
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(channels))
        self.blocks = nn.ModuleList(Block(c) for c in channels)
        self.places = nn.ModuleList(nn.Linear(10, c) for c in channels[3:])
        self.attentions = nn.ModuleList(
            nn.Sequential(*(Attention(c, heads) for _ in range(n)))
            for c, n in zip(channels[3:], attentions, strict=True)
        )
        self.head = nn.Conv2d(channels[0], 1, 3, padding=1)
        self.mixture = nn.Sequential(nn.Conv2d(channels[0] + 12, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 36, 1))

    def forward(
        self, seen: Seen, clicks: Sequence[Sequence[Click]], before: Float[Tensor, "B 1 h w"] | None = None
    ) -> Float[Tensor, "B 1 h w"]:
        """Logits of the mask. clicks: of each picture, one at least. before: the answer to all but the last click of
        each, or a mask to be corrected, in [0, 1]; None for none."""
        height, width = seen.picture.shape[-2:]
        pad = (0, -width % STRIDE, 0, -height % STRIDE)
        maps = torch.cat([_told(seen, clicks), torch.zeros_like(seen.disparity) if before is None else before], 1)
        maps = F.pad(maps, pad, mode="replicate")
        x = None
        for level in (4, 3, 2, 1, 0):
            features, told = seen.features[level], F.avg_pool2d(maps, 2 << level)
            if level in _LEVELS:
                told = torch.cat([told, self._likeness(level, features, clicks)], 1)
            y = self.laterals[level](features) + self.prompts[level](told)
            x = y if x is None else y + F.interpolate(self.ups[level](x), scale_factor=2, mode="nearest")
            x = self.blocks[level](x)
            if level >= 3:
                x = self._attend(x, level - 3)
        assert x is not None
        picture = F.pixel_unshuffle(F.pad(seen.picture, pad, mode="replicate") - 0.5, 2)
        fine = mixed(self.head(x), self.mixture(torch.cat([x, picture], 1)))
        return fine[..., :height, :width]

    def _likeness(self, level: int, features: Tensor, clicks: Sequence[Sequence[Click]]) -> Float[Tensor, "B 2 h w"]:
        """Cosine of each place's features with those of the most alike click of either kind; -1 for no such click."""
        x = F.normalize(self.compared[level - _LEVELS[0]](features), dim=1)
        stride, found = 2 << level, []
        for one, given in zip(x, clicks, strict=True):
            both = []
            for positive in (True, False):
                at = [(c.row // stride, c.column // stride) for c in given if c.positive == positive]
                rows, columns = [a for a, _ in at], [b for _, b in at]
                like = torch.einsum("chw,cn->nhw", one, one[:, rows, columns]).amax(0) if at else one[0] * 0 - 1
                both.append(like)
            found.append(torch.stack(both))
        return torch.stack(found)

    def _attend(self, x: Float[Tensor, "B c h w"], level: int) -> Tensor:
        h, w = x.shape[-2:]
        tokens = rearrange(x, "b c h w -> b (h w) c") + self.places[level](waves(h, w, x))
        return rearrange(self.attentions[level](tokens), "b (h w) c -> b c h w", h=h)


def _told(seen: Seen, clicks: Sequence[Sequence[Click]]) -> Float[Tensor, "B 7 h w"]:
    """Of each pixel: the spots of both kinds, its disparity, and how far that and its colour are from the nearest of
    the positive clicks', or 1 without any."""
    height, width = seen.picture.shape[-2:]
    y, x = torch.arange(height).view(-1, 1).to(seen.picture), torch.arange(width).to(seen.picture)
    found = []
    for picture, disparity, given in zip(seen.picture, seen.disparity, clicks, strict=True):
        maps = []
        for positive in (True, False):
            squared = [(y - c.row) ** 2 + (x - c.column) ** 2 for c in given if c.positive == positive]
            nearest = torch.stack(squared).amin(0) if squared else None
            for radius in _RADII:
                spot = torch.zeros_like(disparity[0]) if nearest is None else (-nearest / (2 * radius**2)).exp()
                maps.append(spot)
        off = colour = torch.ones_like(disparity[0])
        if on := [c for c in given if c.positive]:
            rows, columns = [c.row for c in on], [c.column for c in on]
            off = (disparity - disparity[0, rows, columns].view(-1, 1, 1)).abs().amin(0)
            colour = (picture[:, None] - picture[:, rows, columns][..., None, None]).square().sum(0).sqrt().amin(0)
        found.append(torch.stack([*maps, disparity[0], off, colour]))
    return torch.stack(found)


def see(frames: Float[Tensor, "B 3 h w"], depth: DepthNet) -> Seen:
    """Look at pictures in [0, 1] once, for any clicks that follow."""
    features, disparity = depth.seen(frames[:, None])
    low, high = (disparity.flatten(1).quantile(q, 1).view(-1, 1, 1, 1) for q in (0.01, 0.99))
    return Seen(frames, features, ((disparity - low) / (high - low).clamp(min=1e-6)).clamp(0, 1))


@torch.no_grad()
def answers(
    net: ClickNet, seen: Seen, clicks: Sequence[Click], before: Float[Tensor, "h w"] | None = None
) -> Float[Tensor, "h w"]:
    """The mask's probability in one picture: the clicks are told one after the other, each with the answer before. A
    positive one takes nothing away, a negative one adds nothing.

    before: a mask that the clicks correct; without it the first click has to be positive.
    """
    answer = None if before is None else before[None, None]
    for count in range(1, len(clicks) + 1):
        found = net(seen, [clicks[:count]], answer).sigmoid()
        if answer is not None:
            found = torch.maximum(found, answer) if clicks[count - 1].positive else torch.minimum(found, answer)
        answer = found
    assert answer is not None
    return answer[0, 0]


def select(
    frame: Float[Tensor, "3 H W"], clicks: Sequence[Click], before: Bool[Tensor, "H W"] | None = None
) -> Bool[Tensor, "H W"]:
    """The object that was clicked (True), in a frame in [0, 1], by SAM 2 where its weights are at hand.

    Our network looks a second time at the piece of the frame around its answer, where that is small.
    A positive click's pixel is in the mask, a negative one's is not. before: a mask that the clicks correct, which is
    left to our network. Raises `InputError` for no clicks, for clicks outside the frame, and where the first takes away
    and there is no mask.
    """
    height, width = frame.shape[-2:]
    if before is not None and not before.any():
        before = None
    if not clicks or (before is None and not clicks[0].positive):
        raise InputError("Click on the object first; what does not belong to it comes after.")
    for click in clicks:
        if not (0 <= click.row < height and 0 <= click.column < width):
            raise InputError(f"The click at row {click.row}, column {click.column} is not on the picture.")
    if before is None and (model := sam2_at_hand()) is not None:
        return held(select_with_sam2(frame, clicks, model), clicks)
    mask = held(_look(frame, clicks, before) > 0.5, clicks, before)
    top, bottom, left, right = _around(mask, clicks)
    inside = [
        Click(c.row - top, c.column - left, c.positive)
        for c in clicks
        if top <= c.row < bottom and left <= c.column < right
    ]
    if not inside or (bottom - top) * (right - left) > CLOSER * height * width:
        return mask
    piece = None if before is None else before[top:bottom, left:right]
    found = torch.zeros(height, width)
    if inside[0].positive or (piece is not None and piece.any()):
        found[top:bottom, left:right] = _look(frame[:, top:bottom, left:right], inside, piece)
        mask = held(found > 0.5, clicks, before)
    return mask


def _look(
    frame: Float[Tensor, "3 H W"], clicks: Sequence[Click], before: Bool[Tensor, "H W"] | None
) -> Float[Tensor, "H W"]:
    """The mask's probability by our network, which sees the frame at a longer side of `SIDE`."""
    net, depth = load_clicker()
    height, width = frame.shape[-2:]
    small = at_working_size(frame)
    size = (small.shape[2], small.shape[3])
    moved = [Click(c.row * size[0] // height, c.column * size[1] // width, c.positive) for c in clicks]
    given = None if before is None else resize(before[None, None].float().cpu(), size)[0, 0].clamp(0, 1)
    with torch.no_grad():
        found = answers(net, see(small, depth), moved, given)
    return resize(found[None, None], (height, width))[0, 0]


def at_working_size(frame: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 3 h w"]:
    """A frame in [0, 1] as our network sees it: with a longer side of `SIDE`."""
    height, width = frame.shape[-2:]
    scale = SIDE / max(height, width)
    size = (max(STRIDE, round(height * scale)), max(STRIDE, round(width * scale)))
    return resize(frame[None].float().cpu(), size).clamp(0, 1)


def _around(mask: Bool[Tensor, "H W"], clicks: Sequence[Click]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a piece with the mask and the positive clicks, and room about them."""
    rows = [*mask.any(1).nonzero()[:, 0].tolist(), *(c.row for c in clicks if c.positive)] or [0]
    columns = [*mask.any(0).nonzero()[:, 0].tolist(), *(c.column for c in clicks if c.positive)] or [0]
    top, bottom, left, right = min(rows), max(rows) + 1, min(columns), max(columns) + 1
    room = round(ROOM * max(bottom - top, right - left)) + 8
    height, width = mask.shape
    return max(0, top - room), min(height, bottom + room), max(0, left - room), min(width, right + room)


def held(
    mask: Bool[Tensor, "H W"], clicks: Sequence[Click], before: Bool[Tensor, "H W"] | None = None
) -> Bool[Tensor, "H W"]:
    """The mask as its clicks say: right at each click's own pixel, and without parts that neither a positive click nor
    the mask before is on."""
    mask = mask.cpu().clone()
    wanted = torch.zeros_like(mask) if before is None else before.cpu().clone()
    for click in clicks:
        mask[click.row, click.column] = wanted[click.row, click.column] = click.positive
    parts = cv2.connectedComponents(mask.numpy().astype(np.uint8))[1]
    return torch.from_numpy(np.isin(parts, np.unique(parts[(mask & wanted).numpy()])))


# --- where to click ---------------------------------------------------------------------------------------------------


def first_click(mask: Bool[np.ndarray, "H W"], rng: Random | None = None) -> Click:
    """On an object that is known: its innermost pixel; with a generator, any that is not at its rim."""
    inner = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    if rng is None:
        row, column = np.unravel_index(inner.argmax(), inner.shape)
        return Click(int(row), int(column))
    rows, columns = np.nonzero(inner >= rng.uniform(0.05, 0.9) * inner.max())
    at = rng.randrange(len(rows))
    return Click(int(rows[at]), int(columns[at]))


def next_click(
    found: Bool[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"], rng: Random | None = None
) -> Click | None:
    """Where an answer errs most: in the largest piece that is missing or too much; None where nothing is."""
    largest, best, positive = None, 0, True
    for wrong, missing in ((mask & ~found, True), (found & ~mask, False)):
        count, labels, areas, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=4)
        if count > 1 and (most := int(areas[1:, cv2.CC_STAT_AREA].max())) > best:
            largest, best, positive = labels == 1 + areas[1:, cv2.CC_STAT_AREA].argmax(), most, missing
    if largest is None:
        return None
    click = first_click(largest, rng)
    return Click(click.row, click.column, positive)


@lru_cache(maxsize=1)
def load_clicker(folder: str = "") -> tuple[ClickNet, DepthNet]:
    """Our network with the depth network whose trunk it reads: of a folder, else those of nano, from safetensors."""
    folder = folder or str(hub.resolve("nano"))
    depth = load_depth_model(folder)
    assert isinstance(depth, DepthNet)
    net = ClickNet()
    net.load_state_dict(load_file(f"{folder}/click/model.safetensors"))
    return net.eval().requires_grad_(False), depth
