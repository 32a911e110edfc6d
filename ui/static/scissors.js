// Gradio fetches FFmpeg, 32 MB, with every clip that is shown, for the scissors beside it. This page has none (the
// settings say which frames are used), so that nobody waits for it.
(() => {
  const plain = window.fetch, never = new Promise(() => {});
  window.fetch = (asked, ...rest) => (String(asked.url || asked).includes("/static/ffmpeg/") ? never : plain(asked, ...rest));
})();
