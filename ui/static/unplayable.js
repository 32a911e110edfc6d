// What no browser plays is shown as it is read, beside the field for the clip. Gradio's complaint would contradict that.
addEventListener("error", (event) => {
  if (event.target instanceof HTMLVideoElement && event.target.closest("#clip")) event.stopImmediatePropagation();
}, true);
