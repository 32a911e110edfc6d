// The camera editor: the clip's point cloud in Plotly, and over it, in SVG, the path, its keyframes and their handles.
// Runs as the js_on_load of a gr.HTML, after camera_path.js: element, props, trigger and watch are given.
// value: {clouds, plotly, width, height, fov, frames, fps, move, own, serial}, or {empty}; a new serial brings a new move
// from Python, and an edit puts its own there. Events: 'edit' {at}, 'reset', 'save' {format}.
const find = (selector) => element.querySelector(selector);
const view = find('.rc-cloud-view'), overlay = find('.rc-overlay'), note = find('.rc-empty'), well = find('.rc-well');
const root = (window.gradio_config && window.gradio_config.root) || '';
const field = (name) => find(`[data-field="${name}"]`);
const MARGIN = 1.12; // the view shows this much more than the camera's picture
const PLACES = ['eye', 'target'];
let scene = null; // the value on show
let clouds = [];
let move = { keyframes: [{ time: 0, eye: [0, 0, 0], target: [0, 0, 1], roll: 0, fov: null }], speed: 'keyframes', timing: [] };
let path = pathOf(move, 55);
let selected = 0, moment = 0, through = false, picking = false, playing = 0, drag = null, viewFov = 55, serial = null;
let past = [], future = [];
let sketching = false; // a path is being drawn from above
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', KEPT = 'recapture-kept'; // the name under which the browser keeps them
let kept = remembered(); // other paths, to be compared; a path means the same on every clip
let shownCloud = -1, drawing = false, affine = null, armed = false;

// --- the scene --------------------------------------------------------------------------------------------------------

function loadPlotly(url) {
  // Once, and only when there is something to draw: it is the largest file of the page.
  window.recapturePlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = root + url;
    script.onload = resolve;
    script.onerror = () => { window.recapturePlotly = null; reject(new Error('the plotting code did not load')); };
    document.head.append(script);
  });
  return window.recapturePlotly;
}

async function readCloud(url) {
  const answer = await fetch(root + url);
  if (!answer.ok) throw new Error('the point cloud did not load');
  const buffer = await answer.arrayBuffer();
  const n = new DataView(buffer).getUint32(0, true);
  const head = new Float32Array(buffer, 4, 7);
  const palette = new Uint8Array(buffer, 32, 768);
  const packed = new Uint16Array(buffer, 800, 3 * n);
  const index = new Uint8Array(buffer, 800 + 6 * n, n);
  const axes = [0, 1, 2].map((k) => {
    const axis = new Float32Array(n);
    for (let p = 0; p < n; p++) axis[p] = head[k] + (packed[3 * p + k] / 65535) * head[3 + k];
    return axis;
  });
  const colours = Array.from({ length: 256 }, (_, c) =>
    [c / 255, `rgb(${palette[3 * c]},${palette[3 * c + 1]},${palette[3 * c + 2]})`]);
  return { n, axes, index, colours, low: [...head.slice(0, 3)], extent: [...head.slice(3, 6)], distance: head[6] };
}

const cloudAt = (i) => (clouds[i] ??= readCloud(scene.clouds[i]));
const plot = () => view._fullLayout && view._fullLayout.scene && view._fullLayout.scene._scene;
// OpenCV axes in subject distances <-> Plotly's data axes (x right, y forward, z up) <-> the unit cube it draws in
const toScene = ([x, y, z]) => [x, z, -y].map((v, k) => (v * affine.distance - affine.middle[k]) / affine.largest);
const fromScene = (p) => { const [x, y, z] = p.map((v, k) => (v * affine.largest + affine.middle[k]) / affine.distance); return [x, -z, y]; };
const vector = ([x, y, z]) => ({ x, y, z });
const list = ({ x, y, z }) => [x, y, z];

function frameBox() {
  // Where the camera's picture lies in the view.
  const { clientWidth: w, clientHeight: h } = view;
  const scale = Math.min(w / scene.width, h / scene.height) / MARGIN;
  const [width, height] = [scene.width * scale, scene.height * scale];
  return { left: (w - width) / 2, top: (h - height) / 2, width, height };
}

function setFov(fov) {
  viewFov = fov;
  const p = plot();
  if (!p || !view.clientHeight) return;
  const box = frameBox();
  const tangent = Math.tan(radians(fov) / 2) * box.height / Math.max(box.width, box.height);
  p.glplot.fovy = 2 * Math.atan(tangent * view.clientHeight / box.height);
  p.glplot.redraw();
}

function lookFrom(camera, commit = true) {
  const { x, y } = axesOf(camera);
  const up = vec.unit([-y[0], -y[2], y[1]]);
  setFov(camera.fov || scene.fov);
  const [eye, center] = [toScene(camera.eye), toScene(camera.target)];
  plot().camera.lookAt(eye, center, up);
  plot().glplot.redraw();
  if (commit) {
    return window.Plotly.relayout(view, { 'scene.camera': { eye: vector(eye), center: vector(center), up: vector(up) } }).then(draw);
  }
}

function viewCamera() {
  const camera = plot().getCamera();
  return { eye: fromScene(list(camera.eye)), target: fromScene(list(camera.center)), roll: 0, fov: viewFov };
}

// Projection of points to pixels of the view: ours, since Plotly's own matrix lags a frame behind its field of view.
function projector() {
  const m = plot().glplot.cameraParams.view, { clientWidth: w, clientHeight: h } = view;
  const focal = h / 2 / Math.tan(plot().glplot.fovy / 2);
  const into = (p) => [0, 1, 2].map((r) => m[r] * p[0] + m[4 + r] * p[1] + m[8 + r] * p[2] + m[12 + r]);
  return {
    to(point) {
      const v = into(toScene(point));
      return v[2] < -1e-4 ? [w / 2 + focal * v[0] / -v[2], h / 2 - focal * v[1] / -v[2], -v[2]] : null;
    },
    from(x, y, depth) {
      const v = vec.sub([(x - w / 2) / focal * depth, (h / 2 - y) / focal * depth, -depth], [m[12], m[13], m[14]]);
      return fromScene([0, 1, 2].map((c) => m[4 * c] * v[0] + m[4 * c + 1] * v[1] + m[4 * c + 2] * v[2]));
    },
  };
}

async function drawScene(value) {
  const first = await cloudAt(0);
  await loadPlotly(value.plotly);
  if (scene !== value) return false; // a newer clip came meanwhile
  affine = { largest: Math.max(...first.extent), middle: first.low.map((v, k) => v + first.extent[k] / 2), distance: first.distance };
  const axis = (k) => ({ visible: false, showspikes: false, range: [first.low[k], first.low[k] + first.extent[k]] });
  const size = Math.max(2, Math.sqrt(view.clientWidth * view.clientHeight / first.n) * 0.95);
  const [x, y, z] = first.axes;
  await window.Plotly.newPlot(view, [{
    type: 'scatter3d', mode: 'markers', x, y, z, hoverinfo: 'skip',
    marker: { size, symbol: 'square', opacity: 1, color: first.index, cmin: 0, cmax: 255, colorscale: first.colours, line: { width: 0 } },
  }], {
    margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: 'rgba(0,0,0,0)',
    scene: {
      dragmode: 'turntable', bgcolor: 'rgba(0,0,0,0)', xaxis: axis(0), yaxis: axis(1), zaxis: axis(2),
      aspectmode: 'manual', aspectratio: vector(first.extent.map((e) => e / affine.largest)),
      camera: { eye: vector(toScene([0, 0, 0])), center: vector(toScene([0, 0, 1])), up: vector([0, 0, 1]) },
    },
  }, { displayModeBar: false, responsive: true, scrollZoom: true, plotGlPixelRatio: 1 });
  if (scene !== value) return false;
  shownCloud = 0;
  setFov(scene.fov);
  overview();
  if (!watching) watchView();
  element.dataset.points = first.n;
  return true;
}

function overview() {
  // From behind the filming camera, above its right shoulder: clip, path and camera are all in sight.
  const p = path(1);
  const reach = Math.max(0.9, 1.3 * vec.length(p.eye));
  return lookFrom({ eye: [0.75 * reach, -0.6 * reach, -0.9 * reach], target: [0, 0, 0.7], roll: 0, fov: scene.fov });
}

async function showCloud() {
  // The cloud of the moment; while one is being drawn the others wait, and only the last of them is drawn.
  if (drawing || !scene || !affine) return;
  const wanted = Math.round(momentAt(move.timing, moment) * (scene.clouds.length - 1));
  if (wanted === shownCloud) return;
  drawing = true;
  try {
    const cloud = await cloudAt(wanted), [x, y, z] = cloud.axes;
    await window.Plotly.restyle(view, { x: [x], y: [y], z: [z], 'marker.color': [cloud.index], 'marker.colorscale': [cloud.colours] }, [0]);
    shownCloud = wanted;
    setFov(viewFov);
  } finally { drawing = false; }
  showCloud();
}

let lastView = '', watching = false;
function watchView() {
  // Plotly tells of a turned view only when it comes to rest; the overlay has to go with it.
  const p = plot();
  watching = Boolean(p && element.isConnected);
  if (!watching) return;
  const now = [...p.glplot.cameraParams.view].map((v) => v.toFixed(5)).join() + view.clientWidth + view.clientHeight + p.glplot.fovy;
  if (now !== lastView) { lastView = now; draw(); }
  requestAnimationFrame(watchView);
}

// --- the overlay ------------------------------------------------------------------------------------------------------

function draw() {
  if (!scene || !affine || !plot() || !view.clientWidth) return; // nothing is drawn yet, or a newer clip is on its way
  const { to } = projector();
  const line = (points) => points.map((p) => p && to(p)).reduce(([d, pen], q) =>
    [q ? `${d}${pen ? 'L' : 'M'}${q[0].toFixed(1)} ${q[1].toFixed(1)}` : d, Boolean(q)], ['', false])[0];
  const standing = viewCamera().eye;
  const near = (point) => vec.length(vec.sub(point, standing)) < 0.03;
  function frustum(camera, size, style) {
    if (near(camera.eye)) return '';
    const { x, y, z } = axesOf(camera), t = Math.tan(radians(camera.fov || scene.fov) / 2) * size;
    const [w, h] = [scene.width, scene.height].map((s) => t * s / Math.max(scene.width, scene.height));
    const corner = (a, b) => vec.add(camera.eye, vec.add(vec.scale(z, size), vec.add(vec.scale(x, a * w), vec.scale(y, b * h))));
    const [a, b, c, d] = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)], e = camera.eye;
    return `<path class="${style}" d="${line([a, b, c, d, a, e, b])}${line([c, e, d])}${line([a, vec.add(corner(0, -1), vec.scale(y, -0.5 * h)), b])}"/>`;
  }
  let out = '';
  if (!through) {
    const steps = 24 * Math.max(2, move.keyframes.length);
    const eyes = Array.from({ length: steps + 1 }, (_, i) => path(i / steps).eye);
    out += frustum({ eye: [0, 0, 0], target: [0, 0, 1], roll: 0, fov: scene.fov }, 0.16, 'rc-source');
    kept.forEach((other) => {
      const along = pathOf(other, scene.fov), all = 24 * Math.max(2, other.keyframes.length);
      out += `<path class="rc-path-kept" d="${line(Array.from({ length: all + 1 }, (_, i) => along(i / all).eye))}"/>`;
    });
    out += `<path class="rc-path-under" d="${line(eyes)}"/><path class="rc-path" d="${line(eyes)}"/>`;
    move.keyframes.forEach((k, i) => { out += frustum(k, 0.11, i === selected ? 'rc-key on' : 'rc-key'); });
    const now = path(moment);
    out += frustum(now, 0.14, 'rc-now');
    const chosen = move.keyframes[selected];
    if (chosen && !near(chosen.eye)) out += `<path class="rc-aim" d="${line([chosen.eye, chosen.target])}"/>`;
    const handle = (point, i, place) => {
      const q = to(point);
      if (!q || near(point)) return '';
      const at = `cx="${q[0].toFixed(1)}" cy="${q[1].toFixed(1)}"`, on = i === selected ? ' on' : '';
      return `<circle class="rc-grip" data-index="${i}" data-place="${place}" ${at} r="16"/>`
        + `<circle class="rc-handle ${place}${on}" ${at} r="${place === 'eye' ? 7 : 6}"/>`
        + (place === 'eye' ? `<text class="rc-number" x="${(q[0] + 10).toFixed(1)}" y="${(q[1] - 9).toFixed(1)}">${i + 1}</text>` : '');
    };
    if (chosen) out += handle(chosen.target, selected, 'target');
    move.keyframes.map((k, i) => [k, i]).sort(([, i], [, j]) => (i === selected) - (j === selected))
      .forEach(([k, i]) => { out += handle(k.eye, i, 'eye'); });
  }
  const box = frameBox();
  const { clientWidth: w, clientHeight: h } = view;
  const inner = `M${box.left} ${box.top}h${box.width}v${box.height}h${-box.width}z`;
  if (through) out += `<path class="rc-mask" fill-rule="evenodd" d="M0 0h${w}v${h}h${-w}z${inner}"/>`;
  out += `<path class="rc-frame" d="${inner}"/>`;
  overlay.setAttribute('viewBox', `0 0 ${w} ${h}`);
  overlay.innerHTML = out;
}

// --- what can be done -------------------------------------------------------------------------------------------------

const copy = (value) => JSON.parse(JSON.stringify(value));

function commit(change) {
  // One step of the history: change the move, tell Python.
  const before = copy({ move, selected });
  change();
  past.push(before);
  if (past.length > 200) past.shift();
  future = [];
  changed();
}

function changed(tell = true) {
  path = pathOf(move, scene ? scene.fov : 55);
  selected = Math.min(selected, move.keyframes.length - 1);
  refresh();
  draw();
  showCloud();
  if (through && scene && affine && plot()) lookFrom(path(moment), false);
  if (tell) {
    const at = move.keyframes[selected] ? move.keyframes[selected].time : 0;
    props.value = { ...scene, move: { ...copy(move), version: 1 }, own: true };
    trigger('edit', { at });
  }
}

function travel(from, to) {
  if (!from.length) return;
  to.push(copy({ move, selected }));
  ({ move, selected } = from.pop());
  changed();
}

// What the browser's storage holds may be anything: only what is a path is taken.
function remembered() {
  const place = (p) => Array.isArray(p) && p.length === 3 && p.every(Number.isFinite);
  const usable = (m) => Array.isArray(m?.timing) && Array.isArray(m.keyframes) && m.keyframes.length > 0
    && m.keyframes.every((k) => k && Number.isFinite(k.time) && place(k.eye) && place(k.target));
  try {
    const found = JSON.parse(window.localStorage.getItem(KEPT));
    return Array.isArray(found) ? found.filter(usable).slice(0, LETTERS.length) : [];
  } catch { return []; } // no storage is given to the page, or there is no JSON in it
}

function remember() {
  try { window.localStorage.setItem(KEPT, JSON.stringify(kept)); } catch { /* they last as long as the page then */ }
}

const keptIndex = () => kept.findIndex((other) => JSON.stringify(other) === JSON.stringify(move));

function fromAbove() {
  // Over the middle between the path, what it looks at and the filming camera.
  const points = [[0, 0, 0], [0, 0, 1], ...move.keyframes.map((k) => k.eye)];
  const [low, high] = [Math.min, Math.max].map((most) => [0, 2].map((axis) => most(...points.map((p) => p[axis]))));
  const [x, z] = [0, 1].map((k) => (low[k] + high[k]) / 2);
  const away = 1.5 * Math.max(1, high[0] - low[0], high[1] - low[1]) / Math.tan(radians(scene.fov) / 2);
  return lookFrom({ eye: [x, -away, z - 1e-3 * away], target: [x, 0, z], roll: 0, fov: scene.fov });
}

function sketched(strokes) {
  // A keyframe at even distances along what was drawn, from its first point on, at the height of the first keyframe.
  const way = [0];
  for (let i = 1; i < strokes.length; i++) way.push(way[i - 1] + vec.length(vec.sub(strokes[i], strokes[i - 1])));
  const length = way[way.length - 1], count = Math.min(9, Math.max(2, Math.round(length / 0.15) + 1));
  const target = move.keyframes[selected].target;
  const keyframes = Array.from({ length: count }, (_, n) => {
    const at = length * n / (count - 1);
    let i = 1;
    while (i + 1 < way.length && way[i] < at) i++;
    const share = way[i] > way[i - 1] ? (at - way[i - 1]) / (way[i] - way[i - 1]) : 0;
    const eye = clean(vec.add(vec.scale(strokes[i - 1], 1 - share), vec.scale(strokes[i], share)));
    return { time: n / (count - 1), eye, target: [...target], roll: 0, fov: null, ease: '' };
  });
  if (length < 0.02 || keyframes.some((k) => vec.length(vec.sub(k.eye, k.target)) < 0.05)) return null;
  return keyframes;
}

const clean = (point) => point.map((v) => Math.max(-100, Math.min(100, Math.round(v * 1e4) / 1e4)));

function insert(keyframe, after) {
  // After the last one the others make room; between two it takes the middle.
  const all = move.keyframes, n = all.length;
  if (after === n - 1) {
    if (n > 1 || all[0].time > 0) all.forEach((k) => { k.time = Math.round(k.time * (n > 1 ? (n - 1) / n : 0) / (all[n - 1].time || 1) * 1e6) / 1e6; });
    keyframe.time = 1;
  } else {
    keyframe.time = (all[after].time + all[after + 1].time) / 2;
  }
  all.splice(after + 1, 0, keyframe);
  selected = after + 1;
}

const actions = {
  add() {
    const { eye, target, fov } = viewCamera();
    commit(() => insert({ eye: clean(eye), target: clean(target), roll: 0, fov: Math.abs(fov - scene.fov) < 0.01 ? null : Math.round(fov * 100) / 100 }, selected));
    say(`Keyframe ${selected + 1} added where you look from.`);
  },
  split() {
    const times = move.keyframes.map((k) => k.time);
    if (times.some((t) => Math.abs(t - moment) < 0.005)) { say('There is a keyframe at this moment already; move the slider first.'); return; }
    const now = path(moment), after = times.filter((t) => t < moment).length;
    const own = Math.abs(now.fov - scene.fov) < 0.01;
    commit(() => {
      move.keyframes.splice(after, 0, { time: moment, eye: clean(now.eye), target: clean(now.target), roll: Math.round(now.roll * 100) / 100, fov: own ? null : Math.round(now.fov * 100) / 100 });
      selected = after;
    });
    say(`Keyframe ${selected + 1} added on the path.`);
  },
  set() {
    const { eye, target } = viewCamera();
    commit(() => Object.assign(move.keyframes[selected], { eye: clean(eye), target: clean(target) }));
    say(`Keyframe ${selected + 1} now stands where you look from.`);
  },
  keep() {
    if (keptIndex() < 0 && kept.length === LETTERS.length) { say('No more paths can be kept: forget one first.'); return; }
    if (keptIndex() < 0) kept.push(copy(move));
    remember();
    refresh();
    draw();
    say(`Kept as path ${LETTERS[keptIndex()]}. Change it, and press the letter to come back.`);
  },
  forget() { kept.splice(keptIndex(), 1); remember(); refresh(); draw(); },
  sketch() {
    sketching = !sketching;
    if (sketching) { setThrough(false); fromAbove(); }
    say(sketching ? 'Draw the path with the pointer: forward is up. The camera looks where the chosen keyframe looks.' : '');
    refresh();
  },
  target() { picking = !picking; say(picking ? 'Click the point that the camera should look at.' : ''); refresh(); },
  remove() {
    if (move.keyframes.length < 2) { say('The last keyframe stays: a path needs one.'); return; }
    commit(() => { move.keyframes.splice(selected, 1); selected = Math.max(0, selected - 1); });
  },
  clear() {
    commit(() => { move = { keyframes: [{ time: 0, eye: [0, 0, 0], target: [0, 0, 1], roll: 0, fov: null }], speed: 'keyframes', timing: [] }; selected = 0; });
    say('Cleared: the camera stands where the clip was filmed. Turn the view and add keyframes.');
  },
  reset() { trigger('reset', {}); },
  undo() { travel(past, future); },
  redo() { travel(future, past); },
  earlier() { swap(-1); },
  later() { swap(1); },
  home() { setThrough(false); overview(); },
  source() { setThrough(false); lookFrom({ eye: [0, 0, 0], target: [0, 0, 1], roll: 0, fov: scene.fov }); },
  stand() { setThrough(false); lookFrom({ ...move.keyframes[selected], roll: 0 }); },
  through() { setThrough(!through); },
  play() { if (playing) stop(); else play(); },
  save() { trigger('save', { format: field('format').value }); },
};

function swap(step) {
  const other = selected + step;
  if (other < 0 || other >= move.keyframes.length) return;
  commit(() => {
    const [a, b] = [move.keyframes[selected], move.keyframes[other]];
    [a.time, b.time] = [b.time, a.time];
    move.keyframes[selected] = b;
    move.keyframes[other] = a;
    selected = other;
  });
}

function say(words) { find('.rc-editor-words').textContent = words; }

let backTo = null;
function setThrough(on) {
  if (on === through) return;
  if (on) backTo = viewCamera();
  through = on;
  if (on) lookFrom(path(moment), false);
  else { stop(); if (backTo) lookFrom(backTo); }
  refresh();
  draw();
}

function setMoment(value) {
  moment = Math.min(1, Math.max(0, value));
  field('moment').value = Math.round(1000 * moment);
  const frame = Math.round(moment * (scene.frames - 1)) + 1;
  find('.rc-moment').textContent = `Frame ${frame} of ${scene.frames}`;
  if (through) lookFrom(path(moment), false);
  draw();
  showCurve(move.timing, moment);
  showCloud();
}

function play() {
  const seconds = Math.max(1.5, scene.frames / (scene.fps || 12)), begun = performance.now() - (moment < 0.999 ? moment : 0) * seconds * 1000;
  const step = () => {
    const now = (performance.now() - begun) / 1000 / seconds;
    setMoment(Math.min(now, 1));
    if (now < 1 && playing) playing = requestAnimationFrame(step); else stop();
  };
  playing = requestAnimationFrame(step);
  refresh();
}

function stop() { cancelAnimationFrame(playing); playing = 0; refresh(); }

function select(i) {
  selected = i;
  if (move.speed === 'keyframes') setMoment(move.keyframes[i].time);
  refresh();
  draw();
}

function refresh() {
  const chosen = move.keyframes[selected], ready = Boolean(scene && affine);
  find('.rc-keys').innerHTML = move.keyframes.map((k, i) =>
    `<button type="button" data-key="${i}" aria-pressed="${i === selected}" aria-label="Keyframe ${i + 1}, at ${Math.round(100 * k.time)} percent of the time">${i + 1}</button>`).join('');
  const off = { undo: !past.length, redo: !future.length, remove: move.keyframes.length < 2, earlier: selected === 0, later: selected >= move.keyframes.length - 1, forget: keptIndex() < 0 };
  for (const button of element.querySelectorAll('[data-do]')) {
    button.disabled = !ready || Boolean(off[button.dataset.do]);
    if (button.dataset.do === 'through') button.setAttribute('aria-pressed', through);
    if (button.dataset.do === 'sketch') button.setAttribute('aria-pressed', sketching);
    if (button.dataset.do === 'target') button.setAttribute('aria-pressed', picking);
    if (button.dataset.do === 'play') button.textContent = playing ? 'Pause' : 'Play';
  }
  for (const input of element.querySelectorAll('[data-field]')) input.disabled = !ready;
  well.classList.toggle('picking', picking || sketching);
  find('.rc-kept-row').hidden = !kept.length;
  find('.rc-kept').innerHTML = kept.map((_, i) =>
    `<button type="button" data-kept="${i}" aria-pressed="${i === keptIndex()}" aria-label="Kept path ${LETTERS[i]}">${LETTERS[i]}</button>`).join('');
  const write = (name, value) => { const input = field(name); if (document.activeElement !== input) input.value = value; };
  find('.rc-which').textContent = `Keyframe ${selected + 1} of ${move.keyframes.length}`;
  write('time', Math.round(1000 * chosen.time) / 10);
  write('roll', Math.round(10 * (chosen.roll || 0)) / 10);
  write('lens', Math.round(10 * 18 / Math.tan(radians(chosen.fov || (scene ? scene.fov : 55)) / 2)) / 10);
  write('ease', chosen.ease || '');
  write('fov', Math.round(10 * (chosen.fov || (scene ? scene.fov : 55))) / 10);
  for (const place of PLACES) {
    const [x, y, z] = chosen[place];
    [x, -y, z].forEach((v, k) => write(`${place}-${k}`, Math.round(v * 1000) / 1000 + 0));
  }
  write('speed', move.speed);
  field('time').disabled ||= move.speed !== 'keyframes';
  field('ease').disabled ||= move.speed !== 'keyframes' || selected === move.keyframes.length - 1;
  const named = Object.keys(TIMINGS).find((name) => JSON.stringify(TIMINGS[name]) === JSON.stringify(move.timing));
  write('timing', named || (move.timing.length === 1 ? 'frozen' : 'own'));
  find('.rc-curve').hidden = !move.timing.length;
  showCurve(move.timing, moment);
  element.dataset.keyframes = move.keyframes.length;
}

const setters = {
  time(k, v) {
    const all = move.keyframes, low = selected ? all[selected - 1].time + 0.005 : 0;
    const high = selected + 1 < all.length ? all[selected + 1].time - 0.005 : 1;
    k.time = Math.min(high, Math.max(low, v / 100));
  },
  roll(k, v) { k.roll = Math.min(360, Math.max(-360, v)); },
  lens(k, v) { if (v > 0) setters.fov(k, 2 * degrees(Math.atan(18 / v))); }, // of a picture 36 mm wide
  fov(k, v) { const fov = Math.min(150, Math.max(5, v)); k.fov = Math.abs(fov - scene.fov) < 0.05 ? null : fov; },
};
PLACES.forEach((place) => [0, 1, 2].forEach((axis) => {
  setters[`${place}-${axis}`] = (k, v) => { k[place][axis] = Math.min(100, Math.max(-100, axis === 1 ? -v : v)); };
}));

element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]'), key = event.target.closest('[data-key]');
  if (button && !button.disabled) actions[button.dataset.do]();
  const other = event.target.closest('[data-kept]');
  if (other) commit(() => { move = copy(kept[Number(other.dataset.kept)]); });
  if (key) { select(Number(key.dataset.key)); find(`[data-key="${selected}"]`).focus(); }
});

element.addEventListener('change', (event) => {
  const name = event.target.dataset.field;
  if (name === 'ease') commit(() => { move.keyframes[selected].ease = event.target.value; });
  if (name === 'speed') commit(() => { move.speed = event.target.value; });
  if (name === 'timing') {
    const own = { frozen: [[0, Math.round(1000 * momentAt(move.timing, moment)) / 1000]], own: move.timing.length ? move.timing : [[0, 0], [1, 1]] };
    commit(() => { move.timing = copy(TIMINGS[event.target.value] || own[event.target.value]); });
  }
  if (setters[name]) {
    const value = Number(event.target.value);
    if (event.target.value !== '' && Number.isFinite(value)) commit(() => setters[name](move.keyframes[selected], value));
    refresh();
  }
});
field('moment').addEventListener('input', (event) => { stop(); setMoment(event.target.value / 1000); });

element.addEventListener('keydown', (event) => {
  if (event.target.matches('input, select, textarea') && event.target.type !== 'range') return;
  const command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  const action = command ? { z: event.shiftKey ? 'redo' : 'undo', y: 'redo' }[key]
    : { delete: 'remove', backspace: 'remove', k: 'add', t: 'target', h: 'home', p: 'play' }[key];
  if (key === 'escape' && sketching) { actions.sketch(); return; }
  if (key === 'escape' && picking) { picking = false; say(''); refresh(); return; }
  const wanted = action && find(`[data-do="${action}"]`);
  if (wanted && !wanted.disabled) { event.preventDefault(); actions[action](); }
});

let curveFrom = null; // the move before a point of the time curve was taken
const showCurve = timeCurve(find('.rc-curve svg'), (timing, done) => {
  curveFrom ??= copy({ move, selected });
  move.timing = timing;
  if (!done) { showCloud(); return; }
  past.push(curveFrom);
  curveFrom = null;
  future = [];
  changed();
});

// Handles are dragged in the plane of the picture, as far off as they are.
overlay.addEventListener('pointerdown', (event) => {
  const grip = event.target.closest('.rc-grip');
  if (!grip || picking) return;
  event.preventDefault();
  event.stopPropagation();
  const index = Number(grip.dataset.index), place = grip.dataset.place, keyframe = move.keyframes[index];
  const before = copy({ move, selected }), box = view.getBoundingClientRect(), camera = projector();
  const [startX, startY, depth] = camera.to(keyframe[place]);
  const [dx, dy] = [event.clientX - box.left - startX, event.clientY - box.top - startY];
  let moved = false;
  selected = index;
  drag = place;
  const shift = (now) => {
    if (!moved && Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY) < 3) return;
    moved = true;
    keyframe[place] = clean(camera.from(now.clientX - box.left - dx, now.clientY - box.top - dy, depth));
    path = pathOf(move, scene.fov);
    draw();
  };
  const end = () => {
    window.removeEventListener('pointermove', shift);
    window.removeEventListener('pointerup', end);
    window.removeEventListener('pointercancel', end);
    drag = null;
    if (moved) { past.push(before); future = []; changed(); } else select(index);
  };
  window.addEventListener('pointermove', shift);
  window.addEventListener('pointerup', end);
  window.addEventListener('pointercancel', end);
  draw();
});

async function pick(x, y) {
  const cloud = await cloudAt(shownCloud), { to } = projector();
  let best = null;
  for (let i = 0; i < cloud.n; i++) {
    const [a, b, c] = cloud.axes.map((axis) => axis[i] / affine.distance);
    const q = to([a, -c, b]);
    if (q && Math.abs(q[0] - x) < 8 && Math.abs(q[1] - y) < 8 && (!best || q[2] < best.depth)) best = { depth: q[2], point: [a, -c, b] };
  }
  return best && best.point;
}

// While a path is drawn the pointer leaves the view alone.
well.addEventListener('pointerdown', (event) => {
  if (!sketching || event.target.closest('button')) return;
  event.preventDefault();
  event.stopPropagation();
  const box = view.getBoundingClientRect(), { from, to } = projector(), height = move.keyframes[0].eye[1], strokes = [];
  const ground = (now) => {
    const [x, y] = [now.clientX - box.left, now.clientY - box.top], [a, b] = [from(x, y, 1), from(x, y, 2)];
    if (Math.abs(b[1] - a[1]) < 1e-6) return;
    strokes.push(vec.add(a, vec.scale(vec.sub(b, a), (height - a[1]) / (b[1] - a[1]))));
    draw();
    const points = strokes.map(to).filter(Boolean).map(([u, v]) => `${u.toFixed(1)} ${v.toFixed(1)}`);
    overlay.insertAdjacentHTML('beforeend', `<path class="rc-path" d="M${points.join('L')}"/>`);
  };
  const end = () => {
    ['pointermove', 'pointerup', 'pointercancel'].forEach((name, i) => window.removeEventListener(name, i ? end : ground));
    const keyframes = strokes.length > 1 ? sketched(strokes) : null;
    sketching = false;
    if (keyframes) commit(() => { move = { ...move, keyframes, speed: 'constant' }; selected = keyframes.length - 1; });
    else refresh();
    draw();
    say(keyframes ? 'The path as you drew it. Heights and what it looks at can be changed below.' : 'Too short a line; draw once more.');
  };
  ['pointermove', 'pointerup', 'pointercancel'].forEach((name, i) => window.addEventListener(name, i ? end : ground));
  ground(event);
}, { capture: true });

let down = null;
view.addEventListener('pointerdown', (event) => { down = event.button === 0 ? [event.clientX, event.clientY] : null; }, { capture: true });
view.addEventListener('pointerup', async (event) => {
  if (!picking || !down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 5) return;
  const box = view.getBoundingClientRect();
  const point = await pick(event.clientX - box.left, event.clientY - box.top);
  if (!point) { say('There is no point of the clip just there; try beside it.'); return; }
  picking = false;
  commit(() => { move.keyframes[selected].target = clean(point); });
  say(`Keyframe ${selected + 1} looks at the point you clicked.`);
}, { capture: true });

// The wheel scrolls the page until the cloud has been taken hold of; then it zooms.
view.addEventListener('wheel', (event) => { if (!armed) event.stopPropagation(); }, { capture: true });
well.addEventListener('pointerdown', (event) => {
  armed = true;
  if (through && !event.target.closest('.rc-grip')) { through = false; stop(); setFov(viewFov); refresh(); draw(); } // from here on by hand
});
well.addEventListener('pointerleave', () => { armed = false; });

// --- what comes from Python -------------------------------------------------------------------------------------------

async function show() {
  const value = props.value || {};
  if (!value.clouds) {
    scene = null;
    affine = null;
    delete element.dataset.points;
    if (window.Plotly && view._fullLayout) window.Plotly.purge(view);
    overlay.innerHTML = '';
    note.textContent = value.empty || '';
    note.hidden = false;
    past = [];
    future = [];
    refresh();
    return;
  }
  const other = !scene || scene.clouds[0] !== value.clouds[0];
  scene = value;
  if (value.move && value.serial !== serial) {
    if (serial !== null && !other) past.push(copy({ move, selected }));
    serial = value.serial;
    future = [];
    move = copy(value.move);
    move.timing ??= [];
    move.keyframes.forEach((k) => { k.fov ??= null; k.roll ??= 0; k.ease ??= ''; });
    selected = other ? move.keyframes.length - 1 : Math.min(selected, move.keyframes.length - 1);
  }
  path = pathOf(move, scene.fov);
  if (value.download && value.download !== element.dataset.download) {
    element.dataset.download = value.download;
    const link = document.createElement('a');
    link.href = root + value.download;
    link.download = value.download.split('/').pop();
    document.body.append(link);
    link.click();
    link.remove();
  }
  if (!other) { changed(false); return; }
  clouds = [];
  affine = null;
  through = false;
  delete element.dataset.points;
  note.textContent = 'Drawing the point cloud …';
  note.hidden = false;
  try {
    if (!(await drawScene(value))) return;
    note.hidden = true;
    setMoment(moment);
    changed(false);
  } catch (error) {
    note.textContent = `The point cloud cannot be shown: ${error.message || error}.`;
  }
}

new ResizeObserver(() => requestAnimationFrame(() => { if (scene && affine) { setFov(viewFov); draw(); } })).observe(view);
element.recapture = {
  get move() { return move; }, get points() { return projector(); }, frameBox, pick, cloudAt, get shownCloud() { return shownCloud; }, lookFrom,
};
watch('value', show);
refresh();
show();
