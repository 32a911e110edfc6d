"""What the page says when something goes wrong around it."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import write_clip
from tests.browser.page import analysed, answered, heard, listen, open_settings, set_number, upload, wait_words

pytestmark = pytest.mark.browser


def test_the_words_of_a_refusal_stay(visit, clip):
    page = visit(cloud=False)
    upload(page, clip)
    analysed(page)
    open_settings(page)
    set_number(page, "steps", 1)
    page.click("#render")
    wait_words(page, "progress", "Done")
    answered(page)
    expect(page.locator("#result")).to_be_visible()
    set_number(page, "steps", "abc")
    page.click("#render")
    wait_words(page, "progress", "Steps")
    answered(page)
    assert "Steps" in page.inner_text("#progress")
    # a new clip takes the old result away
    page.locator("#clip button[aria-label='Clear']").first.click()
    page.wait_for_function("getComputedStyle(document.querySelector('#result')).display === 'none'")
    answered(page)
    assert "Done" not in page.inner_text("#progress")


def held_back(page, place: str):
    """Holds back what the page asks of such addresses from now on. Returns the function that lets it through."""
    held, free = [], []
    page.route(place, lambda route: route.continue_() if free else held.append(route))

    def let_through() -> None:
        while not held:
            page.wait_for_timeout(20)
        free.append(True)
        for route in held:
            route.continue_()

    return let_through


def test_a_clip_that_is_chosen_while_the_last_one_is_asked_for_stays(visit, clip, tmp_path):
    other = write_clip(tmp_path / "other.mp4", frames=12)
    page = visit(cloud=False)
    upload(page, clip)
    page.fill("#prompt textarea, #prompt input", "a red disc")
    page.click("#render")
    wait_words(page, "progress", "Done")
    answered(page)
    for under_way in (False, True):  # an upload that is there before the answer, and one that is not
        ask = held_back(page, "**/queue/join*")
        send = held_back(page, "**/upload?*") if under_way else None
        page.reload()
        page.wait_for_selector("#render")
        upload(page, other)
        if send is None:
            page.wait_for_selector("#clip video[src*='other']")
        ask()
        if send is not None:
            answered(page)
            send()
        analysed(page)
        page.unroute_all()
        assert "other" in page.get_attribute("#clip video", "src")
        assert page.input_value("#prompt textarea, #prompt input") == "", "it was said of the other clip"


def test_the_page_says_when_the_server_is_away(visit):
    page = visit(cloud=False)
    page.route("**/app_id", lambda route: route.abort())
    page.wait_for_selector("#rc-server:has-text('cannot be reached')", state="visible")
    page.unroute("**/app_id")
    page.wait_for_selector("#rc-server", state="hidden")


def test_a_gif_is_taken_and_shown_as_it_is_read(visit, tmp_path):
    from PIL import Image

    images = [Image.new("RGB", (160, 96), (20 * n, 80, 90)) for n in range(10)]
    images[0].save(tmp_path / "moving.gif", save_all=True, append_images=images[1:], duration=40)
    page = visit(cloud=False)
    page.locator("#clip-other input[type=file], input[type=file][accept*='gif']").first.set_input_files(
        str(tmp_path / "moving.gif")
    )
    analysed(page)


def test_what_the_browser_cannot_play_is_shown_all_the_same(visit, clip, tmp_path):
    import av

    path = tmp_path / "old.mkv"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 416, 240, "yuv420p"
        for frame in source.decode(video=0):
            plain = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            target.mux(stream.encode(plain))
        target.mux(stream.encode())
    page = visit(cloud=False)
    page.get_by_role("tab", name="Replace an object").click()
    page.wait_for_selector("#mask-status", state="attached")
    listen(page, "mask-status")
    upload(page, path)
    analysed(page)
    page.wait_for_selector("#clip-seen img, #clip-loop img")
    assert "not playable" not in page.inner_text("body").lower()
    assert any("when the clip is analysed" in words for words in heard(page, "mask-status"))
    assert "analysed" not in page.inner_text("#mask-status")
