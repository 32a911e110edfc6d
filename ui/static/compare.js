// The source and the result, playing in step: side by side, or one over the other with a divider to drag.
const stage = element.querySelector('.rc-stage');
const source = element.querySelector('video.source');
const result = element.querySelector('video.result');
const play = element.querySelector('.rc-play');
const sound = element.querySelector('.rc-sound');
const scrub = element.querySelector('.rc-scrub');
const time = element.querySelector('.rc-time');
const divider = element.querySelector('.rc-divider');
const modes = [...element.querySelectorAll('[data-mode]')];
const root = (window.gradio_config && window.gradio_config.root) || '';
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, '0')}`;
let playing = false;
let scrubbing = false;

function setPlaying(on) {
  playing = on;
  play.textContent = on ? 'Pause' : 'Play';
  play.setAttribute('aria-label', on ? 'Pause both videos' : 'Play both videos');
  if (on) {
    // A browser may refuse to start without a click; then the button shows the truth.
    Promise.all([result.play(), source.play()]).catch(() => { if (playing && result.paused) setPlaying(false); });
  } else {
    result.pause();
    source.pause();
    source.currentTime = result.currentTime;
  }
}

function seek(seconds) {
  result.currentTime = seconds;
  source.currentTime = seconds;
}

function tick() {
  if (!element.isConnected) return;
  requestAnimationFrame(tick);
  const length = result.duration || 0;
  if (!length) return;
  // The result leads; the source is brought back when it strays by more than a frame or so.
  if (playing && !source.seeking && Math.abs(source.currentTime - result.currentTime) > 0.06) {
    source.currentTime = Math.min(result.currentTime, source.duration || length);
  }
  if (!scrubbing) scrub.value = String(Math.round(1000 * result.currentTime / length));
  time.textContent = `${clock(result.currentTime)} / ${clock(length)}`;
}

function setMode(mode) {
  stage.dataset.layout = mode;
  modes.forEach((button) => button.setAttribute('aria-pressed', String(button.dataset.mode === mode)));
}

function setDivider(percent) {
  const place = Math.min(100, Math.max(0, percent));
  stage.style.setProperty('--divider', `${place}%`);
  divider.setAttribute('aria-valuenow', String(Math.round(place)));
}

function show() {
  const value = props.value || {};
  element.dataset.ready = value.result ? '1' : '';
  if (!value.result) {
    setPlaying(false);
    for (const video of [source, result]) { video.removeAttribute('src'); video.load(); }
    return;
  }
  stage.style.setProperty('--aspect', `${value.width} / ${value.height}`);
  stage.style.setProperty('--ratio', value.width / value.height);
  source.src = root + value.source;
  result.src = root + value.result;
  seek(0);
  setPlaying(true);
  // Whoever waited for it is taken there; whoever comes back is left where they are.
  if (value.scroll) setTimeout(() => element.scrollIntoView({ behavior: 'smooth', block: 'nearest' }), 150);
}

result.addEventListener('ended', () => { seek(0); if (playing) setPlaying(true); });
play.addEventListener('click', () => setPlaying(!playing));
sound.addEventListener('click', () => {
  result.muted = !result.muted;
  sound.textContent = result.muted ? 'Sound off' : 'Sound on';
  sound.setAttribute('aria-pressed', String(!result.muted));
});
scrub.addEventListener('pointerdown', () => { scrubbing = true; setPlaying(false); });
scrub.addEventListener('pointerup', () => { scrubbing = false; });
scrub.addEventListener('input', () => { if (playing) setPlaying(false); seek(scrub.value / 1000 * (result.duration || 0)); });
modes.forEach((button) => button.addEventListener('click', () => setMode(button.dataset.mode)));
divider.addEventListener('pointerdown', (event) => {
  event.preventDefault();
  divider.focus();
  divider.setPointerCapture(event.pointerId);
  divider.onpointermove = (move) => {
    const box = stage.getBoundingClientRect();
    setDivider(100 * (move.clientX - box.left) / box.width);
  };
});
divider.addEventListener('pointerup', () => { divider.onpointermove = null; });
divider.addEventListener('keydown', (event) => {
  const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
  if (step) { event.preventDefault(); setDivider(Number(divider.getAttribute('aria-valuenow')) + step); }
});
setMode('side');
setDivider(50);
watch('value', show);
show();
tick();
