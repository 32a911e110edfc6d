// One field takes every kind of clip. Gradio's own takes films alone, and says so; what else is dropped on it, or chosen
// in it, goes to the button for the other kinds, which stands beside it out of sight.
(() => {
  const WORDS = 'Drop a video or photographs here, or press to choose';
  const other = () => document.querySelector('input[type=file][accept*=".heic"]:not(#clip *)');
  const inField = (event) => event.target instanceof Element && event.target.closest('#clip');
  const films = (files) => [...files].every((file) => file.type.startsWith('video/'));

  function handOn(event, files) {
    if (!files || !files.length || films(files) || !other()) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const passed = new DataTransfer();
    for (const file of files) passed.items.add(file);
    other().files = passed.files;
    other().dispatchEvent(new Event('change', { bubbles: true }));
  }

  // Before a file is chosen: the field's own input and words, which Gradio makes anew with each clip.
  function prepare(event) {
    const field = inField(event), input = field && field.querySelector('input[type=file]');
    if (!input || !other()) return;
    input.accept = `video/*,${other().accept}`;
    input.multiple = true;
    input.closest('button').setAttribute('aria-label', WORDS);
  }
  ['pointerover', 'focusin', 'click'].forEach((name) => document.addEventListener(name, prepare, true));
  document.addEventListener('change', (event) => {
    if (inField(event) && event.target.type === 'file') handOn(event, event.target.files);
  }, true);
  document.addEventListener('drop', (event) => {
    if (!inField(event)) return;
    handOn(event, event.dataTransfer && event.dataTransfer.files);
    // the field takes back how it looks while something is held over it
    if (event.defaultPrevented) event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true }));
  }, true);
})();
