"""Directing a camera in the 3D view, in a real browser."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from playwright.sync_api import TimeoutError, expect

from pipeline.camera.files import read_move
from pipeline.camera.geometry import invert_rigid, project, transform
from pipeline.camera.moves import MOVES, SPEEDS, Keyframe, Move, preset_move, sample_move, target_path
from tests.browser.page import (
    EDITOR,
    PLOT,
    analysed,
    answered,
    choose_move,
    drag_cloud,
    editor_ready,
    open_page,
    picture,
    still,
    upload,
    wait_other_picture,
    wait_words,
)

pytestmark = pytest.mark.browser


def ready(page, clip):
    upload(page, clip)
    analysed(page)
    editor_ready(page)
    return page


@pytest.fixture(scope="module")
def shared(chromium):
    """Where the page that most tests share is kept: to open one and analyse its clip takes longer than they do."""
    pages = []
    yield pages
    for page in pages:
        page.context.close()


@pytest.fixture
def page(shared, chromium, server, clip):
    """A page at 1440x900 with an analysed clip and its first path: the shared one, or a new one if that was left in
    another state.
    """
    if not shared:
        context = chromium.new_context(viewport={"width": 1440, "height": 900})
        shared.append(ready(open_page(context, server), clip))
    (page,) = shared
    faults = []
    note = lambda fault: faults.append(str(fault.error))
    page.context.on("weberror", note)
    yield page
    try:
        back_to_the_first_path(page)
        page.context.remove_listener("weberror", note)
    except (TimeoutError, AssertionError):
        shared.clear()
        page.context.close()
    assert not faults


def back_to_the_first_path(page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    answered(page)
    if page.input_value("#camera input") != "Orbit left":
        choose_move(page, "Orbit left")
        answered(page)
    do(page, "reset")
    first = preset_move("orbit-left").keyframes
    page.wait_for_function(f"{EDITOR}.recapture.move.keyframes.length === {len(first)}", timeout=15000)
    answered(page)
    assert [k["eye"] for k in keyframes(page)] == [list(keyframe.eye) for keyframe in first]
    page.click(f"#editor [data-key='{len(first) - 1}']")


def keyframes(page) -> list[dict]:
    return page.evaluate(f"JSON.parse(JSON.stringify({EDITOR}.recapture.move.keyframes))")


def do(page, name: str) -> None:
    page.click(f"#editor [data-do={name}]")


def look(page, eye, target) -> None:
    """Turn the view, as a hand would."""
    fov = page.evaluate(f"{EDITOR}.recapture.move && 55")
    page.evaluate(
        f"(camera) => {EDITOR}.recapture.lookFrom(camera)", {"eye": eye, "target": target, "roll": 0, "fov": fov}
    )


def grip(page, index: int, place: str) -> tuple[float, float]:
    """Middle of a handle, in the window. Found and measured at one moment: every redrawing makes the handles anew."""
    page.locator("#editor .rc-well").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """(selector) => {
            const { x, y, width, height } = document.querySelector(selector).getBoundingClientRect();
            return [x + width / 2, y + height / 2];
        }""",
        f"#editor .rc-grip[data-index='{index}'][data-place={place}]",
    )
    return x, y


def drag(page, index: int, place: str, dx: float, dy: float) -> None:
    x, y = grip(page, index, place)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def test_directing_a_camera(visit, clip, tmp_path):
    page = ready(visit(), clip)
    assert len(keyframes(page)) == len(preset_move("orbit-left").keyframes)
    drag_cloud(page)

    # a path of one's own: three keyframes from three views, after a fresh start
    first = picture(page, "warp")
    do(page, "clear")
    assert keyframes(page) == [{"time": 0, "eye": [0, 0, 0], "target": [0, 0, 1], "roll": 0, "fov": None}]
    for eye in ([0.2, 0.0, 0.0], [0.3, -0.15, 0.1], [0.1, -0.2, -0.1]):
        look(page, eye, [0, 0, 1])
        do(page, "add")
    made = keyframes(page)
    assert [k["time"] for k in made] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-5)
    assert made[2]["eye"] == pytest.approx([0.3, -0.15, 0.1], abs=1e-3)
    second = wait_other_picture(page, "warp", first)

    # drag one, and undo it with the keyboard
    look(page, [0.9, -0.7, -1.0], [0, 0, 0.8])
    page.click("#editor [data-key='2']")
    drag(page, 2, "eye", 30, -25)
    dragged = keyframes(page)
    assert dragged[2]["eye"] != made[2]["eye"] and dragged[1] == made[1]
    wait_other_picture(page, "warp", second)
    page.focus("#editor .rc-well")
    page.keyboard.press("Control+z")
    assert keyframes(page) == made
    page.keyboard.press("Control+Shift+Z")
    assert keyframes(page) == dragged

    # pick what it looks at: the point under the pointer
    do(page, "source")
    do(page, "target")
    page.locator("#editor .rc-well").scroll_into_view_if_needed()
    box = page.locator("#editor .rc-cloud-view").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.42, box["y"] + box["height"] * 0.55)
    wait_words(page, "editor", "looks at the point you clicked")
    target = keyframes(page)[2]["target"]
    assert target != dragged[2]["target"] and target[0] < 0 < target[1] and target[2] > 0.05

    # play it, look through it, change it by numbers
    do(page, "through")
    do(page, "play")
    page.wait_for_function("document.querySelector('#editor [data-field=moment]').value === '1000'")
    expect(page.locator("#editor .rc-moment")).to_have_text("Frame 9 of 9")
    do(page, "through")
    page.fill("#editor [data-field=roll]", "7")
    page.press("#editor [data-field=roll]", "Enter")
    page.select_option("#editor [data-field=speed]", "eased")
    final = page.evaluate(f"JSON.parse(JSON.stringify({EDITOR}.recapture.move))")
    assert final["keyframes"][2]["roll"] == 7 and final["speed"] == "eased"

    # what is saved, what Python rendered and what stands in the page are one path
    with page.expect_download() as got:
        do(page, "save")
    got.value.save_as(tmp_path / "path.json")
    move = Move.from_dict({"version": 1, **{k: v for k, v in final.items() if k != "version"}})
    assert read_move(tmp_path / "path.json") == move
    page.click("#render")
    wait_words(page, "progress", "^Done")
    with page.expect_download() as got:
        page.click("#download-report")
    got.value.save_as(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert Move.from_dict({"version": 1, **report["request"]["move"]}) == move
    answered(page)
    words = wait_words(page, "warp-status", r"\d+ % of the picture")
    shown = int(re.search(r"(\d+) % of the picture", words)[1])
    assert shown == pytest.approx(100 * (report["unknown"] + report["from_other_frames"]), abs=1)


def test_named_moves_become_keyframes_and_reset_brings_them_back(page):
    choose_move(page, "Spiral")
    page.wait_for_function(f"{EDITOR}.recapture.move.keyframes.length === 13")
    answered(page)  # a choice in a Dropdown is told twice at times, and sets the path again
    page.click("#editor [data-key='3']")
    do(page, "remove")
    assert len(keyframes(page)) == 12
    page.click("#editor [data-key='3']")
    do(page, "split")  # the slider stands on the keyframe: nothing is added
    assert len(keyframes(page)) == 12
    do(page, "reset")
    page.wait_for_function(f"{EDITOR}.recapture.move.keyframes.length === 13")
    answered(page)
    do(page, "undo")
    assert len(keyframes(page)) == 12


def test_a_camera_file_is_opened(page, tmp_path):
    (tmp_path / "loop1.txt").write_text("0 10 0\n0 -20 0\n0 -0.1 0\n")
    page.click("#open-path > button")
    page.set_input_files("#camera-file input[type=file]", str(tmp_path / "loop1.txt"))
    page.wait_for_function(f"{EDITOR}.recapture.move.keyframes.length === 3")
    answered(page)
    assert keyframes(page)[1]["eye"][1] < -0.1
    (tmp_path / "broken.json").write_text("{}")
    before = keyframes(page)
    page.click("#camera-file button[aria-label='Clear']")
    page.set_input_files("#camera-file input[type=file]", str(tmp_path / "broken.json"))
    assert "broken.json" in wait_words(page, "camera-said", "neither keyframes nor frames")
    answered(page)
    assert keyframes(page) == before


def test_a_path_into_the_scene_is_warned_of(page):
    first = picture(page, "warp")
    choose_move(page, "Dolly in")
    wait_other_picture(page, "warp", first)
    answered(page)  # a choice in a Dropdown is told twice at times, and sets the path again
    page.fill("#editor [data-field=eye-2]", "2.5")
    page.fill("#editor [data-field=target-2]", "4")
    page.press("#editor [data-field=target-2]", "Enter")
    wait_words(page, "warp-status", "goes behind what your clip shows|nearly touches|Almost nothing")


def test_the_page_and_the_pipeline_travel_the_same_path(page):
    winding = Move(
        (
            Keyframe(0.0, (0.1, 0.0, -0.2), fov=50.0, ease="in"),
            Keyframe(0.3, (0.4, -0.1, 0.1), (0.1, 0.0, 1.0), roll=5.0),
            Keyframe(0.5, (0.4, -0.1, 0.1), (0.1, 0.0, 1.0), roll=5.0, ease="in-out"),
            Keyframe(0.8, (0.2, 0.1, 0.0), (0.1, 0.0, 1.0), ease="out"),
            Keyframe(1.0, (-0.3, 0.2, -0.2), (0.0, 0.1, 1.0), roll=-8.0, fov=70.0),
        )
    )
    for move, speed in itertools.product([winding, *map(preset_move, MOVES)], SPEEDS):
        move = replace(move, speed=speed)
        cameras = page.evaluate(
            """(move) => { const { pathOf, axesOf } = window.recapturePath; const path = pathOf(move, 55);
              return [...Array(33).keys()].map((i) => { const c = path(i / 32);
                return [...c.eye, ...axesOf(c).x, ...axesOf(c).y, c.fov]; }); }""",
            move.to_dict(),
        )
        poses, fov = sample_move(move, 33, 55.0)
        expected = torch.cat([poses[:, :3, 3], poses[:, :3, 0], poses[:, :3, 1], fov[:, None]], 1).numpy()
        assert np.abs(np.array(cameras) - expected).max() < (1e-9 if speed == "keyframes" else 1e-4)


def test_a_path_is_drawn_from_above_eased_and_compared(visit, clip):
    page = ready(visit(), clip)
    before = keyframes(page)
    do(page, "keep")
    do(page, "sketch")
    box = page.locator("#editor .rc-cloud-view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y + 80)
    page.mouse.down()
    for step in range(1, 13):
        page.mouse.move(x - 60 + 10 * step, y + 80 - 4 * step)
    page.mouse.up()
    answered(page)
    drawn = keyframes(page)
    assert len(drawn) >= 2 and all(k["eye"][1] == before[0]["eye"][1] for k in drawn), "at the height of the first"
    steps = np.diff([k["eye"] for k in drawn], axis=0)
    assert (steps[:, 0] > 0).all() and (steps[:, 2] > 0).all(), "to the right, and forward, which is up"
    page.fill("#editor [data-field=lens]", "50")
    page.press("#editor [data-field=lens]", "Tab")
    assert float(page.input_value("#editor [data-field=fov]")) == pytest.approx(39.6, abs=0.1)
    page.click("#editor [data-kept='0']")
    assert keyframes(page) == before
    page.click("#editor [data-key='0']")
    page.select_option("#editor [data-field=ease]", "in-out")
    answered(page)
    assert keyframes(page)[0]["ease"] == "in-out"
    page.reload()
    page.wait_for_selector("#editor [data-kept='0']")  # the browser remembers them
    page.evaluate("localStorage.setItem('recapture-kept', '[{}, 3]')")
    page.reload()
    page.wait_for_selector("#editor .rc-kept-row", state="hidden")  # no paths: nothing to show


def test_capture_is_exact(page):
    """A cloud point is at the same pixel in Plotly's picture, in the overlay and in the warp's camera."""
    look(page, [0.35, -0.2, -0.3], [0.1, 0.05, 0.9])
    do(page, "add")
    answered(page)
    seen = page.evaluate(
        f"""async () => {{
          const editor = {EDITOR}.recapture, plot = {PLOT}.glplot, box = editor.frameBox(), points = [];
          const view = document.querySelector('#editor .rc-cloud-view'), {{ clientWidth: w, clientHeight: h }} = view;
          const cloud = await editor.cloudAt(editor.shownCloud), {{ view: v, projection }} = plot.cameraParams;
          const all = [0, 1, 2, 3];
          const times = (m, p) => all.map((r) => all.reduce((sum, c) => sum + m[4 * c + r] * p[c], 0));
          const range = ['x', 'y', 'z'].map((a) => view._fullLayout.scene[a + 'axis'].range);
          for (let i = 0; i < cloud.n; i += Math.floor(cloud.n / 40)) {{
            const [a, b, c] = cloud.axes.map((axis) => axis[i]);
            const unit = plot.aspect.map((s, k) =>
              s * ([a, b, c][k] - (range[k][0] + range[k][1]) / 2) / (range[k][1] - range[k][0]));
            const q = times(projection, times(v, [...unit, 1]));
            const ours = editor.points.to([a / cloud.distance, -c / cloud.distance, b / cloud.distance]);
            points.push({{
              point: [a, -c, b],
              ours: [ours[0] - box.left, ours[1] - box.top],
              plotly: [(q[0] / q[3] + 1) / 2 * w - box.left, (1 - q[1] / q[3]) / 2 * h - box.top],
            }});
          }}
          return {{ points, box, distance: cloud.distance, keyframe: editor.move.keyframes.at(-1) }};
        }}"""
    )
    ours, plotly = (np.array([p[name] for p in seen["points"]]) for name in ("ours", "plotly"))
    assert np.abs(ours - plotly).max() < 0.5, "the overlay lies on Plotly's points"

    from pipeline.camera.geometry import default_intrinsics, static_path

    width, height = round(seen["box"]["width"]), round(seen["box"]["height"])
    source = static_path(default_intrinsics(height, width, 1, 55.0))
    keyframe = seen["keyframe"]
    move = Move((Keyframe(0.0, tuple(keyframe["eye"]), tuple(keyframe["target"]), keyframe["roll"], keyframe["fov"]),))
    path = target_path(move, source, seen["distance"], (height, width))
    points = torch.tensor([p["point"] for p in seen["points"]])[None, None]
    uv, _ = project(transform(invert_rigid(path.world_from_cam), points), path.K)
    assert np.abs(uv[0, 0].numpy() - ours).max() < 1.0, "the warp's camera sees them there too"


def fits(page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    well = page.locator("#editor .rc-well").bounding_box()
    assert well["width"] > min(320, width - 80) and well["height"] >= 300
    for name in ("add", "undo", "through", "save"):
        box = page.locator(f"#editor [data-do={name}]").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (390, 844)])
def test_the_editor_fits(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    still(page, "#editor .rc-well", "#editor [data-do=save]")
    fits(page, width)


def swipe(page, x: float, y: float, dx: float, dy: float) -> None:
    """One finger put down, moved and lifted; the view does not scroll away under it."""
    top = "document.querySelector('#editor .rc-well').getBoundingClientRect().top"
    stood = page.evaluate(top)
    touches = page.context.new_cdp_session(page)
    send = lambda kind, points: touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    send("touchStart", [{"x": x, "y": y}])
    for part in range(1, 6):
        send("touchMove", [{"x": x + dx * part / 5, "y": y + dy * part / 5}])
        page.wait_for_timeout(30)
    send("touchEnd", [])
    page.wait_for_timeout(200)  # in which it would scroll
    assert page.evaluate(top) == pytest.approx(stood, abs=2)


def test_a_finger_turns_the_view_and_moves_a_camera(visit, clip):
    page = ready(visit(390, 844, touch=True), clip)
    fits(page, 390)
    page.locator("#editor .rc-well").scroll_into_view_if_needed()
    eye = f"JSON.stringify({PLOT}.getCamera().eye)"
    before, box = page.evaluate(eye), page.locator("#editor .rc-cloud-view").bounding_box()
    swipe(page, box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2, 60, 30)
    page.wait_for_function(f"(before) => {eye} !== before", arg=before)

    look(page, [0.9, -0.7, -1.0], [0, 0, 0.8])
    page.tap("#editor [data-key='1']")
    stood = keyframes(page)
    swipe(page, *grip(page, 1, "eye"), 25, -20)
    moved = keyframes(page)
    assert moved[1]["eye"] != stood[1]["eye"] and moved[0] == stood[0]


def timing(page) -> list[list[float]]:
    return page.evaluate(f"JSON.parse(JSON.stringify({EDITOR}.recapture.move.timing))")


def test_the_clip_runs_backwards_and_along_a_curve_of_ones_own(page):
    forwards = picture(page, "warp")
    assert not page.is_visible("#editor .rc-curve")
    page.select_option("#editor [data-field=timing]", "reverse")
    assert timing(page) == [[0, 1], [1, 0]]
    backwards = wait_other_picture(page, "warp", forwards)
    page.locator("#editor .rc-curve [data-point='1']").focus()
    page.keyboard.press("ArrowUp")
    assert timing(page) == [[0, 1], [1, 0.02]]
    assert page.input_value("#editor [data-field=timing]") == "own"
    wait_other_picture(page, "warp", backwards)
    box = page.locator("#editor .rc-curve svg").bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert [len(timing(page)), timing(page)[1]] == [3, [pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02)]]
    do(page, "undo")
    do(page, "undo")
    do(page, "undo")
    assert timing(page) == [] and not page.is_visible("#editor .rc-curve")
    page.select_option("#editor [data-field=timing]", "frozen")
    assert timing(page) == [
        [0, page.evaluate("1 * document.querySelector('#editor [data-field=moment]').value") / 1000]
    ]
    answered(page)
