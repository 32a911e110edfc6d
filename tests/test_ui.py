"""The job store and the plain functions behind the page; the page itself is driven in tests/browser."""

from __future__ import annotations

import contextvars
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import report

from pipeline import InputError, result_of
from pipeline.camera.moves import MOVES, preset_move
from pipeline.method.latent_mask import LATENT_MASKS, PHI
from pipeline.method.solvers import SCHEDULES, SOLVERS
from pipeline.render.analysis import Analysis
from pipeline.render.events import DoneEvent, FailedEvent, RenderResult, StageEvent, StepEvent
from pipeline.render.request import RenderRequest
from ui import media, widgets
from ui.analyses import Analyses
from ui.controls import advanced_settings, amount_slider, depth_choices, request_from, values_from
from ui.examples import find_examples
from ui.jobs import MAX_WAITING, JobStore
from ui.result import figures_html, public_report
from ui.terms import chosen_model, terms_classes, terms_html
from ui.words import change_words

PREVIEW = np.zeros((2, 4, 6, 3), np.uint8)


class Renders:
    """A render whose steps the test lets through one by one."""

    def __init__(self, steps: int = 3):
        self.steps = steps
        self.go = threading.Semaphore(0)
        self.closed: list[Path] = []
        self.seen: list[RenderRequest] = []

    def __call__(self, request, folder):
        self.seen.append(request)
        try:
            yield StageEvent("read", "Reading the clip", 0.0)
            for index in range(1, self.steps + 1):
                assert self.go.acquire(timeout=10)
                done = index / self.steps
                yield StepEvent(index, self.steps, 1 - done, PREVIEW, self.steps - index, done, "a test")
            yield DoneEvent(
                RenderResult(folder, folder / "result.mp4", folder / "source.mp4", folder / "warp.mp4", report(request))
            )
        finally:
            self.closed.append(folder)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"the bytes of a clip")
    return str(path)


@pytest.fixture
def make_store(tmp_path):
    stores = []

    def make(render, **options):
        stores.append(JobStore(render, root=tmp_path / f"jobs{len(stores)}", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close(wait=2)


def stand_in(**attributes) -> Any:
    """An object with just the attributes that a function reads."""
    return SimpleNamespace(**attributes)


def wait_for(condition, seconds=60.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.01)


def test_follow_shows_progress_and_result(make_store, clip):
    renders = Renders()
    store = make_store(renders)
    job_id = store.submit(RenderRequest.of(clip=clip))
    renders.go.release(3)
    views = list(store.follow(job_id))
    assert views[-1].state == "done" and views[-1].result.folder == store.get(job_id).folder
    assert views[-1].fraction == 1.0 and views[-1].preview is PREVIEW and views[-1].preview_by == "a test"
    assert [view.step for view in views] == sorted(view.step for view in views)
    assert len(list(store.follow(job_id))) == 1, "coming back later gives the end at once"


def test_a_job_outlives_its_follower(make_store, clip):
    renders = Renders()
    store = make_store(renders)
    job_id = store.submit(RenderRequest.of(clip=clip))
    first = store.follow(job_id)
    next(first)
    first.close()  # the page was closed
    renders.go.release(3)
    assert [*store.follow(job_id)][-1].state == "done"


def test_jobs_wait_their_turn_and_say_so(make_store, clip):
    renders = Renders(steps=1)
    store = make_store(renders)
    ids = [store.submit(RenderRequest.of(clip=clip)) for _ in range(3)]
    wait_for(lambda: store.get(ids[0]).view.state == "running")
    assert [store.get(i).view.ahead for i in ids] == [0, 1, 2]
    assert "2 renders are ahead" in store.get(ids[2]).view.message
    store.cancel(ids[1])
    assert store.get(ids[1]).view.state == "stopped" and store.get(ids[2]).view.ahead == 1
    renders.go.release(2)
    assert [*store.follow(ids[2])][-1].state == "done"
    assert len(renders.seen) == 2, "the one stopped in the queue never ran"


def test_stop_takes_effect_at_the_next_step(make_store, clip):
    renders = Renders()
    store = make_store(renders)
    job_id = store.submit(RenderRequest.of(clip=clip))
    renders.go.release(1)
    wait_for(lambda: store.get(job_id).view.step == 1)
    store.cancel(job_id)
    assert store.get(job_id).view.active and "Stopping" in store.get(job_id).view.message
    renders.go.release(1)
    assert [*store.follow(job_id)][-1].state == "stopped"
    wait_for(lambda: renders.closed)


def test_two_jobs_share_nothing(make_store, clip):
    renders = Renders(steps=0)
    store = make_store(renders)
    ids = [store.submit(RenderRequest.of(clip=clip)) for _ in range(2)]
    for job_id in ids:
        list(store.follow(job_id))
    folders = [store.get(job_id).folder for job_id in ids]
    assert folders[0] != folders[1] and all(len(job_id) == 32 for job_id in ids)
    assert [Path(request.clip).parents[1] for request in renders.seen] == folders
    os.unlink(clip)  # the upload goes, the jobs' own copies stay
    assert all(Path(request.clip).read_bytes() == b"the bytes of a clip" for request in renders.seen)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("My walk (2).MP4", "My walk (2).mp4"),
        ("frame%03d.png", "frame_03d.png"),
        ("übung.tar.gz", "übung_tar.gz"),
        ("x" * 90 + ".mov", "x" * 60 + ".mov"),
        ("a.not a suffix", "a"),
        ("..mp4", "_.mp4"),
    ],
)
def test_a_job_calls_its_files_as_the_visitor_did(make_store, tmp_path, given, kept):
    (tmp_path / given).write_bytes(b"a clip")
    renders = Renders(steps=0)
    store = make_store(renders)
    list(store.follow(store.submit(RenderRequest.of(clip=str(tmp_path / given), mask=str(tmp_path / given)))))
    clip, mask = Path(renders.seen[0].clip), Path(renders.seen[0].mask)
    assert clip.name == mask.name == kept and clip != mask and clip.read_bytes() == b"a clip"


def test_unknown_ids_are_nobody(make_store):
    store = make_store(Renders())
    for wrong in ("", "0" * 32, None, 7, ["x"], {"a": 1}):
        assert store.get(wrong) is None and list(store.follow(wrong)) == []
        store.cancel(wrong)


def test_failures_are_told(make_store, clip):
    def told(request, folder):
        yield FailedEvent("The clip has no video.")

    def fault(request, folder):
        yield StageEvent("read", "Reading", 0.0)
        raise RuntimeError("/secret/place")

    def nothing(request, folder):
        yield StageEvent("read", "Reading", 0.0)

    messages = []
    for render in (told, fault, nothing):
        store = make_store(render)
        views = [*store.follow(store.submit(RenderRequest.of(clip=clip)))]
        assert views[-1].state == "failed"
        messages.append(views[-1].message)
    assert messages[0] == "The clip has no video."
    assert "RuntimeError" in messages[1] and "secret" not in messages[1]
    assert "without a result" in messages[2]


def test_one_failure_does_not_end_the_worker(make_store, clip):
    errors = iter([RuntimeError("first"), None])

    def render(request, folder):
        if error := next(errors):
            raise error
        yield DoneEvent(RenderResult(folder, folder, folder, folder, report(request)))

    store = make_store(render)
    assert [*store.follow(store.submit(RenderRequest.of(clip=clip)))][-1].state == "failed"
    assert [*store.follow(store.submit(RenderRequest.of(clip=clip)))][-1].state == "done"


def test_a_missing_upload_is_an_input_error(make_store, tmp_path):
    store = make_store(Renders())
    with pytest.raises(InputError, match="upload it again"):
        store.submit(RenderRequest.of(clip=str(tmp_path / "gone.mp4")))
    assert not list(store.root.iterdir())


def test_the_queue_has_an_end(make_store, clip):
    renders = Renders(steps=1)
    store = make_store(renders)
    first = store.submit(RenderRequest.of(clip=clip))
    wait_for(lambda: store.get(first).view.state == "running")
    for _ in range(MAX_WAITING):
        store.submit(RenderRequest.of(clip=clip))
    with pytest.raises(InputError, match="waiting"):
        store.submit(RenderRequest.of(clip=clip))
    renders.go.release(MAX_WAITING + 1)


def test_old_folders_are_removed_and_running_jobs_kept(make_store, clip):
    renders = Renders(steps=1)
    store = make_store(renders, keep_hours=0)
    running = store.submit(RenderRequest.of(clip=clip))
    wait_for(lambda: store.get(running).view.state == "running")
    loose = store.new_folder()
    time.sleep(0.02)
    store.clean()
    assert not loose.exists() and store.get(running).folder.exists()
    renders.go.release(1)
    list(store.follow(running))
    time.sleep(0.02)
    store.clean()
    assert store.get(running) is None and not list(store.root.iterdir())


def test_the_visitors_context_reaches_the_worker(make_store, clip):
    quota = contextvars.ContextVar("quota", default="none")
    seen = []

    def render(request, folder):
        seen.append(quota.get())
        yield FailedEvent("enough")

    store = make_store(render)
    quota.set("the visitor's")
    list(store.follow(store.submit(RenderRequest.of(clip=clip))))
    assert seen == ["the visitor's"]


def test_close_stops_and_removes(make_store, clip):
    renders = Renders()
    store = make_store(renders)
    store.submit(RenderRequest.of(clip=clip))
    renders.go.release(3)
    store.close(wait=5)
    assert not store.root.exists()


def test_every_solver_and_mask_can_be_chosen_by_a_name_for_people():
    with gr.Blocks():
        controls, _ = advanced_settings()
    tables = {"solver": SOLVERS, "schedule": SCHEDULES, "phi": PHI}
    tables["latent_mask"] = [
        "",
        *(name for name in LATENT_MASKS if name != "reference"),
    ]  # which needs the wanted video
    for name, table in tables.items():
        assert [value for _, value in controls[name].choices] == list(table)
        assert all(label != value for label, value in controls[name].choices if value != "tanh")
    own = {"iterations": 3, "step_size": 0.5, "tau": 0.2, "phi": "exp", "schedule": "rising"}
    request = RenderRequest.of("a.mp4", amount=20.0, solver="repaint", **own)
    assert request_from(values_from(request), request.backbone) == request


def test_request_and_controls_meet():
    request = RenderRequest.of(clip="a.mp4", camera="dolly-in", amount=12.0, size=(128, 208), steps=4, prompt="a ball")
    assert request_from(values_from(request), request.backbone) == request
    assert request_from({"clip": "a.mp4", "gamma": "0,5", "steps": "12"}, "nano").guidance.gamma == 0.5
    plain = request_from({"clip": "a.mp4", "frames": None, "prompt": "", "height": None, "width": None}, "nano")
    assert plain == RenderRequest.of(clip="a.mp4")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"clip": None}, "Choose a clip"),
        ({"height": "128"}, "both a height and a width"),
        ({"height": "99999", "width": "99999"}, "too large"),
        ({"frames": "100000"}, "too many"),
        ({"steps": "-1"}, "steps"),
        ({"steps": "many"}, "Steps: 'many' is not a whole number"),
        ({"seed": "1.5"}, "Seed: '1.5' is not a whole number"),
        ({"gamma": "nan"}, "gamma"),
        ({"seed": "inf"}, "Seed"),
    ],
)
def test_wrong_controls_are_input_errors(values, words):
    with pytest.raises(InputError, match=words):
        request_from({"clip": "a.mp4"} | values, "nano")


def test_models_with_terms_are_accepted_by_name():
    values = {"clip": "a.mp4", "amount": 12.0, "first_frame_model": "flux-fill", "fast": "lora"}
    for accepted in ((), ("flux-fill",), ("causvid-lora", "depthcrafter")):
        with pytest.raises(InputError, match="accept its terms"):
            request_from(values | {"accepted": accepted}, "nano")
    request = request_from(values | {"accepted": ("flux-fill", "causvid-lora")}, "nano")
    assert request.first_frame_model == "flux-fill" and request.accepted == ("flux-fill", "causvid-lora")
    assert request_from(values_from(request), "nano") == request
    left = request_from(values | {"first_frame_model": "", "fast": "off"}, "nano")
    assert left.first_frame_model is None and values_from(left)["first_frame_model"] == ""
    for model, words in (("flux-fill", "commercially"), ("sdxl-inpaint", "RAIL"), ("causvid-lora", "alike")):
        assert words in terms_html(model) and "rc-away" not in terms_classes(model)
    for choice in ("", None, "off", "cache", "nano", "depth-anything-v2-small"):
        assert terms_html(chosen_model(choice)) == ""
    assert chosen_model("lora") == "causvid-lora"


def test_a_space_allows_less(monkeypatch):
    asked = {"clip": "a.mp4", "frames": "90", "height": "480", "width": "832"}
    assert request_from(asked | {"steps": "60"}, "nano").guidance.steps == 60
    monkeypatch.setenv("SPACE_ID", "somebody/recapture")
    for values, words in ((asked, "Frames: 90 is too many here; give up to 81"), ({"steps": "60"}, "up to 50")):
        with pytest.raises(InputError, match=words):
            request_from({"clip": "a.mp4"} | values, "nano")
    assert request_from(asked | {"frames": "81", "steps": "50"}, "nano").frames == 81


@pytest.mark.parametrize("camera", MOVES)
def test_amount_slider_stays_in_range(camera):
    low, high = MOVES[camera].range
    assert amount_slider(camera)["value"] == MOVES[camera].default
    assert amount_slider(camera, high + 1)["value"] == high
    assert amount_slider(camera, low - 1)["value"] == low


def test_examples_are_found_with_their_requests(tmp_path):
    for name in ("blue-box", "red_ball"):
        (tmp_path / f"{name}.mp4").touch()
    described = RenderRequest.of(clip="elsewhere.mp4", camera="dolly-out", prompt="a blue box")
    (tmp_path / "blue-box.json").write_text(described.to_json())
    (tmp_path / "red_ball.json").write_text("not JSON")
    examples = find_examples(tmp_path)
    assert examples == [
        ("Blue box", replace(described, clip=str(tmp_path / "blue-box.mp4")), True),
        ("Red ball", RenderRequest.of(clip=str(tmp_path / "red_ball.mp4")), False),
    ]


def test_visitors_do_not_see_places_on_the_server():
    words = widgets.without_paths("The clip /tmp/gradio/0123abcd/my clip.mp4 and /srv/jobs/x-1/clip.mp4 has no video.")
    assert "/tmp" not in words and "/srv" not in words and "clip.mp4 has no video." in words
    assert widgets.without_paths("480x832, 3 / 4 and 24/7") == "480x832, 3 / 4 and 24/7"
    told = report(RenderRequest.of("/srv/jobs/clip.mp4", depth="/srv/d.npz", seed=3))
    public = public_report(stand_in(report=told)).to_dict()
    assert "/srv" not in json.dumps(public) and public["seed"] == 3
    assert public["request"]["clip"] == "clip.mp4" and public["depth"]["from"] == "d.npz"


def test_figures_in_plain_words():
    html = figures_html(replace(report(RenderRequest("a.mp4")), notes=("<script>alert(1)</script>",)))
    assert all(
        figure in html for figure in ("Inpainted by a model", "12.3 %", "21.4 dB", "0.800", "12.3 s", "25 steps")
    )
    assert "<script>" not in html


def test_a_result_says_what_was_changed():
    html = figures_html(report(RenderRequest.of("My walk.mp4", camera="orbit-left")))
    assert "Orbit left, 20 degrees" in html and "<dd>My walk.mp4</dd>" in html
    words = lambda **given: change_words(RenderRequest.of("a.mp4", **given))
    assert words(move=preset_move("spiral")) == "Your own camera path"
    replaced = {"camera": "still", "mask": "m.npz", "prompt": "a red cube"}
    assert words(**replaced) == "No move (as filmed), an object replaced: “a red cube”"
    assert words(**replaced, remove=True).endswith(", an object removed")


def test_depth_colours_put_near_above_far():
    z = np.linspace(1, 10, 64, dtype=np.float32).reshape(1, 8, 8)
    brightness = media.depth_frames(z).astype(int).sum(-1)[0].reshape(-1)
    assert (np.diff(brightness) <= 0).all() and brightness[0] > brightness[-1] + 200


def test_loops_keep_their_time(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (9, 20, 30, 3), dtype=np.uint8)
    path = tmp_path / "loop.webp"
    path.write_bytes(media.loop_webp(frames, 10))
    with Image.open(path) as image:
        assert (getattr(image, "n_frames", 1), image.size, image.info["loop"]) == (9, (30, 20), 0)
    path.write_bytes(media.loop_webp(np.repeat(frames, 20, 0), 10, width=60))
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) in range(2, media.MAX_LOOP_FRAMES + 1) and image.size == (60, 40)


def test_cloud_files_are_the_frames_unprojected():
    height, width, focal = 12, 20, 25.0
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    frames = torch.zeros(5, 3, height, width)
    frames[:, 0, :, : width // 2] = 1.0  # red on the left
    z = torch.arange(4.0, 9.0)[:, None, None].expand(5, height, width)
    analysis = stand_in(
        clip=stand_in(frames=frames), depth=stand_in(z=z), source=stand_in(K=K.expand(5, 3, 3)), distance=4.0
    )
    files = media.cloud_files(analysis, points=10_000, moments=3)
    assert len(files) == 3, "the first, the middle and the last frame"
    for data, depth in zip(files, (4.0, 6.0, 8.0), strict=True):
        n = int.from_bytes(data[:4], "little")
        head = np.frombuffer(data, "<f4", 7, 4)
        palette = np.frombuffer(data, np.uint8, 768, 32).reshape(256, 3)
        packed = np.frombuffer(data, "<u2", 3 * n, 800).reshape(n, 3)
        colours = palette[np.frombuffer(data, np.uint8, n, 800 + 6 * n)]
        points = head[:3] + packed / 65535 * head[3:6]
        assert n == height * width and len(data) == 800 + 7 * n
        assert head[6] == 4.0 and np.frombuffer(files[0], "<f4", 6, 4).tolist() == head[:6].tolist(), "one box for all"
        assert np.allclose(points[:, 1], depth, atol=1e-3), "y is forward"
        corner = [(0.5 - 10) / focal * depth, depth, -(0.5 - 6) / focal * depth]
        assert np.allclose(points[0], corner, atol=1e-3), "pixel centres, z up"
        left = points[:, 0] < 0
        assert (colours[left] == [255, 0, 0]).all() and (colours[~left] == 0).all()


def test_the_unknown_strip_says_where_it_is_worst():
    strip = widgets.unknown_strip([0.0, 0.25, 0.5])
    assert strip.count("<rect") == 3 and "most in frame 3: 50 %" in strip


def test_analyses_are_kept_and_shared():
    calls = []

    def analyse(request):
        calls.append(request)
        yield StageEvent("depth", "Estimating depth", 0.5)
        nothing: Any = None
        return Analysis(*[nothing] * 8)

    analyses = Analyses(analyse, keep=2)
    request = RenderRequest.of(clip="a.mp4")
    assert analyses.get(request) is None
    result_of(analyses.find(request))
    assert analyses.get(request.changed(camera="dolly-in", amount=5, prompt="x", steps=3)) is analyses.get(request)
    result_of(analyses.find(request.changed(camera="dolly-in")))
    assert len(calls) == 1, "another camera costs no second analysis"
    result_of(analyses.find(request.changed(frames=5)))
    result_of(analyses.find(request.changed(fov=40.0)))
    assert len(calls) == 3 and analyses.get(request) is None, "only the last few are kept"


def test_the_depth_model_and_what_is_accepted_reach_the_request(clip):
    values = values_from(RenderRequest.of(clip=clip))
    assert values["depth_model"] == "" and request_from(values, "nano").depth_model is None
    with pytest.raises(InputError, match="academic"):
        request_from(values | {"depth_model": "depthcrafter"}, "nano")
    request = request_from(values | {"depth_model": "depthcrafter", "accepted": ("depthcrafter",)}, "nano")
    assert request.accepted == ("depthcrafter",)
    assert request_from(values_from(request), "nano") == request
    assert Analyses.key(request) != Analyses.key(request.changed(depth_model=None))


def test_only_the_hosts_depth_models_are_offered(tmp_path):
    names = [value for _, value in depth_choices()]
    assert names[0] == "" and {"depthcrafter", "depth-anything-v2-small"} < set(names)
    (label, value) = depth_choices(str(tmp_path))[-1]
    assert value == str(tmp_path) and label == tmp_path.name
    assert "academic" in terms_html("depthcrafter") and not terms_html("depth-anything-v2-small")
