// The point cloud: fetches the file of media.cloud_bytes and draws it with Plotly, seen as the source camera sees.
// Runs as the js_on_load of a gr.HTML: element, props and watch are given.
const view = element.querySelector('.rc-cloud-view');
const note = element.querySelector('.rc-empty');
const root = (window.gradio_config && window.gradio_config.root) || '';
let wanted = null;
let shape = null;
let armed = false;

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
  const head = new Float32Array(buffer, 4, 9);
  const palette = new Uint8Array(buffer, 40, 768);
  const packed = new Uint16Array(buffer, 808, 3 * n);
  const index = new Uint8Array(buffer, 808 + 6 * n, n);
  const axes = [0, 1, 2].map((k) => {
    const axis = new Float32Array(n);
    for (let p = 0; p < n; p++) axis[p] = head[k] + (packed[3 * p + k] / 65535) * head[3 + k];
    return axis;
  });
  return { n, axes, index, palette, low: [...head.slice(0, 3)], extent: [...head.slice(3, 6)],
           distance: head[6], half: [head[7], head[8]] };
}

function fitFieldOfView() {
  // Plotly's field of view is the vertical one; choose it so that the whole source picture is inside the view.
  const scene = view._fullLayout && view._fullLayout.scene && view._fullLayout.scene._scene;
  if (!scene || !shape || !view.clientHeight) return;
  const tangent = Math.max(shape.half[1], shape.half[0] * view.clientHeight / view.clientWidth) * 1.06;
  scene.glplot.fovy = 2 * Math.atan(tangent);
  scene.glplot.redraw();
}

async function draw(value) {
  const cloud = await readCloud(value.url);
  await loadPlotly(value.plotly);
  if (wanted !== value) return; // a newer clip came meanwhile
  shape = cloud;
  const largest = Math.max(...cloud.extent);
  const middle = cloud.low.map((low, k) => low + cloud.extent[k] / 2);
  const toScene = (point) => point.map((p, k) => (p - middle[k]) / largest);
  const vector = ([x, y, z]) => ({ x, y, z });
  const colours = Array.from({ length: 256 }, (_, c) =>
    [c / 255, `rgb(${cloud.palette[3 * c]},${cloud.palette[3 * c + 1]},${cloud.palette[3 * c + 2]})`]);
  const axis = (k) => ({ visible: false, showspikes: false, range: [cloud.low[k], cloud.low[k] + cloud.extent[k]] });
  const [x, y, z] = cloud.axes;
  const size = Math.max(2, Math.sqrt(view.clientWidth * view.clientHeight / cloud.n) * 0.95);
  await window.Plotly.newPlot(view, [{
    type: 'scatter3d', mode: 'markers', x, y, z, hoverinfo: 'skip',
    marker: { size, symbol: 'square', opacity: 1, color: cloud.index, cmin: 0, cmax: 255, colorscale: colours, line: { width: 0 } },
  }], {
    margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: 'rgba(0,0,0,0)',
    scene: {
      dragmode: 'turntable', bgcolor: 'rgba(0,0,0,0)', xaxis: axis(0), yaxis: axis(1), zaxis: axis(2),
      aspectmode: 'manual', aspectratio: vector(cloud.extent.map((e) => e / largest)),
      camera: { eye: vector(toScene([0, 0, 0])), center: vector(toScene([0, cloud.distance, 0])), up: vector([0, 0, 1]) },
    },
  }, { displayModeBar: false, responsive: true, scrollZoom: true, plotGlPixelRatio: 1 });
  fitFieldOfView();
  element.dataset.points = cloud.n;
}

async function show() {
  wanted = props.value;
  delete element.dataset.points;
  if (!wanted || !wanted.url) {
    if (window.Plotly && view._fullLayout) window.Plotly.purge(view);
    note.textContent = (wanted && wanted.empty) || note.textContent;
    note.hidden = false;
    return;
  }
  const value = wanted;
  note.textContent = 'Drawing the point cloud …';
  note.hidden = false;
  try {
    await draw(value);
    if (wanted === value) note.hidden = true;
  } catch (error) {
    note.textContent = `The point cloud cannot be shown: ${error.message || error}.`;
  }
}

// The wheel scrolls the page until the cloud has been taken hold of; then it zooms.
view.addEventListener('wheel', (event) => { if (!armed) event.stopPropagation(); }, { capture: true });
element.addEventListener('pointerdown', () => { armed = true; });
element.addEventListener('pointerleave', () => { armed = false; });
new ResizeObserver(() => requestAnimationFrame(fitFieldOfView)).observe(view);
watch('value', show);
show();
