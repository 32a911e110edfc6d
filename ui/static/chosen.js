// Notes that the visitor chooses a clip, before the upload or the server's answer is there: no old session takes its place.
(() => {
  window.rcChosen = false;
  const within = (event, places) => event.target instanceof Element && event.target.closest(places);
  const noted = { change: "input[type=file]", drop: "#clip", click: "#gallery button, #examples button" };
  for (const [kind, places] of Object.entries(noted))
    addEventListener(kind, (event) => { if (within(event, places)) window.rcChosen = true; }, true);
})();
