// The path of a camera move, as pipeline/moves.py computes it: keyframes {time, eye, target, roll, fov} in subject
// distances, OpenCV axes, degrees. Prepended to camera_editor.js.
const vec = {
  add: (a, b) => a.map((x, i) => x + b[i]),
  sub: (a, b) => a.map((x, i) => x - b[i]),
  scale: (a, s) => a.map((x) => x * s),
  dot: (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0),
  cross: (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]],
  length: (a) => Math.hypot(...a),
  unit: (a) => { const l = Math.hypot(...a) || 1; return a.map((x) => x / l); },
};
const radians = (degrees) => degrees * Math.PI / 180;
const degrees = (angle) => angle * 180 / Math.PI;

// Slopes of the modified Akima spline (as scipy's "makima") of one coordinate.
function akimaSlopes(times, values) {
  const n = times.length;
  const m = [];
  for (let i = 0; i + 1 < n; i++) m.push((values[i + 1] - values[i]) / (times[i + 1] - times[i]));
  if (n === 2) return [m[0], m[0]];
  const before = 2 * m[0] - m[1], after = 2 * m[n - 2] - m[n - 3];
  const all = [2 * before - m[0], before, ...m, after, 2 * after - m[n - 2]];
  const weights = [...Array(n).keys()].map((i) => [
    Math.abs(all[i + 3] - all[i + 2]) + Math.abs(all[i + 3] + all[i + 2]) / 2,
    Math.abs(all[i + 1] - all[i]) + Math.abs(all[i + 1] + all[i]) / 2,
  ]);
  const largest = Math.max(...weights.map(([a, b]) => a + b));
  return weights.map(([a, b], i) => a + b > 1e-9 * largest
    ? (a * all[i + 1] + b * all[i + 2]) / (a + b) : (all[i] + all[i + 3]) / 2);
}

// A function from times to rows [eye, target, roll (radians), log fov]; it stands still where a keyframe is repeated.
function splineThrough(keyframes, ownFov) {
  const times = keyframes.map((k) => k.time);
  const rows = keyframes.map((k) => [...k.eye, ...k.target, radians(k.roll || 0), Math.log(k.fov || ownFov)]);
  const same = (a, b) => a.every((x, i) => x === b[i]);
  if (rows.every((row) => same(row, rows[0]))) return () => rows[0];
  const slopes = rows[0].map((_, c) => akimaSlopes(times, rows.map((row) => row[c])));
  const rests = rows.map((row, i) => (i > 0 && same(row, rows[i - 1])) || (i + 1 < rows.length && same(row, rows[i + 1])));
  return (time) => {
    const t = Math.min(Math.max(time, times[0]), times[times.length - 1]);
    let i = 0;
    while (i + 2 < times.length && t > times[i + 1]) i++;
    const width = times[i + 1] - times[i], s = (t - times[i]) / width;
    const [a, b, c, d] = [(1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s * s * (3 - 2 * s), s * s * (s - 1)];
    return rows[i].map((value, k) => a * value + c * rows[i + 1][k]
      + width * (b * (rests[i] ? 0 : slopes[k][i]) + d * (rests[i + 1] ? 0 : slopes[k][i + 1])));
  };
}

const EASE_WAYS = { in: (u) => u * u, out: (u) => 1 - (1 - u) ** 2, 'in-out': (u) => u * u * (3 - 2 * u) };

// The time at which the spline is where an eased camera is.
function easedTime(keyframes, time) {
  const i = keyframes.findIndex((k, n) => n + 1 < keyframes.length && time > k.time && time < keyframes[n + 1].time);
  const way = i >= 0 && EASE_WAYS[keyframes[i].ease];
  if (!way) return time;
  const begins = keyframes[i].time, width = keyframes[i + 1].time - begins;
  return begins + width * way((time - begins) / width);
}

// A function from the moment of the result, 0 to 1, to {eye, target, roll, fov} (degrees).
function pathOf(move, ownFov) {
  const spline = splineThrough(move.keyframes, ownFov);
  const camera = (row) => ({ eye: row.slice(0, 3), target: row.slice(3, 6), roll: degrees(row[6]), fov: Math.exp(row[7]) });
  if (move.speed === 'keyframes' || !move.speed) return (time) => camera(spline(easedTime(move.keyframes, time)));
  const count = 2048, way = [0];
  const place = (row) => [...row.slice(0, 3), ...vec.unit(vec.sub(row.slice(3, 6), row.slice(0, 3))), row[6], row[7]];
  let last = place(spline(0));
  for (let i = 1; i <= count; i++) {
    const next = place(spline(i / count));
    way.push(way[i - 1] + vec.length(vec.sub(next, last)));
    last = next;
  }
  return (time) => {
    const share = (move.speed === 'eased' ? 3 * time ** 2 - 2 * time ** 3 : time) * way[count];
    if (way[count] < 1e-12) return camera(spline(time));
    let low = 0, high = count;
    while (high - low > 1) { const mid = (low + high) >> 1; if (way[mid] < share) low = mid; else high = mid; }
    const inside = way[high] > way[low] ? (share - way[low]) / (way[high] - way[low]) : 0;
    return camera(spline((low + Math.min(1, Math.max(0, inside))) / count));
  };
}

// Right, down and forward of a camera, in OpenCV axes.
function axesOf({ eye, target, roll }) {
  const z = vec.unit(vec.sub(target, eye));
  const level = vec.unit(vec.cross([0, 1, 0], z));
  const down = vec.cross(z, level);
  const [c, s] = [Math.cos(radians(roll || 0)), Math.sin(radians(roll || 0))];
  return { x: level.map((v, i) => c * v + s * down[i]), y: down.map((v, i) => c * v - s * level[i]), z };
}

window.recapturePath = { pathOf, axesOf };
