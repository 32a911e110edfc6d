// Says when the server cannot be reached, and when another one has come in its place.
(() => {
  let known = null, bar = null;
  const say = (words) => {
    if (!bar) {
      bar = document.createElement("div");
      bar.id = "rc-server";
      bar.setAttribute("role", "status");
      document.body.prepend(bar);
    }
    if (bar.textContent !== words) bar.textContent = words;
    bar.hidden = !words;
  };
  const ask = async () => {
    try {
      const root = (window.gradio_config && window.gradio_config.root) || "";
      const options = { cache: "no-store", signal: AbortSignal.timeout(4000) };
      const reply = await fetch(`${root}/gradio_api/app_id`, options);
      if (!reply.ok) throw new Error("away");
      const found = (await reply.json()).app_id;
      known = known === null ? found : known;
      say(known === found ? "" : "The server was started anew. Reload the page to go on: your last render is kept.");
    } catch {
      say("The server cannot be reached at the moment. What you set is still here; the page goes on once it is back.");
    }
    setTimeout(ask, 3000);
  };
  ask();
})();
