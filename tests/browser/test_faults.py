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
