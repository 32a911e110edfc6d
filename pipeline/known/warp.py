"""What is known of the video to be made: the source seen from the target cameras, its holes, and how to fill them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath, invert_rigid, transform, unproject
from pipeline.known.measurement import Measurement
from pipeline.stop import checker

# A source pixel claims the target pixels within its own square in the source image, grown by a quarter pixel: closed
# surfaces where neighbouring slopes disagree a little. At outlines it keeps to its square, so that nothing grows fat.
_REACH, _REACH_AT_EDGE = 0.75, 0.6
# Neighbours whose depths differ by more than 5 % stand on two surfaces (or on the blurred step between them) ...
_JUMP = 0.05
# ... and what lies behind the step is dropped where the step opens by more than a pixel.
_OPENING = 1.0
_RINGS = 4  # target pixels are looked for this far around a source pixel: magnifications up to about 8
_SOFT = 0.4  # share of the pixels around it that a pixel at an outline takes
_TORN = 2  # pixels of the source between neighbours of the target that a move has brought together
_MARGIN = 2 * _RINGS + 1  # around the z-buffer, so that no claim needs a bounds check
_NOBODY = torch.iinfo(torch.int64).max
AT_ONCE = 16  # frames that are filled at once: a long clip should not take much more memory than itself
_BLOCK = 2**17  # elements; of 2^13 ... 2^18 the fastest on two cores


def warp_to_path(
    frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    hidden: Bool[Tensor, "T H W"] | None = None,
    wanted: Bool[Tensor, "T H W"] | None = None,
    tidy: bool = False,
) -> Measurement:
    """The source clip as the target cameras would see it.

    `frames` in [0, 1]; `z` is the distance along the optical axis, in the unit of the poses; depths that are not finite
    and positive are unknown. Both K are in pixels of the frames. Frames whose target camera equals the source camera
    come back untouched, whatever their depth. `hidden`: True where the clip is not to be used (an object that is to be
    replaced); those pixels are seen from nowhere, and what stood behind them stays unknown. `wanted`: of the target's
    pixels those that are asked for; the others come back as unobserved, which saves most of the work where few are.
    `tidy`: for the eye, see `_tidy`; cracks of a pixel are closed and outlines are a little soft.
    Runs on the device of `frames`. Raises ValueError if shapes do not match.
    """
    T, C, H, W = frames.shape
    if hidden is None:
        hidden = torch.zeros(T, H, W, dtype=torch.bool, device=frames.device)
    masks = [hidden] if wanted is None else [hidden, wanted]
    shapes_match = z.shape == (T, H, W) and all(part.shape == z.shape for part in masks)
    if not shapes_match or C != 3 or len(source.K) != T or len(target.K) != T:
        raise ValueError(
            f"frames {tuple(frames.shape)}, z {tuple(z.shape)}, masks {[tuple(part.shape) for part in masks]} and "
            f"paths of {len(source.K)} and {len(target.K)} frames do not match"
        )
    device = frames.device
    # Small matrices in double precision on the CPU: nothing of the float32 budget is lost to composing poses.
    source_pose, source_K = source.world_from_cam.double().cpu(), source.K.double().cpu()
    target_pose, target_K = target.world_from_cam.double().cpu(), target.K.double().cpu()
    target_from_source = invert_rigid(target_pose) @ source_pose
    homography = target_K @ target_from_source[:, :3, :3] @ torch.linalg.inv(source_K)  # of points at infinity
    epipole = (target_K @ target_from_source[:, :3, 3:])[..., 0]

    video = torch.empty_like(frames, memory_format=torch.contiguous_format)
    mask = torch.empty(T, 1, H, W, dtype=torch.bool, device=device)

    check = checker()

    def warp(t: int) -> None:
        check()
        if torch.equal(source_pose[t], target_pose[t]) and torch.equal(source_K[t], target_K[t]):
            mask[t] = ~hidden[t] if wanted is None else ~hidden[t] & wanted[t]
            torch.where(mask[t], frames[t], frames.new_zeros(()), out=video[t])
        else:
            seen = torch.where(hidden[t], torch.nan, z[t].to(device))
            asked = None if wanted is None else wanted[t]
            _warp(frames[t], seen, homography[t].tolist(), epipole[t].tolist(), asked, tidy, video[t], mask[t, 0])

    with ThreadPoolExecutor(torch.get_num_threads() if device.type == "cpu" else 1) as pool:
        list(pool.map(warp, range(T)))
    return Measurement(video, mask)


def warp_depth(z: Float[Tensor, "T H W"], source: CameraPath, target: CameraPath) -> Float[Tensor, "T H W"]:
    """The clip's depth as the target cameras see it: distance along their optical axes, nan where it is unknown.

    The arguments are those of `warp_to_path`.
    """
    target_from_source = invert_rigid(target.world_from_cam) @ source.world_from_cam
    there = transform(target_from_source, unproject(z, source.K))[..., 2]
    ahead = torch.isfinite(there) & (there > 0)
    near = there[ahead].amin() if ahead.any() else there.new_ones(())
    # inverse depth, which is linear over planes as what a warp interpolates should be, in the range of a picture
    inverse = torch.where(ahead, near / there, 0.0)[:, None].expand(-1, 3, -1, -1).contiguous()
    seen = warp_to_path(inverse, z, source, target)
    known = seen.mask[:, 0] & (seen.video[:, 0] > 0)
    return torch.where(known, near / seen.video[:, 0], torch.nan)


def _warp(
    image: Tensor,
    z: Tensor,
    A: list[list[float]],
    b: list[float],
    wanted: Tensor | None,
    tidy: bool,
    colour: Tensor,
    observed: Tensor,
) -> None:
    """One frame, into `colour` and `observed`: each source pixel claims target pixels through its local linear map, the
    nearest claim wins.

    Only the winner's index is splatted; its map then leads each target pixel back to a sub-pixel position in the
    source, where the colour is looked up: sharp, and exact for planes.
    """
    warp = _compiled if z.device.type == "cpu" and compiled() else _in_tensors
    depth, index = warp(image, z, A, b, wanted, colour, observed)
    if tidy:
        _tidy(colour, observed, depth, index)


@lru_cache(maxsize=1)
def compiled() -> bool:
    """Whether warps on the processor run as compiled loops: Numba is installed."""
    return find_spec("numba") is not None


def _compiled(
    image: Tensor,
    z: Tensor,
    A: list[list[float]],
    b: list[float],
    wanted: Tensor | None,
    colour: Tensor,
    observed: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `_in_tensors`, by `kernel`."""
    kernel: Any = import_module("pipeline.known.kernel")  # takes seconds: only where something is warped
    H, W = z.shape
    picture = np.ascontiguousarray(image.detach().numpy())
    depth, winner = np.full((H, W), np.inf, np.float32), np.full((H, W), -1, np.int32)
    maps, every = np.empty((H * W, 8), np.float32), np.ones((1, 1), bool)
    asked = every if wanted is None else np.ascontiguousarray(wanted.numpy())
    near = every if wanted is None else _around(asked)
    kernel.claim(
        np.ascontiguousarray(z.detach().numpy(), np.float32), np.array(A, np.float32), np.array(b, np.float32), near,
        _JUMP, _OPENING, _RINGS, _REACH, _REACH_AT_EDGE, depth, winner, maps,
    )  # fmt: skip
    kernel.look_up(picture, maps, asked, winner, observed.numpy(), colour.numpy())
    far = torch.from_numpy(depth)
    if wanted is not None:
        far = torch.where(observed, far, torch.inf)
    return far, torch.from_numpy(winner) >> 4


def _around(wanted: np.ndarray) -> np.ndarray:
    """Where a claim may reach a pixel that is asked for: H+2r W+2r, r = `_MARGIN`."""
    grown = np.pad(wanted.view(np.uint8), _MARGIN)
    return cv2.dilate(grown, np.ones((2 * _RINGS + 1, 2 * _RINGS + 1), np.uint8)).view(bool)


def _in_tensors(
    image: Tensor,
    z: Tensor,
    A: list[list[float]],
    b: list[float],
    wanted: Tensor | None,
    colour: Tensor,
    observed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Writes colours and whether there is one; returns how far away what is seen is (infinity: nothing), and the index
    of its pixel."""
    H, W = z.shape
    device = z.device
    # On the CPU, blocks of rows stay in the cache; the frames are what runs in parallel.
    rows = max(1, _BLOCK // W) if device.type == "cpu" else H
    blocks = [slice(top, min(top + rows, H)) for top in range(0, H, rows)]
    u = torch.arange(W, device=device, dtype=torch.float32) + 0.5
    v = torch.arange(H, device=device, dtype=torch.float32)[:, None] + 0.5
    known = torch.isfinite(z) & (z > 0)
    w = F.pad(torch.where(known, 1 / z.float(), torch.nan), (1, 1, 1, 1), value=torch.nan)
    winner = torch.full((H + 2 * _MARGIN, W + 2 * _MARGIN), _NOBODY, device=device)
    maps = torch.empty(6, H * W, device=device)  # landing place, and the inverse Jacobian by rows
    near = None
    if wanted is not None:  # from here on, a claim may reach a pixel that is asked for
        near = F.pad(wanted.to(device).float(), [_MARGIN] * 4)[None]
        for span in ((2 * _RINGS + 1, 1), (1, 2 * _RINGS + 1)):
            near = F.max_pool2d(near, span, 1, (span[0] // 2, span[1] // 2))
        near = near[0] > 0
    for block in blocks:
        _claim(w, block, u, v[block], A, b, near, winner, maps)

    winner = winner[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    observed.copy_(winner != _NOBODY)
    if wanted is not None:
        observed &= wanted.to(device)
    colour.zero_()
    for block in blocks:
        place = observed[block].reshape(-1).nonzero()[:, 0]
        code = winner[block].reshape(-1)[place] & 0xFFFFFFFF
        index = code >> 4
        x, y, a00, a01, a10, a11 = (part.take(index) for part in maps)
        dx, dy = u.repeat(block.stop - block.start)[place] - x, v[block].repeat(1, W).view(-1)[place] - y
        du, dv = a00 * dx + a01 * dy, a10 * dx + a11 * dy
        at_edge = (code & 15 != 0).nonzero()[:, 0]  # there, colours are not looked up towards the other surface
        edge = code[at_edge]
        du[at_edge] = _keep_off(du[at_edge], edge & 1, edge & 2)
        dv[at_edge] = _keep_off(dv[at_edge], edge & 4, edge & 8)
        source_u, source_v = index % W + 0.5 + du, index // W + 0.5 + dv
        grid = torch.stack([source_u * (2 / W) - 1, source_v * (2 / H) - 1], -1)[None, None]
        found = F.grid_sample(image[None], grid, "bicubic", "border", align_corners=False)[0, :, 0]
        colour.view(3, -1).index_copy_(1, block.start * W + place, found.clamp_(0, 1))
    depth = torch.where(observed, (winner >> 32).int().view(torch.float32), torch.inf)
    return depth, (winner & 0xFFFFFFFF) >> 4


def _tidy(colour: Tensor, observed: Tensor, z: Tensor, source: Tensor) -> None:
    """Outlines made whole, in place: cracks of a pixel closed, steps softened.

    A pixel is a crack if all but one of those around it show something nearer: it takes their mean. Where the view has
    torn two surfaces apart or pushed one before the other, their outline takes a share of the pixels around it, as a
    lens mixes both sides.
    """
    W = observed.shape[1]
    apart = lambda a, b: torch.maximum(a, b) > (1 + _JUMP) * torch.minimum(a, b)
    edge = torch.zeros_like(observed)
    across, down = apart(z[1:-1, 1:], z[1:-1, :-1]), apart(z[1:, 1:-1], z[:-1, 1:-1])
    edge[1:-1, 1:-1] = across[:, 1:] | across[:, :-1] | down[1:] | down[:-1]
    at = edge.view(-1).nonzero()
    around = torch.tensor([dy * W + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx], device=z.device)
    own, beside = z.view(-1)[at], z.view(-1)[at + around]
    flat, seen = colour.view(3, -1), observed.view(-1)

    nearer = beside * (1 + _JUMP) < own
    crack = nearer.sum(1) >= len(around) - 1
    lends = nearer[crack].float()
    flat[:, at[crack, 0]] = (flat[:, at[crack] + around] * lends).sum(2) / lends.sum(1)

    here, there = source.reshape(-1)[at], source.reshape(-1)[at + around]
    lends = beside.isfinite()
    far = ((here % W - there % W).abs() > _TORN) | ((here // W - there // W).abs() > _TORN)
    torn = own.isfinite()[:, 0] & (far & lends & apart(own, beside)).any(1) & ~crack
    lends = lends[torn].float()
    mean = (flat[:, at[torn] + around] * lends).sum(2) / lends.sum(1)
    flat[:, at[torn, 0]] = flat[:, at[torn, 0]].lerp(mean, _SOFT)
    seen[at[crack, 0]] = True


def _claim(
    w: Tensor,
    block: slice,
    u: Tensor,
    v: Tensor,
    A: list[list[float]],
    b: list[float],
    near: Tensor | None,
    winner: Tensor,
    maps: Tensor,
) -> None:
    """Enters the claims of a block of source rows into `winner`, and their maps into `maps`.

    near: of the shape of `winner`, where claims are of use; None: everywhere.

    A source pixel (u, v) with disparity w = 1/z (NaN: unknown, as is a rim around the picture) lands on N / D with
    (N, D) = A (u, v, 1) + w b. Planes are linear in disparity, so differences between neighbours give the exact
    Jacobian of a plane.
    """
    H, W = w.shape[0] - 2, w.shape[1] - 2
    rows = w[block.start : block.stop + 2]
    left, w, right, above, below = rows[1:-1, :-2], rows[1:-1, 1:-1], rows[1:-1, 2:], rows[:-2, 1:-1], rows[2:, 1:-1]

    D = torch.addcmul(A[2][0] * u + (A[2][1] * v + A[2][2]), w, w.new_tensor(b[2]))
    valid = D > 1e-6  # in front of the target camera; False for NaN
    inverse = 1 / D
    x = torch.addcmul(A[0][0] * u + (A[0][1] * v + A[0][2]), w, w.new_tensor(b[0])) * inverse
    y = torch.addcmul(A[1][0] * u + (A[1][1] * v + A[1][2]), w, w.new_tensor(b[1])) * inverse
    valid &= ((x - W / 2).abs() < W / 2 + _RINGS) & ((y - H / 2).abs() < H / 2 + _RINGS)
    x, y = torch.where(valid, x, 0.0), torch.where(valid, y, 0.0)  # keeps every claim inside the buffer
    index = torch.arange(block.start * W, block.stop * W, device=w.device).view(x.shape)
    if near is not None:
        place = (y - 0.5).floor().add_(_MARGIN).mul_(winner.shape[1]).add_((x - 0.5).floor()).add_(_MARGIN)
        row, column = (valid & near.take(place.long())).nonzero(as_tuple=True)
        parts = (left, w, right, above, below, D, inverse, x, y, index, valid)
        left, w, right, above, below, D, inverse, x, y, index, valid = (part[row, column] for part in parts)

    wu, nearer_u, edges_u = _slope(left, w, right)
    wv, nearer_v, edges_v = _slope(above, w, below)
    edges = edges_u + 4 * edges_v
    # Pixels of parallax per unit of disparity.
    px, py = (b[0] - x * b[2]) * inverse, (b[1] - y * b[2]) * inverse
    step = torch.maximum(nearer_u, nearer_v)
    opening = torch.maximum(px.abs(), py.abs()) * step
    valid &= (step <= _JUMP * w) | (opening <= _OPENING)

    xu = torch.addcmul((A[0][0] - x * A[2][0]) * inverse, px, wu)
    xv = torch.addcmul((A[0][1] - x * A[2][1]) * inverse, px, wv)
    yu = torch.addcmul((A[1][0] - y * A[2][0]) * inverse, py, wu)
    yv = torch.addcmul((A[1][1] - y * A[2][1]) * inverse, py, wv)
    det = xu * yv - xv * yu
    extent = 0.5 * torch.maximum(xu.abs() + xv.abs(), yu.abs() + yv.abs())
    valid &= (det > 1e-4) & (extent <= _RINGS)  # a negative determinant is a surface seen from behind
    inverse = 1 / det
    a00, a01, a10, a11 = yv * inverse, -xv * inverse, -yu * inverse, xu * inverse
    where = slice(block.start * W, block.stop * W) if near is None else index
    for plane, part in zip(maps, (x, y, a00, a01, a10, a11), strict=True):
        plane[where] = part.view(-1)
    reach = torch.where(edges > 0, _REACH_AT_EDGE, _REACH)

    # Positive floats order like their bits: with depth above, one minimum keeps the index and edges of the nearest.
    key = ((D / w).view(torch.int32).long() << 32) + (index * 16 + edges)
    key = torch.where(valid, key, _NOBODY)

    flat, nobody = winner.view(-1), torch.tensor(_NOBODY, device=w.device)
    claims = [part.reshape(-1) for part in (x, y, a00, a01, a10, a11, key, reach, torch.where(valid, extent, 0.0))]
    for ring in range(1, _RINGS + 1):
        if ring > 1:  # only the magnified pixels need more than the four target pixels around them
            large = (claims[-1] > ring - 1).nonzero()[:, 0]
            claims = [part[large] for part in claims]
        x, y, a00, a01, a10, a11, key, reach, _ = claims
        if key.numel() == 0:
            return
        col, row = (x - 0.5).floor(), (y - 0.5).floor()
        place = row.add(_MARGIN).mul_(winner.shape[1]).add_(col).add_(_MARGIN).long()
        dx, dy = col + 0.5 - x, row + 0.5 - y
        du, dv = a00 * dx + a01 * dy, a10 * dx + a11 * dy
        for i in range(1 - ring, ring + 1):
            for j in range(1 - ring, ring + 1):
                if max(i, 1 - i, j, 1 - j) < ring:
                    continue  # visited by an inner ring
                du_ij = (du + a00 * j).add_(a01, alpha=i).abs_()
                dv_ij = (dv + a10 * j).add_(a11, alpha=i).abs_()
                claim = torch.where(torch.maximum(du_ij, dv_ij) <= reach, key, nobody)
                flat.scatter_reduce_(0, place + (i * winner.shape[1] + j), claim, "amin")


def _keep_off(offset: Tensor, behind: Tensor, ahead: Tensor) -> Tensor:
    offset = torch.where(behind != 0, offset.clamp(min=0), offset)
    return torch.where(ahead != 0, offset.clamp(max=0), offset)


def _slope(before: Tensor, w: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of w between its neighbours along an axis: the difference to the next pixel on the flatter side, how much nearer
    a neighbour is, and whether another surface begins behind (1) or ahead (2). Pixels without known neighbours count as
    facing the camera.
    """
    ahead, behind = after - w, w - before
    ahead_size, behind_size, jump = ahead.abs(), behind.abs(), _JUMP * w
    slope = torch.where((ahead_size < behind_size) | behind.isnan(), ahead, behind).nan_to_num_(0.0)
    nearer = torch.fmax(ahead, -behind).nan_to_num_(0.0)
    return slope, nearer, (behind_size > jump).byte() + 2 * (ahead_size > jump).byte()
