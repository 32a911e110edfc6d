"""Periodic procedural textures: power-law noise and dead leaves, patterns, and materials such as brick and wood.

Power-law noise and dead leaves carry the statistics of natural images (Lee, Mumford and Huang, "Occlusion models for
natural images", IJCV 2001): an auto-encoder that has seen them serves real video.
"""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 256
PATTERNS = ("plain", "noise", "leaves", "stripes", "checks", "tiles", "dots", "marble")
MATERIALS = ("bricks", "wood", "grass", "gradient", "cracks", "brushed", "pebbles", "windows")
KINDS = PATTERNS + MATERIALS

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.20),
    "teal": (0.05, 0.62, 0.62),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.52, 0.16, 0.70),
    "pink": (0.97, 0.55, 0.72),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.93, 0.93, 0.93),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.08, 0.08, 0.09),
}


def power_noise(rng: np.random.Generator, exponent: float, size: int = SIZE, stretch: float = 1.0) -> np.ndarray:
    """Periodic Gaussian noise with amplitude spectrum 1/f^exponent, (size, size), zero mean, unit variance.

    It is drawn out along the first axis by `stretch`, as in wood, brushed metal or blades of grass.
    """
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    f = np.maximum(np.hypot(fy * stretch, fx), 1 / size)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / f**exponent
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field / (field.std() + 1e-9)).astype(np.float32)


def dead_leaves(rng: np.random.Generator, palette: np.ndarray, count: int, size: int = SIZE) -> np.ndarray:
    """Opaque discs, boxes and blades with power-law sizes painted over one another; periodic, (size, size, 3)."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = palette[0]
    smallest, largest = 1.5, size / rng.uniform(4, 10)
    u = rng.uniform(size=count)
    radii = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5  # p(r) ~ r^-3: scale invariance
    style = rng.integers(4)
    for radius in np.sort(radii)[::-1] if rng.uniform() < 0.3 else radii:
        colour = palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.3)
        colour = tuple(float(c) for c in np.clip(colour + rng.normal(0, 0.04, 3), 0, 1))
        centre = rng.uniform(0, size, 2)
        angle, aspect = rng.uniform(0, 180), rng.uniform(0.15, 1)
        reach = radius * 1.5
        shifts = [(dx, dy) for dx in (-size, 0, size) for dy in (-size, 0, size)]
        for dx, dy in shifts:
            x, y = centre[0] + dx, centre[1] + dy
            if not (-reach < x < size + reach and -reach < y < size + reach):
                continue
            if style == 0 or (style == 3 and radius > 12):
                centre16 = (round(x * 16), round(y * 16))
                cv2.circle(image, centre16, round(radius * 16), colour, -1, cv2.LINE_AA, 4)
            else:
                shape = (2 * radius, 2 * radius * (aspect if style == 1 else 0.25))
                if style == 2:
                    corners = cv2.boxPoints(((x, y), shape, angle))
                    cv2.fillConvexPoly(image, np.round(corners * 16).astype(np.int32), colour, cv2.LINE_AA, 4)
                else:
                    cv2.ellipse(image, ((x, y), shape, angle), colour, -1, cv2.LINE_AA)
    return image


def natural_palette(rng: np.random.Generator, count: int = 6) -> np.ndarray:
    """Colours of one material: a common hue, mostly muted, with varied brightness; (count, 3)."""
    base = np.array(list(COLOURS.values()))[rng.integers(len(COLOURS))]
    grey = base.mean()
    base = grey + (base - grey) * rng.uniform(0.1, 0.9)
    palette = base * rng.uniform(0.35, 1.6, (count, 1)) + rng.normal(0, 0.06, (count, 3))
    return np.clip(palette, 0.02, 0.98).astype(np.float32)


def make_texture(rng: np.random.Generator, kind: str, palette: np.ndarray) -> np.ndarray:
    """One periodic texture of `kind` in the given palette (first two colours dominate): (SIZE, SIZE, 3) in [0, 1]."""
    first, second = palette[0], palette[1 % len(palette)]
    v, u = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    if kind == "leaves":
        image = dead_leaves(rng, palette, int(rng.integers(150, 900)))
    elif kind == "pebbles":
        image = _pebbles(rng, palette)
    elif kind == "windows":
        image = _windows(rng, first, second)
    else:
        if kind == "plain":
            blend = np.zeros_like(u)
        elif kind == "noise":
            blend = 0.5 + 0.35 * power_noise(rng, rng.uniform(0.7, 1.6))
        elif kind == "marble":
            blend = 0.5 + 0.5 * np.sin(2 * np.pi * (u * rng.integers(1, 5) + 0.25 * power_noise(rng, 1.6)))
        elif kind == "stripes":
            cycles = rng.integers(0, 7, 2) + np.array([1, 0])
            wave = np.sin(2 * np.pi * (u * cycles[0] + v * cycles[1]))
            blend = np.clip(0.5 + wave * rng.uniform(1, 12), 0, 1)
        elif kind == "checks":
            cycles = 2 * rng.integers(1, 6)
            wave = np.sin(np.pi * u * cycles) * np.sin(np.pi * v * cycles)
            blend = np.clip(0.5 + wave * 12, 0, 1)
        elif kind == "dots":
            cycles = rng.integers(2, 8)
            distance = np.hypot((u * cycles) % 1 - 0.5, (v * cycles) % 1 - 0.5)
            blend = np.clip((rng.uniform(0.2, 0.42) - distance) * 12 + 0.5, 0, 1)
        elif kind == "gradient":
            phase = rng.uniform()
            blend = 0.5 + 0.5 * np.sin(2 * np.pi * (v + phase + 0.03 * power_noise(rng, 1.4)))
        elif kind == "wood":
            rings = u * rng.integers(2, 6) + 0.12 * power_noise(rng, 1.6) + 0.04 * power_noise(rng, 0.9, stretch=16)
            blend = 0.5 + 0.35 * np.sin(2 * np.pi * rings) + 0.12 * power_noise(rng, 0.8, stretch=16)
        elif kind == "brushed":
            blend = 0.35 + 0.18 * power_noise(rng, 0.6, stretch=24)
        elif kind == "grass":
            blend = 0.5 + 0.25 * power_noise(rng, 1.1) + 0.2 * power_noise(rng, 0.8, stretch=6)
        elif kind == "cracks":
            # the zero crossings of a smooth field are thin meandering lines
            lines = np.minimum(np.abs(power_noise(rng, 1.9)), np.abs(power_noise(rng, 1.7)))
            blend = np.clip(1 - lines / rng.uniform(0.03, 0.09), 0, 1) + 0.15 * power_noise(rng, 1.2)
        elif kind in ("tiles", "bricks"):
            rows = int(rng.integers(2, 9)) if kind == "tiles" else 2 * int(rng.integers(3, 7))
            columns, offset = rows // rng.integers(1, 3) or 1, 0.5 * rng.integers(2)
            if kind == "bricks":
                columns, offset = rows // 2, 0.5
            row = np.floor(v * rows)
            gap = 0.04 if kind == "tiles" else 0.07
            across = (u * columns + offset * (row % 2)) % 1
            down = (v * rows) % 1
            joint = np.minimum(np.minimum(across, 1 - across) * rows / columns, np.minimum(down, 1 - down))
            blend = np.clip((gap - joint) * 40 + 0.5, 0, 1)
            cell = np.floor(u * columns + offset * (row % 2)) % columns + columns * row
            shade = rng.uniform(0.75, 1.15, rows * columns + columns).astype(np.float32)[cell.astype(int)]
            first = first * shade[..., None]
        else:
            raise ValueError(f"unknown texture kind {kind!r}")
        image = first + (second - first) * np.clip(blend, 0, 1)[..., None]
    # Nothing real is flat: a little multi-scale variation in brightness on every surface.
    grain = power_noise(rng, rng.uniform(0.5, 1.3)) * rng.uniform(0.02, 0.13)
    return np.clip(image * (1 + grain[..., None]), 0, 1).astype(np.float32)


def _pebbles(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Grains and pebbles, each lit from one side, on sand: (SIZE, SIZE, 3)."""
    image = palette[0] * (0.85 + 0.12 * power_noise(rng, 0.5)[..., None])
    image = np.clip(image, 0, 1).astype(np.float32)
    count = int(rng.integers(60, 500))
    radii = 1.5 + 14 * rng.uniform(size=count) ** rng.uniform(3, 8)
    for radius in radii:
        colour = np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.2), 0, 1)
        x, y = rng.uniform(0, SIZE, 2)
        shape = (2 * radius, 2 * radius * rng.uniform(0.5, 1))
        angle = rng.uniform(0, 180)
        for dx in (-SIZE, 0, SIZE) if not 2 * radius < x < SIZE - 2 * radius else (0,):
            for dy in (-SIZE, 0, SIZE) if not 2 * radius < y < SIZE - 2 * radius else (0,):
                centre = (x + dx, y + dy)
                for shift, size, shade in ((0.25, 1.05, 0.5), (0.0, 1.0, 0.9), (-0.2, 0.6, 1.15)):
                    place = (centre[0] + shift * radius, centre[1] + shift * radius)
                    tone = tuple(float(c) for c in np.clip(colour * shade, 0, 1))
                    cv2.ellipse(image, (place, (shape[0] * size, shape[1] * size), angle), tone, -1, cv2.LINE_AA)
    return image


def _windows(rng: np.random.Generator, wall: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A house front: rows of framed panes, some of them lit or bright with sky: (SIZE, SIZE, 3)."""
    v, u = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    n = int(rng.integers(2, 6))
    columns, rows = n, max(1, n - int(rng.integers(0, 2)))
    x, y = np.abs((u * columns) % 1 - 0.5), np.abs((v * rows) % 1 - 0.5)
    half = rng.uniform(0.2, 0.38, 2)
    inside = np.maximum(x - half[0], y - half[1])  # signed distance to the pane, in cells
    cell = (np.floor(v * rows) * columns + np.floor(u * columns)).astype(int)
    panes = rng.uniform(0.05, 0.35, (rows * columns, 1)) * np.array([0.9, 1.0, 1.15])
    panes = np.where(rng.uniform(size=(len(panes), 1)) < 0.15, rng.uniform(0.5, 0.9, (len(panes), 3)), panes)
    soft = lambda edge: np.clip((edge - inside) * SIZE / n + 0.5, 0, 1)[..., None]
    image = wall * (1 + 0.05 * power_noise(rng, 1.2)[..., None])
    image = image + (frame - image) * soft(0.045)
    bars = (np.minimum(x, np.abs(y - 0.1)) > 0.02)[..., None] if rng.uniform() < 0.5 else 1.0
    return (image + (panes[cell] - image) * soft(0.0) * bars).astype(np.float32)


def mip_volume(texture: np.ndarray, levels: int = 6) -> np.ndarray:
    """Mip levels stretched back to full size and stacked, with one wrapped border pixel: (3, levels, S+2, S+2).

    Sampled trilinearly (level as depth) this is an anti-aliased periodic texture lookup in a single call.
    """
    stack = []
    level = texture
    for _ in range(levels):
        small = level.shape[0]
        tiled = np.pad(level, ((2, 2), (2, 2), (0, 0)), mode="wrap")
        scale = SIZE // small
        big = cv2.resize(tiled, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR) if scale > 1 else tiled
        margin = 2 * scale - 1
        stack.append(big[margin : margin + SIZE + 2, margin : margin + SIZE + 2])
        level = cv2.resize(level, (small // 2, small // 2), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.stack(stack).transpose(3, 0, 1, 2))
