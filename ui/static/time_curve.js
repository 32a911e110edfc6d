// The time curve of a move: which moment of the clip (upwards) each time of the result (to the right) shows. Prepended
// to camera_editor.js. timing: pairs [time, moment] from 0 to 1; none: as filmed.
function momentAt(timing, time) {
  if (!timing.length) return time;
  const after = timing.findIndex(([t]) => t >= time);
  if (after <= 0) return after < 0 ? timing[timing.length - 1][1] : timing[0][1];
  const [[t0, m0], [t1, m1]] = [timing[after - 1], timing[after]];
  return m0 + (m1 - m0) * (time - t0) / (t1 - t0);
}

// Draws into an SVG and lets its points be dragged, added (double click) and removed (double click, Delete).
// change: called with (timing, done); done is false while a point is being dragged.
function timeCurve(svg, change) {
  const [WIDTH, HEIGHT, PAD] = [320, 110, 12];
  let timing = [], moment = 0, chosen = -1;
  const points = () => timing.length ? timing : [[0, 0], [1, 1]];
  const x = (t) => PAD + t * (WIDTH - 2 * PAD), y = (m) => HEIGHT - PAD - m * (HEIGHT - 2 * PAD);
  const round = (v) => Math.round(1000 * Math.min(1, Math.max(0, v))) / 1000;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [round(((event.clientX - box.left) / box.width * WIDTH - PAD) / (WIDTH - 2 * PAD)),
      round((HEIGHT - PAD - (event.clientY - box.top) / box.height * HEIGHT) / (HEIGHT - 2 * PAD))];
  };
  // A point stays between its neighbours.
  const between = (all, i, [t, m]) => [
    Math.min(i + 1 < all.length ? all[i + 1][0] - 0.01 : 1, Math.max(i ? all[i - 1][0] + 0.01 : 0, t)), m];

  function draw() {
    const all = points();
    const line = [[0, all[0][1]], ...all, [1, all[all.length - 1][1]]];
    const now = momentAt(timing, moment);
    svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
    svg.innerHTML = `<rect class="rc-curve-well" x="${PAD}" y="${PAD}" width="${WIDTH - 2 * PAD}" height="${HEIGHT - 2 * PAD}"/>`
      + `<path class="rc-curve-line" d="M${line.map(([t, m]) => `${x(t).toFixed(1)} ${y(m).toFixed(1)}`).join('L')}"/>`
      + `<circle class="rc-curve-now" cx="${x(moment)}" cy="${y(now)}" r="4"/>`
      + all.map(([t, m], i) => `<circle class="rc-curve-point${i === chosen ? ' on' : ''}" data-point="${i}" tabindex="0" role="button"`
        + ` aria-label="At ${Math.round(100 * t)} percent of the result, ${Math.round(100 * m)} percent of the clip" cx="${x(t)}" cy="${y(m)}" r="7"/>`).join('');
  }
  const index = (event) => event.target.dataset.point === undefined ? -1 : Number(event.target.dataset.point);
  const edited = (all, done = true) => { timing = all; draw(); change(timing, done); };
  const without = (i) => points().filter((_, k) => k !== i);

  svg.addEventListener('pointerdown', (event) => {
    const i = index(event);
    if (i < 0) return;
    event.preventDefault();
    chosen = i;
    let moved = false;
    const shift = (now) => {
      moved = true;
      edited(points().map((point, k) => k === i ? between(points(), i, place(now)) : point), false);
    };
    const end = () => {
      window.removeEventListener('pointermove', shift);
      window.removeEventListener('pointerup', end);
      window.removeEventListener('pointercancel', end);
      if (moved) change(timing, true);
    };
    window.addEventListener('pointermove', shift);
    window.addEventListener('pointerup', end);
    window.addEventListener('pointercancel', end);
    draw();
  });
  svg.addEventListener('dblclick', (event) => {
    const i = index(event), [t, m] = place(event), all = points();
    if (i >= 0) { if (all.length > 1) edited(without(i)); return; }
    if (all.length >= 64 || all.some(([other]) => Math.abs(other - t) < 0.01)) return;
    chosen = all.filter(([other]) => other < t).length;
    edited([...all.slice(0, chosen), [t, m], ...all.slice(chosen)]);
  });
  svg.addEventListener('keydown', (event) => {
    const i = index(event), step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, 0.02], ArrowDown: [0, -0.02] }[event.key];
    if (i < 0) return;
    if (step) {
      const moved = points()[i].map((v, k) => round(v + step[k]));
      edited(points().map((point, k) => k === i ? between(points(), i, moved) : point));
    } else if (['Delete', 'Backspace'].includes(event.key) && points().length > 1) edited(without(i));
    else return;
    event.preventDefault();
    event.stopPropagation();
    const left = svg.querySelector(`[data-point="${Math.min(i, points().length - 1)}"]`);
    if (left) left.focus();
  });
  return (given, at) => { timing = given; moment = at; draw(); };
}
