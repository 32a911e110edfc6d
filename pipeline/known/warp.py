"""What is known of the video to be made: the source seen from the target cameras, its holes, and how to fill them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath, invert_rigid, transform, unproject
from pipeline.media.video import resize

# A source pixel claims the target pixels within its own square in the source image, grown by a quarter pixel: closed
# surfaces where neighbouring slopes disagree a little. At outlines it keeps to its square, so that nothing grows fat.
_REACH, _REACH_AT_EDGE = 0.75, 0.6
# Neighbours whose depths differ by more than 5 % stand on two surfaces (or on the blurred step between them) ...
_JUMP = 0.05
# ... and what lies behind the step is dropped where the step opens by more than a pixel.
_OPENING = 1.0
_RINGS = 4  # target pixels are looked for this far around a source pixel: magnifications up to about 8
_MARGIN = 2 * _RINGS + 1  # around the z-buffer, so that no claim needs a bounds check
_NOBODY = torch.iinfo(torch.int64).max
_LAYERS = 7  # of depth, by which holes are filled
_IN_FRONT = 0.1  # what is that share nearer than a hole lends it nothing
_AT_ONCE = 16  # frames that are filled at once: a long clip should not take much more memory than itself
_BLOCK = 2**17  # elements; of 2^13 ... 2^18 the fastest on two cores


@dataclass(frozen=True, eq=False)
class Measurement:
    """`video`: T 3 H W, RGB in [0, 1], 0 where unobserved. `mask`: T 1 H W bool, True = observed. `z`: how far away
    from the target cameras that is, nan where it is not known, None if it is not known at all; see `fill_unknown`."""

    video: Float[Tensor, "T 3 H W"]
    mask: Bool[Tensor, "T 1 H W"]
    z: Float[Tensor, "T H W"] | None = None


def warp_to_path(
    frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    hidden: Bool[Tensor, "T H W"] | None = None,
    wanted: Bool[Tensor, "T H W"] | None = None,
) -> Measurement:
    """The source clip as the target cameras would see it.

    `frames` in [0, 1]; `z` is the distance along the optical axis, in the unit of the poses; depths that are not finite
    and positive are unknown. Both K are in pixels of the frames. Frames whose target camera equals the source camera
    come back untouched, whatever their depth. `hidden`: True where the clip is not to be used (an object that is to be
    replaced); those pixels are seen from nowhere, and what stood behind them stays unknown. `wanted`: of the target's
    pixels those that are asked for; the others come back as unobserved, which saves most of the work where few are.
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

    video = torch.zeros_like(frames)
    mask = torch.zeros(T, 1, H, W, dtype=torch.bool, device=device)

    def warp(t: int) -> None:
        if torch.equal(source_pose[t], target_pose[t]) and torch.equal(source_K[t], target_K[t]):
            mask[t] = ~hidden[t] if wanted is None else ~hidden[t] & wanted[t]
            video[t] = torch.where(mask[t], frames[t], 0.0)
        else:
            seen = torch.where(hidden[t], torch.nan, z[t].to(device))
            asked = None if wanted is None else wanted[t]
            video[t], mask[t, 0] = _warp(frames[t], seen, homography[t].tolist(), epipole[t].tolist(), asked)

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
    image: Tensor, z: Tensor, A: list[list[float]], b: list[float], wanted: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One frame: each source pixel claims target pixels through its local linear map, the nearest claim wins.

    Only the winner's index is splatted; its map then leads each target pixel back to a sub-pixel position in the
    source, where the colour is looked up: sharp, and exact for planes.
    """
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
    observed = winner != _NOBODY
    if wanted is not None:
        observed &= wanted.to(device)
    colour = torch.zeros_like(image)
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
    return colour, observed


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


# --- what stood behind an object --------------------------------------------------------------------------------------

_AGREES = 0.06  # mean difference of two aligned frames, around a place, up to which they show the same background
_FEATURES = 1500  # corners that frames are aligned by


def see_behind(
    frames: Float[Tensor, "T 3 H W"], hidden: Bool[Tensor, "T H W"]
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T H W"]]:
    """The clip with what is hidden taken from other frames that saw it, nearest in time first, and what is left hidden.

    frames in [0, 1]; hidden: True where an object stands that is to go. Frames are aligned by a homography (corners
    outside of the object, RANSAC), exact for a camera that stands, pans or zooms and for flat backgrounds; where two
    aligned frames disagree around the hole, as they do under parallax, nothing is taken.
    """
    pictures = [np.ascontiguousarray(f.permute(1, 2, 0).cpu().numpy(), np.float32) for f in frames]
    holes = [h.cpu().numpy() for h in hidden]
    to_next = [
        _homography(pictures[i], pictures[i + 1], holes[i], holes[i + 1]) for i in range(len(pictures) - 1)
    ]  # None: the frames cannot be aligned, and nothing is carried across
    filled, left = [p.copy() for p in pictures], [h.copy() for h in holes]
    for t in range(len(pictures)):
        order = sorted(range(len(pictures)), key=lambda s, t=t: (abs(s - t), s))
        chains = {t: np.eye(3)}
        for s in order[1:]:
            if not left[t].any():
                break
            link = to_next[s] if s < t else to_next[s - 1]
            beside = chains.get(s + 1 if s < t else s - 1)
            if link is None or beside is None:
                continue
            chains[s] = beside @ (link if s < t else np.linalg.inv(link))
            found, usable = _aligned(pictures[s], holes[s], chains[s])
            agrees = agreement(found, pictures[t], usable & ~holes[t]) < _AGREES
            take = left[t] & usable & agrees
            filled[t][take] = found[take]
            left[t] &= ~take
    video = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in filled]).to(frames)
    return video, torch.stack([torch.from_numpy(h) for h in left]).to(hidden.device)


def _homography(a: np.ndarray, b: np.ndarray, hidden_a: np.ndarray, hidden_b: np.ndarray) -> np.ndarray | None:
    """From pixels of a to pixels of b (3 3), of what is not hidden; the identity where the camera stood still."""
    known = ~(hidden_a | hidden_b)
    if known.sum() < 64:
        return None
    if np.abs(a - b).mean(-1)[known].mean() < 0.004:  # less than the noise of a compressed video
        return np.eye(3)
    grey = [cv2.cvtColor((255 * x).round().astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (a, b)]
    corners = cv2.goodFeaturesToTrack(grey[0], _FEATURES, 0.01, 5, mask=(255 * ~hidden_a).astype(np.uint8))
    if corners is None or len(corners) < 12:
        return None
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(grey[0], grey[1], corners, None)  # type: ignore[call-overload]
    ok = ok[:, 0] > 0
    if ok.sum() < 12:
        return None
    matrix, inliers = cv2.findHomography(corners[ok], moved[ok], cv2.RANSAC, 1.0)
    if matrix is None or inliers.mean() < 0.4:
        return None
    return matrix


def _aligned(picture: np.ndarray, hidden: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture brought into another frame, and where it may be used there."""
    if np.array_equal(matrix, np.eye(3)):
        return picture, ~hidden
    size = picture.shape[1], picture.shape[0]
    found = cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    usable = cv2.warpPerspective((~hidden).astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    return found.clip(0, 1), usable > 0.999


def agreement(a: np.ndarray, b: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two pictures near each pixel, over what is known; infinite where nothing is near."""
    sigma = max(4.0, min(known.shape) / 24)
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), sigma)
    # finer than the misalignment that can be seen, coarser than noise
    difference = np.abs(cv2.GaussianBlur(np.where(known[..., None], a - b, 0), (0, 0), 1.0)).mean(-1)
    near = cv2.GaussianBlur(np.where(known, difference, 0).astype(np.float32), (0, 0), sigma)
    return np.where(weight > 1e-4, near / np.maximum(weight, 1e-4), np.inf)


def fill_unknown(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """The video with its holes filled smoothly from their surroundings, frame by frame; known pixels are untouched.

    Pull-push pyramid (Gortler et al., The Lumigraph, 1996). With `measurement.z` a hole takes nothing after what is
    nearer than that which it shows: what a camera uncovers beside a thing was behind it (as Daribo and Pesquet-Popescu,
    MMSP 2010, inpaint such holes). A frame without any known pixel becomes mid grey.
    """
    video, mask = measurement.video, measurement.mask
    if mask.all():
        return video
    unknown = video.new_tensor(torch.nan)
    z = unknown if measurement.z is None else measurement.z
    z = torch.where(mask[:, 0], z, unknown)
    place, layers = _layers(z, ~mask[:, 0])
    filled = torch.empty_like(video)
    for first in range(0, len(video), _AT_ONCE):
        span = slice(first, first + _AT_ONCE)
        colour, known, depth = video[span], mask[span].to(video.dtype), z[span, None].nan_to_num(torch.inf).log()
        found = torch.zeros_like(colour)
        for number, layer in enumerate(layers):
            share = (1 - (place[span, None] - number).abs()).clamp_min(0)
            if (share > 0).any():
                lends = known * ((depth - layer) / _IN_FRONT + 1).clamp(1e-6, 1)
                found += share * _pull_push(colour * lends, lends)
        filled[span] = torch.where(mask[span], colour, found)
    return filled


def _layers(z: Float[Tensor, "T H W"], holes: Bool[Tensor, "T H W"]) -> tuple[Float[Tensor, "T H W"], list[float]]:
    """How deep what holes show is, as a place among layers, and the log depths of these; z is nan in the holes.

    A hole is as deep as the farther of what ends it in its row. Not in its column: there a wall stands behind the
    ground, and does not go on below it. What opens towards the border of the picture was not hidden by anything: layer
    0 takes after all that there is.
    """
    left, right = _last_known(z), _last_known(z.flip(-1)).flip(-1)
    told = holes & (left > 0) & (right > 0)
    if not told.any():
        return torch.zeros_like(z), [-math.inf]
    behind = torch.maximum(left, right).log()
    sample = behind[told][:: max(1, int(told.sum()) >> 20)]
    first, last = sample.quantile(sample.new_tensor([0.02, 0.98])).tolist()
    place = 1 + ((behind - first) * ((_LAYERS - 1) / max(last - first, 1e-6))).clamp(0, _LAYERS - 1)
    place = torch.where(told, place, 0.0)[:, None]
    # no steps from row to row
    around = lambda part: F.avg_pool2d(F.avg_pool2d(part, (5, 1), 1, (2, 0)), (1, 5), 1, (0, 2))
    place = (around(place) / around(holes[:, None].to(z)).clamp_min(1e-6))[:, 0]
    return torch.where(holes, place, 0.0), [-math.inf, *torch.linspace(first, last, _LAYERS).tolist()]


def _last_known(z: Float[Tensor, "T H W"]) -> Float[Tensor, "T H W"]:
    """The last finite value up to each pixel of a row, 0 where there is none."""
    last = torch.where(z.isfinite(), torch.arange(z.shape[-1], device=z.device), -1).cummax(-1).values
    return torch.where(last >= 0, z.gather(-1, last.clamp_min(0)), 0.0)


def _pull_push(colour: Tensor, weight: Tensor) -> Tensor:
    """Colours for all pixels from colours premultiplied by weights in [0, 1]."""
    H, W = colour.shape[-2:]
    if H == 1 and W == 1:
        return torch.where(weight > 0, colour / weight.clamp_min(1e-8), 0.5)
    # Pull: means over 2x2; odd sides repeat their last row or column. One known pixel in four is full confidence.
    pad = (0, W % 2, 0, H % 2)
    small_weight = F.avg_pool2d(F.pad(weight, pad, mode="replicate"), 2)
    small_colour = F.avg_pool2d(F.pad(colour, pad, mode="replicate"), 2)
    gain = (small_weight * 4).clamp(max=1) / small_weight.clamp_min(1e-8)
    below = _pull_push(small_colour * gain, small_weight * gain)
    # Push: what is not known here comes from the level below.
    up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)[..., :H, :W]
    return colour + (1 - weight) * up


def composite(
    raw: Float[Tensor, "T 3 h w"], measurement: Measurement, *, seam_pixels: float
) -> Float[Tensor, "T 3 H W"]:
    """The generated video where nothing is known, the measurement elsewhere, with a soft seam inside the known side.

    `raw` in [0, 1] may be smaller and is enlarged to the measurement. Known pixels farther than `seam_pixels` from the
    nearest unknown one are bit-identical to the measurement; 0 is a hard cut. Raises ValueError if the numbers of
    frames differ or seam_pixels is negative.
    """
    video, mask = measurement.video, measurement.mask
    if len(raw) != len(video) or not seam_pixels >= 0:
        raise ValueError(f"{len(raw)} raw frames for {len(video)} measured ones, a seam of {seam_pixels} pixels")
    raw = resize(raw.to(video), (video.shape[-2], video.shape[-1]), mode="bicubic").clamp(0, 1)
    if seam_pixels == 0:
        return torch.where(mask, video, raw)
    known = rearrange(mask, "t 1 h w -> t h w").cpu().numpy().astype(np.uint8)
    # OpenCV has no unknown pixel to measure from in a full mask and then answers with a huge distance, as wanted.
    distance = np.stack([cv2.distanceTransform(k, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for k in known])
    ramp = (torch.from_numpy(distance)[:, None].to(video) / (seam_pixels + 1)).clamp(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    blend = torch.lerp(raw, video, ramp)
    far = torch.from_numpy(distance > seam_pixels)[:, None].to(video.device)
    return torch.where(far & mask, video, blend)
