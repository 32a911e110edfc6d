"""The warp of one frame as compiled loops, for the processor: what `warp._warp` says in tensors, a pixel at a time.

Numba compiles it at the first call and keeps that on disk. The loops release Python's lock, so that frames run in
parallel. `warp` holds the constants and says what they mean.
"""

from __future__ import annotations

import numba
import numpy as np

# no reordering that would forget what is not a number
_fast = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_F = np.float32
_NEARLY_BEHIND, _FLAT = _F(1e-6), _F(1e-4)
_HALF, _ONE, _ZERO, _NAN = _F(0.5), _F(1), _F(0), _F(np.nan)
_CUBIC = _F(-0.75)  # of the bicubic kernel, as PyTorch has it


@_fast
def claim(z, A, b, near, jump, opening_at_most, rings, reach, reach_at_edge, depth, winner, maps):
    """Enter the claims of a frame's pixels into `depth` and `winner`, H W, and their maps into `maps`, H*W 8.

    z: H W, nan or not positive where unknown. A, b: 3 3 and 3, float32. near: H+2r W+2r with r = 2 * rings + 1, where
    claims are of use; one element: everywhere. depth: filled with infinity; winner: with -1, then 16 * index + edges.
    """
    H, W = z.shape
    margin = 2 * rings + 1
    everywhere = near.size == 1
    width, height, room = _F(W), _F(H), _F(rings)
    above, here, below = np.empty(W + 2, _F), np.empty(W + 2, _F), np.empty(W + 2, _F)
    X, Y, Z, extent = np.empty(W, _F), np.empty(W, _F), np.empty(W, _F), np.empty(W, _F)
    A00, A01, A10, A11 = np.empty(W, _F), np.empty(W, _F), np.empty(W, _F), np.empty(W, _F)
    edges, valid = np.empty(W, np.uint8), np.empty(W, np.bool_)
    _disparity(z, 0, above)
    above[:] = _NAN
    _disparity(z, 0, here)
    for r in range(H):
        if r + 1 < H:
            _disparity(z, r + 1, below)
        else:
            below[:] = _NAN
        v = _F(r) + _HALF
        n0, n1, n2 = A[0, 1] * v + A[0, 2], A[1, 1] * v + A[1, 2], A[2, 1] * v + A[2, 2]
        for c in range(W):
            u = _F(c) + _HALF
            w = here[c + 1]
            D = A[2, 0] * u + n2 + w * b[2]
            inverse = _ONE / D
            x, y = (A[0, 0] * u + n0 + w * b[0]) * inverse, (A[1, 0] * u + n1 + w * b[1]) * inverse
            inside = (D > _NEARLY_BEHIND) & (abs(x - width * _HALF) < width * _HALF + room)
            inside &= abs(y - height * _HALF) < height * _HALF + room
            steep = _F(jump) * w
            # differences to the neighbours: along the flatter side, and how much nearer one of them is
            ahead, behind = here[c + 2] - w, w - here[c]
            size_ahead, size_behind = abs(ahead), abs(behind)
            wu = ahead if (size_ahead < size_behind) | (behind != behind) else behind
            wu = wu if wu == wu else _ZERO
            step = _nearer(ahead, -behind)
            edge = np.uint8(size_behind > steep) + 2 * np.uint8(size_ahead > steep)
            ahead, behind = below[c + 1] - w, w - above[c + 1]
            size_ahead, size_behind = abs(ahead), abs(behind)
            wv = ahead if (size_ahead < size_behind) | (behind != behind) else behind
            wv = wv if wv == wv else _ZERO
            step = max(step, _nearer(ahead, -behind))
            edge += 4 * np.uint8(size_behind > steep) + 8 * np.uint8(size_ahead > steep)
            # pixels of parallax per unit of disparity
            px, py = (b[0] - x * b[2]) * inverse, (b[1] - y * b[2]) * inverse
            opens = max(abs(px), abs(py)) * step
            inside &= (step <= steep) | (opens <= _F(opening_at_most))
            xu, xv = (A[0, 0] - x * A[2, 0]) * inverse + px * wu, (A[0, 1] - x * A[2, 1]) * inverse + px * wv
            yu, yv = (A[1, 0] - y * A[2, 0]) * inverse + py * wu, (A[1, 1] - y * A[2, 1]) * inverse + py * wv
            det = xu * yv - xv * yu
            large = _HALF * max(abs(xu) + abs(xv), abs(yu) + abs(yv))
            valid[c] = inside & (det > _FLAT) & (large <= room)  # a negative determinant: seen from behind
            inverse = _ONE / det
            A00[c], A01[c], A10[c], A11[c] = yv * inverse, -xv * inverse, -yu * inverse, xu * inverse
            X[c], Y[c], Z[c], extent[c], edges[c] = x, y, D / w, large, edge
        for c in range(W):
            if not valid[c]:
                continue
            x, y = X[c], Y[c]
            col, row = int(np.floor(x - _HALF)), int(np.floor(y - _HALF))
            if not everywhere and not near[row + margin, col + margin]:
                continue
            ring = 1
            while ring < rings and extent[c] > _F(ring):
                ring += 1
            a00, a01, a10, a11, far = A00[c], A01[c], A10[c], A11[c], Z[c]
            index = r * W + c
            its = maps[index]
            its[0], its[1], its[2], its[3], its[4], its[5] = x, y, a00, a01, a10, a11
            its[6], its[7] = _F(c) + _HALF, v
            code = np.int32(16 * index + edges[c])
            limit = _F(reach_at_edge) if edges[c] else _F(reach)
            for i in range(max(row + 1 - ring, 0), min(row + ring, H - 1) + 1):
                dy = _F(i) + _HALF - y
                for j in range(max(col + 1 - ring, 0), min(col + ring, W - 1) + 1):
                    dx = _F(j) + _HALF - x
                    if abs(a00 * dx + a01 * dy) <= limit and abs(a10 * dx + a11 * dy) <= limit and far < depth[i, j]:
                        depth[i, j] = far
                        winner[i, j] = code
        above, here, below = here, below, above


@_fast
def look_up(image, maps, wanted, winner, seen, colour):
    """Colours and whether there is one, for the target's pixels that a claim has won. image, colour: C H W."""
    C, H, W = image.shape
    every = wanted.size == 1
    for i in range(H):
        for j in range(W):
            code = winner[i, j]
            if code < 0 or not (every or wanted[i, j]):
                seen[i, j] = False
                for k in range(C):
                    colour[k, i, j] = _ZERO
                continue
            seen[i, j] = True
            its = maps[code >> 4]
            dx, dy = _F(j) + _HALF - its[0], _F(i) + _HALF - its[1]
            du, dv = its[2] * dx + its[3] * dy, its[4] * dx + its[5] * dy
            if code & 15:  # at an edge colours are not looked up towards the other surface
                if (code & 1 and du < 0) or (code & 2 and du > 0):
                    du = _ZERO
                if (code & 4 and dv < 0) or (code & 8 and dv > 0):
                    dv = _ZERO
            x, y = its[6] + du - _HALF, its[7] + dv - _HALF
            left, top = int(np.floor(x)) - 1, int(np.floor(y)) - 1
            wx0, wx1, wx2, wx3 = _weights(x - np.floor(x))
            wy0, wy1, wy2, wy3 = _weights(y - np.floor(y))
            if left >= 0 and top >= 0 and left + 3 < W and top + 3 < H:
                for k in range(C):
                    total = _ZERO
                    a, b, c, d = image[k, top], image[k, top + 1], image[k, top + 2], image[k, top + 3]
                    total += wy0 * (wx0 * a[left] + wx1 * a[left + 1] + wx2 * a[left + 2] + wx3 * a[left + 3])
                    total += wy1 * (wx0 * b[left] + wx1 * b[left + 1] + wx2 * b[left + 2] + wx3 * b[left + 3])
                    total += wy2 * (wx0 * c[left] + wx1 * c[left + 1] + wx2 * c[left + 2] + wx3 * c[left + 3])
                    total += wy3 * (wx0 * d[left] + wx1 * d[left + 1] + wx2 * d[left + 2] + wx3 * d[left + 3])
                    colour[k, i, j] = min(max(total, _ZERO), _ONE)
                continue
            c0, c1 = min(max(left, 0), W - 1), min(max(left + 1, 0), W - 1)
            c2, c3 = min(max(left + 2, 0), W - 1), min(max(left + 3, 0), W - 1)
            for k in range(C):
                total = _ZERO
                for n in range(4):
                    line = image[k, min(max(top + n, 0), H - 1)]
                    wy = wy0 if n == 0 else wy1 if n == 1 else wy2 if n == 2 else wy3
                    total += wy * (wx0 * line[c0] + wx1 * line[c1] + wx2 * line[c2] + wx3 * line[c3])
                colour[k, i, j] = min(max(total, _ZERO), _ONE)


@_fast
def _disparity(z, r, row):
    W = z.shape[1]
    row[0] = row[W + 1] = _NAN
    for c in range(W):
        value = z[r, c]
        row[c + 1] = _ONE / value if (value > 0) & (value < np.inf) else _NAN


@_fast
def _nearer(a, b):
    """The larger one; the other where one is not a number, 0 where both are."""
    larger = a if (a >= b) | (b != b) else b
    return larger if larger == larger else _ZERO


@_fast
def _weights(t):
    """Of the four pixels around a place at t between the middle two (Keys 1981)."""
    s, a = _ONE - t, _CUBIC
    far = lambda x: ((a * x - _F(5) * a) * x + _F(8) * a) * x - _F(4) * a
    close = lambda x: ((a + _F(2)) * x - (a + _F(3))) * x * x + _ONE
    return far(t + _ONE), close(t), close(s), far(s + _ONE)
