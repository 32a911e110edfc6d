"""What a visitor does on the page and sees of it, for all tests that drive a browser.

Under load Gradio plays the answers to one event twice at times: words that stood already go and come again. A test
takes words at the moment when they match, and asks what stands in the end only after `answered`.
"""

from __future__ import annotations

import time

from playwright.sync_api import TimeoutError

SECONDS = 90  # that a page may take for one thing: the tests share two cores with each other and with the app
EDITOR = "document.querySelector('#editor[data-points], #editor [data-points]')"
PLOT = "document.querySelector('.rc-cloud-view')._fullLayout.scene._scene"
SHOWN = "#{0}[data-shown], #{0} [data-shown]"

# Counts the events of the page that the server has not answered to the end, from what the page sends and is sent.
COUNT = """
window.unanswered = 0;
const plain = window.fetch;
window.fetch = async (asked, ...rest) => {
  const url = String(asked.url || asked);
  if (url.includes("/queue/join")) window.unanswered += 1;
  const reply = await plain(asked, ...rest).catch((error) => {
    if (url.includes("/queue/join")) window.unanswered -= 1;
    throw error;
  });
  if (url.includes("/queue/join") && !reply.ok) window.unanswered -= 1;
  if (url.includes("/queue/data")) (async () => {
    const reader = reply.clone().body.pipeThrough(new TextDecoderStream()).getReader();
    for (let left = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (left + value).split("\\n");
      left = lines.pop();
      window.unanswered -= lines.filter((line) => /"msg": ?"process_completed"/.test(line)).length;
    }
  })().catch(() => {});
  return reply;
};
"""


def open_page(context, address: str, cloud: bool = True):
    """The app, as whoever owns the browser's context sees it.

    cloud: False keeps Plotly from being loaded, so that there is no 3D view. Without a graphics card to draw it costs
    more than all else on the page.
    """
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    if not cloud:
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        network.send("Network.setBlockedURLs", {"urls": ["*plotly.min.js*"]})
    page.add_init_script(COUNT)
    page.goto(address)
    page.wait_for_selector("#render")
    return page


def answered(page) -> None:
    """Wait until the server has answered all that the page asked of it, and the page has drawn the answers."""
    drawn = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    until, quiet = time.monotonic() + SECONDS, 0
    while quiet < 5:
        left = page.evaluate("window.unanswered")
        assert time.monotonic() < until, f"{left} events were never answered"
        quiet = 0 if left else quiet + 1
        page.evaluate(drawn)
        page.wait_for_timeout(60)


def wait_words(page, element: str, pattern: str, seconds: float = SECONDS) -> str:
    """Wait until the text of an element matches, and give the text that did."""
    matching = """([id, pattern]) => {
      const words = document.getElementById(id)?.innerText.trim() ?? "";
      return new RegExp(pattern).test(words) && [words];
    }"""
    try:
        (words,) = page.wait_for_function(matching, arg=[element, pattern], timeout=1000 * seconds).json_value()
    except TimeoutError as error:
        stand = {name: page.inner_text(f"#{name}") for name in dict.fromkeys([element, "analysis-status", "progress"])}
        raise AssertionError(f"{element} never said {pattern!r}: {stand}") from error
    return words


def wait_other_words(page, element: str, before: str) -> str:
    """Wait for other words. (A choice in a Dropdown is told twice at times: the picture then comes anew, unchanged.)"""
    other = """([id, before]) => {
      const words = document.getElementById(id).innerText.trim();
      return words !== before && [words];
    }"""
    (words,) = page.wait_for_function(other, arg=[element, before]).json_value()
    return words


def listen(page, element: str) -> None:
    """Keep all words that an element says from now on, for `heard`."""
    page.evaluate(
        """(id) => {
          const heard = (window.heard ??= {})[id] = [];
          const note = () => heard.push(document.getElementById(id)?.innerText.trim() ?? "");
          const changes = { subtree: true, childList: true, characterData: true };
          new MutationObserver(note).observe(document.body, changes);
        }""",
        element,
    )


def heard(page, element: str) -> set[str]:
    return set(page.evaluate("(id) => [...new Set(window.heard[id])]", element))


def upload(page, path) -> None:
    page.set_input_files("#clip input[type=file]", str(path))


def analysed(page) -> None:
    """Wait until the clip is analysed, and all that follows from it stands on the page."""
    wait_words(page, "analysis-status", "^Ready")
    page.wait_for_selector(SHOWN.format("warp"), state="attached")  # another tab may stand before it
    answered(page)


def editor_ready(page) -> None:
    page.wait_for_selector("#editor[data-points], #editor [data-points]")


def choose_move(page, label: str) -> None:
    page.click("#camera input")
    page.click(f"[role=option]:has-text('{label}')")


def picture(page, element: str) -> str:
    return page.get_attribute(f"#{element} img", "src")


def wait_other_picture(page, element: str, before: str) -> str:
    other = """([id, before]) => {
      const { src } = document.querySelector(`#${id} img`);
      return src.slice(-60) !== before.slice(-60) && src;
    }"""
    return page.wait_for_function(other, arg=[element, before]).json_value()


def set_number(page, name: str, value) -> None:
    page.fill(f"#set-{name} input", str(value))
    page.press(f"#set-{name} input", "Tab")


def open_settings(page) -> None:
    """The advanced settings. Their fields are made when they are opened: what is typed before they stand is lost."""
    page.click("#advanced > button")
    page.wait_for_selector("#set-steps input")
    still(page, "#advanced")


def still(page, *selectors: str) -> None:
    """Wait until elements stay where they are, for half a second and ten pictures of the page at least."""
    page.wait_for_function(
        """(selectors) => {
          const places = selectors.map(css => document.querySelector(css)?.getBoundingClientRect().toJSON());
          const now = JSON.stringify(places), stood = window.stood;
          if (places.some(place => !place) || !stood || stood.places !== now) {
            window.stood = { places: now, since: performance.now(), seen: 0 };
            return false;
          }
          stood.seen += 1;
          return stood.seen >= 10 && performance.now() - stood.since > 500;
        }""",
        arg=list(selectors),
    )


def drag_cloud(page) -> None:
    """The cloud can be turned: the picture changes under the pointer."""
    page.locator("#editor .rc-well").scroll_into_view_if_needed()
    box = page.locator("#editor .rc-cloud-view").bounding_box()
    eye = f"JSON.stringify({PLOT}.getCamera().eye)"
    before = page.evaluate(eye)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 10, steps=4)
    page.mouse.up()
    page.wait_for_function(f"(before) => {eye} !== before", arg=before)


def stop_renders(page) -> None:
    """A render that a failed test left behind would keep those of the next tests waiting."""
    if page.locator("#stop:not([disabled])").count():
        page.click("#stop")
        page.wait_for_selector("#stop[disabled]")
