// A looping picture that swaps without a flash: the next one is decoded before it takes the place of the last.
const picture = element.querySelector('img');
const note = element.querySelector('.rc-empty');
const root = (window.gradio_config && window.gradio_config.root) || '';
let wanted = null;

async function show() {
  const value = props.value || {};
  wanted = value;
  if (!value.url) {
    picture.hidden = true;
    note.hidden = false;
    if (value.empty) note.textContent = value.empty;
    return;
  }
  const next = new Image();
  next.src = value.url.startsWith('data:') ? value.url : root + value.url;
  try { await next.decode(); } catch { /* shown all the same: the browser draws what it can */ }
  if (wanted !== value) return;
  picture.src = next.src;
  picture.alt = value.alt || '';
  picture.hidden = false;
  note.hidden = true;
  element.dataset.shown = String(Number(element.dataset.shown || 0) + 1);
}

watch('value', show);
show();
