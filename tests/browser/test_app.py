"""What a person does with the app, done in a real browser."""

from __future__ import annotations

import json

import av
import pytest
from playwright.sync_api import expect

from tests.browser.page import (
    EDITOR,
    SHOWN,
    analysed,
    answered,
    choose_move,
    drag_cloud,
    editor_ready,
    heard,
    listen,
    open_settings,
    picture,
    set_number,
    upload,
    wait_other_picture,
    wait_other_words,
    wait_words,
)

pytestmark = pytest.mark.browser


def test_from_clip_to_result(visit, clip, tmp_path):
    page = visit()
    needless = []  # FFmpeg for the browser, of 32 MB
    page.on("request", lambda request: needless.append(request.url) if "ffmpeg" in request.url else None)
    assert not page.is_visible("#result")

    # 1, 2: a clip is analysed by itself
    upload(page, clip)
    analysed(page)
    editor_ready(page)
    assert int(page.evaluate(f"{EDITOR}.dataset.points")) > 1000
    assert page.evaluate("document.querySelector('#depth img').naturalWidth") > 50
    drag_cloud(page)

    # 3: the warp follows the camera
    listen(page, "analysis-status")
    first = picture(page, "warp")
    words = wait_words(page, "warp-status", "% of the picture|Almost everything")
    choose_move(page, "Dolly out")
    wait_other_picture(page, "warp", first)
    wait_words(page, "amount", "percent")
    wait_other_words(page, "warp-status", words)
    answered(page)
    words = wait_words(page, "warp-status", "% of the picture|Almost everything")
    page.fill("#amount input[type=number]", "90")
    page.press("#amount input[type=number]", "Enter")
    wait_other_words(page, "warp-status", words)
    assert all("Ready" in words for words in heard(page, "analysis-status")), "another camera needs no second analysis"

    assert not needless

    # 4: the render forms, and ends as a video beside the source
    page.click("#render")
    page.wait_for_selector(SHOWN.format("preview"))
    assert picture(page, "preview").startswith("data:image/webp")
    wait_words(page, "progress", "^Done")
    answered(page)
    page.wait_for_selector("#result", state="visible")
    page.wait_for_function("[...document.querySelectorAll('#compare video')].every(v => v.readyState >= 2)")
    videos = "[...document.querySelectorAll('#compare video')].map(v => v.currentTime)"
    before = page.evaluate(videos)
    page.wait_for_function(f"(before) => Math.abs({videos}[1] - before) > 0.1", arg=before[1])
    page.click("#compare .rc-play")
    page.wait_for_function(f"(([a, b]) => Math.abs(a - b) < 0.01)({videos})")
    page.click("#compare [data-mode=over]")
    page.focus("#compare .rc-divider")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#compare .rc-divider")).to_have_attribute("aria-valuenow", "52")
    wait_words(page, "figures", "dB")

    with page.expect_download() as got:
        page.click("#download-video")
    assert got.value.suggested_filename == "disc-recaptured.mp4"
    got.value.save_as(tmp_path / "result.mp4")
    with av.open(str(tmp_path / "result.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    with page.expect_download() as got:
        page.click("#download-report")
    got.value.save_as(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["request"]["camera"] == "dolly-out" and report["request"]["clip"] == "disc.mp4"


def start_long_render(page) -> None:
    """A render long enough to be left, met again and stopped; its settings ask for an analysis of their own."""
    open_settings(page)
    set_number(page, "frames", 21)
    wait_words(page, "analysis-status", "^Ready: 21 frames")
    set_number(page, "steps", 1000)
    page.click("#render")
    wait_words(page, "progress", r"Step \d+ of 1000")


def test_reload_finds_the_render_again_and_stop_stops_it(visit, clip):
    page = visit(cloud=False)
    upload(page, clip)
    analysed(page)
    choose_move(page, "Orbit up")
    page.fill("#prompt textarea, #prompt input", "a red disc")
    start_long_render(page)

    stranger = visit(cloud=False)
    answered(stranger)
    assert stranger.inner_text("#progress").strip() == "" and stranger.query_selector("#clip video") is None
    assert stranger.is_disabled("#stop")

    page.reload()
    page.wait_for_selector("#render")
    wait_words(page, "progress", r"Step \d+ of 1000")
    expect(page.locator("#render")).to_be_disabled()
    page.click("#stop")
    wait_words(page, "progress", "^Stopped.*as you left them")
    page.wait_for_selector("#clip video")
    page.wait_for_function("document.querySelector('#prompt textarea, #prompt input').value === 'a red disc'")
    page.wait_for_function("document.querySelector('#camera input').value === 'Orbit up'")
    answered(page)
    expect(page.locator("#render")).to_be_enabled()
    assert not page.is_visible("#result")


def test_a_corrupt_file_is_explained_and_harms_nothing(visit, clip, tmp_path):
    corrupt = tmp_path / "corrupt.mp4"
    corrupt.write_bytes(b"this is no video" * 500)
    page = visit(cloud=False)
    upload(page, corrupt)
    words = wait_words(page, "analysis-status", r"corrupt\.mp4")
    assert "/tmp" not in words and "Traceback" not in words
    answered(page)
    assert page.query_selector("#analysis-status [role=alert]") and page.inner_text("#analysis-status").strip() == words
    page.click("#render")
    page.wait_for_selector("#progress [role=alert]")
    answered(page)
    page.click("#clip button[aria-label=Clear]")
    wait_words(page, "analysis-status", "once there is a clip")
    upload(page, clip)
    analysed(page)
    wait_words(page, "editor", "cannot be shown: the plotting code did not load")  # all else goes on without it


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_page_fits_is_labelled_and_asks_no_other_server(visit, server, width, height):
    page = visit(width, height)
    hosts = set()
    page.on(
        "request", lambda request: hosts.add(request.url) if not request.url.startswith(("data:", "blob:")) else None
    )
    page.reload()
    page.wait_for_selector("#render")
    open_settings(page)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not [url for url in hosts if not url.startswith(server)]
    unnamed = page.evaluate("""() => [...document.querySelectorAll('input, textarea, select, button')]
      .filter(e => e.offsetParent !== null && e.type !== 'file')
      .filter(e => !(e.labels && e.labels.length && [...e.labels].some(l => l.innerText.trim()))
        && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby') && !e.title && !e.innerText.trim())
      .map(e => e.outerHTML.slice(0, 200))""")
    assert unnamed == []
    # side by side on a desk, one above the other on a phone
    tops = page.evaluate("[...document.querySelectorAll('.rc-card')].slice(0, 4).map(e => e.getBoundingClientRect().y)")
    assert (tops[0] == tops[1] < tops[2] < tops[3]) if width > 1000 else tops == sorted(set(tops))


def test_a_depth_model_with_terms_waits_until_they_are_accepted(visit, clip):
    page = visit(cloud=False)
    upload(page, clip)
    analysed(page)
    assert not page.is_visible("#depth-terms")
    wait_words(page, "analysis-notes", "by the network that comes with the model")
    assert not page.is_visible("#larger-depth"), "no hub can be reached: nothing is offered"
    choose_depth(page, "depthcrafter")
    wait_words(page, "analysis-status", "accept its terms")
    page.wait_for_selector("#depth-terms:has-text('academic')", state="visible")
    page.click("#render")
    wait_words(page, "progress", "accept its terms")

    answered(page)  # a choice that is told twice takes the tick away
    page.check("#depth-accept input")
    wait_words(page, "analysis-status", "could not be fetched")  # the test's server is offline
    choose_depth(page, "depth-anything")
    page.wait_for_selector("#depth-terms", state="hidden")
    wait_words(page, "analysis-status", "Depth-Anything-V2-Small-hf is not")
    choose_depth(page, "depthcrafter")
    page.wait_for_selector("#depth-terms", state="visible")
    page.wait_for_function("document.querySelector('#depth-accept input').checked")
    choose_depth(page, "What comes")
    analysed(page)


def choose_depth(page, words: str) -> None:
    page.click("#depth-model input")
    page.click(f"[role=option]:has-text('{words}')")
