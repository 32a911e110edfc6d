"""The suggested prompt, the image model for the first frame, and what makes the preview, in a real browser."""

from __future__ import annotations

import pytest

from tests.browser.page import analysed, answered, open_settings, still, upload, wait_words

pytestmark = pytest.mark.browser


def test_the_suggest_button_stands_beside_the_prompt(visit):
    page = visit(cloud=False)
    assert not page.is_visible("#prompt-status"), "no empty line"
    page.wait_for_selector("#suggest")
    page.wait_for_selector("#prompt textarea, #prompt input")
    open_settings(page)
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        still(page, "#prompt", "#suggest")
        field, button = page.evaluate(  # at one moment: the page may still be growing above them
            "['#prompt textarea, #prompt input', '#suggest'].map("
            "css => document.querySelector(css).getBoundingClientRect().toJSON())"
        )
        assert field["x"] + field["width"] < button["x"] and button["x"] + button["width"] <= width
        assert abs(field["y"] - button["y"]) < 2 and abs(field["height"] - button["height"]) < 2, (field, button)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        box = page.locator("#set-first_frame_model").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_what_the_captioner_lacks_is_said_beside_the_prompt(visit, clip):
    page = visit(cloud=False)
    page.click("#suggest")
    page.wait_for_selector("#prompt-status [role=alert]:has-text('Choose a clip first')", state="visible")
    upload(page, clip)
    analysed(page)
    page.click("#suggest")
    page.wait_for_selector("#prompt-status [role=alert]:has-text('models --download blip')", state="visible")


def test_an_image_model_says_its_terms_and_asks(visit, clip):
    page = visit(cloud=False)
    upload(page, clip)
    analysed(page)
    open_settings(page)
    choose(page, "FLUX.1 Fill")
    page.wait_for_selector("#first-frame-terms:has-text('commercially')", state="visible")
    page.click("#render")
    wait_words(page, "progress", "accept its terms")
    answered(page)  # a choice that is told twice takes the tick away
    page.click("#first-frame-accept input")
    page.click("#render")
    wait_words(page, "progress", "models --download flux-fill")
    choose(page, "Stable Diffusion XL")
    wait_words(page, "first-frame-terms", "RAIL")
    page.wait_for_function("!document.querySelector('#first-frame-accept input').checked")
    choose(page, "video model")
    page.wait_for_selector("#first-frame-terms", state="hidden")
    answered(page)
    page.click("#render")
    wait_words(page, "progress", "^Done", 240)
    page.wait_for_selector("#preview-note:has-text('linear map')", state="visible")
    wait_words(page, "figures", "First frame")


def choose(page, words: str) -> None:
    page.click("#set-first_frame_model input")
    page.click(f"[role=option]:has-text('{words}')")
