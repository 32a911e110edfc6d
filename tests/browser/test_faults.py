"""What the page says when something goes wrong around it."""

from playwright.sync_api import expect


def ready(page, clip):
    page.locator("#clip input[type=file]").first.set_input_files(str(clip))
    page.wait_for_function("document.querySelector('#analysis-status').innerText.startsWith('Ready')", timeout=120_000)


def test_the_words_of_a_refusal_stay(visit, clip):
    page = visit()
    ready(page, clip)
    page.locator("#advanced button").first.click()
    steps = page.locator("#set-steps input, #set-steps textarea").first
    steps.fill("1")
    page.click("#render")
    page.wait_for_function("document.querySelector('#progress').innerText.includes('Done')", timeout=180_000)
    expect(page.locator("#result")).to_be_visible()
    steps.fill("abc")
    page.click("#render")
    page.wait_for_timeout(3000)
    assert "Steps" in page.inner_text("#progress")
    # a new clip takes the old result away
    page.locator("#clip button[aria-label='Clear']").first.click()
    page.wait_for_function("getComputedStyle(document.querySelector('#result')).display === 'none'", timeout=20_000)
    assert "Done" not in page.inner_text("#progress")


def test_the_page_says_when_the_server_is_away(visit):
    page = visit()
    page.route("**/app_id", lambda route: route.abort())
    page.wait_for_selector("#rc-server:not([hidden])", timeout=15_000)
    assert "cannot be reached" in page.inner_text("#rc-server")
    page.unroute("**/app_id")
    page.wait_for_selector("#rc-server", state="hidden", timeout=15_000)


def test_a_gif_is_taken_and_shown_as_it_is_read(visit, tmp_path):
    from PIL import Image

    images = [Image.new("RGB", (160, 96), (20 * n, 80, 90)) for n in range(10)]
    images[0].save(tmp_path / "moving.gif", save_all=True, append_images=images[1:], duration=40)
    page = visit()
    page.locator("#clip-other input[type=file], input[type=file][accept*='gif']").first.set_input_files(
        str(tmp_path / "moving.gif")
    )
    page.wait_for_function("document.querySelector('#analysis-status').innerText.startsWith('Ready')", timeout=120_000)


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
    page = visit()
    page.get_by_role("tab", name="Replace an object").click()
    page.locator("#clip input[type=file]").first.set_input_files(str(path))
    page.wait_for_function("document.querySelector('#mask-status').innerText.includes('when the clip is analysed')")
    page.wait_for_function("document.querySelector('#analysis-status').innerText.startsWith('Ready')", timeout=120_000)
    page.wait_for_selector("#clip-seen img, #clip-loop img", timeout=20_000)
    page.wait_for_function("!document.querySelector('#mask-status').innerText.includes('analysed')")
