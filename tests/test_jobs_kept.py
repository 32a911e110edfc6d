"""Jobs and their results outlive the server that made them; visitors take turns; nobody loses words of a refusal."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_ui import Renders, report, wait_for

from pipeline import InputError
from pipeline.render.events import RenderResult
from pipeline.render.report import Report
from pipeline.render.request import RenderRequest
from ui.book import Book, find_root
from ui.jobs import INTERRUPTED, MAX_OWN, JobStore, JobView
from ui.page import Page
from ui.render_card import Describe, RenderCard, Rendering

ROOT = Path(__file__).parents[1]
SERVER = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_ui import Renders
from pipeline.render.request import RenderRequest
from ui.jobs import JobStore
renders = Renders(steps=1)
store = JobStore(renders)
renders.go.release()
done, running, queued = (store.submit(RenderRequest.of(clip={clip!r}, seed=n), str(n)) for n in range(3))
while store.get(done).view.state != "done" or store.get(running).view.state != "running":
    time.sleep(0.01)
(store.get(done).folder / "result.mp4").write_bytes(b"a result")
time.sleep(0.5)  # the book is written a moment later
print(done, running, queued, store.root, flush=True)
time.sleep(60)
"""


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"the bytes of a clip")
    return str(tmp_path / "clip.mp4")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "place"))
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_server_that_was_killed_loses_nothing(clip, place):
    code = SERVER.format(root=str(ROOT), tests=str(ROOT / "tests"), clip=clip)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        done, running, queued, root = server.stdout.readline().split()
        assert find_root(str(place), 3600) != Path(root), "it is in use"
        server.send_signal(signal.SIGKILL)
    Path(clip).unlink()  # the upload need not last as long as the job
    renders = Renders(steps=1)
    store = JobStore(renders)
    try:
        assert str(store.root) == root
        job = store.get(done)
        assert job is not None and job.view.state == "done" and job.view.result is not None
        assert job.view.result.video.read_bytes() == b"a result"
        assert job.view.result.report.request.guidance.seed == 0
        (view,) = store.follow(running)
        assert view.state == "interrupted" and view.message == INTERRUPTED
        renders.go.release()
        wait_for(lambda: store.get(queued).view.state == "done")
        (again,) = [request for request in renders.seen if request.guidance.seed == 2]
        assert Path(again.clip).read_bytes() == b"the bytes of a clip"
    finally:
        store.close()
    assert not [path for path in place.iterdir() if path.name.startswith(Path(root).name)]


def test_orphans_go_when_they_are_old(place):
    ages = {"recapture-old": 9999, "recapture-young": 20, "recapture-new": 10, "recapture-used": 5}
    for name in ages:
        (place / name).mkdir()
    # servers that have ended left three of the books, and this one has the fourth
    code = f"""
import os
from pathlib import Path
from ui.book import Book
books = [Book(Path({str(place)!r}) / name) for name in ("recapture-old", "recapture-young", "recapture-new")]
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 9
    used = Book(place / "recapture-used")
    for name, age in ages.items():
        os.utime(place / f"{name}.sqlite", (time.time() - age, time.time() - age))
    assert find_root(str(place), 3600) == place / "recapture-new"
    assert not list(place.glob("recapture-old*")) and (place / "recapture-used").exists()
    assert (place / "recapture-young").exists() and (place / "recapture-young.sqlite").exists()
    used.close()


def test_a_report_comes_back_as_it_was():
    found = report(RenderRequest.of(clip="clip.mp4", seed=3))
    assert Report.from_dict(found.to_dict()) == found


def test_one_visitor_cannot_take_all_places(tmp_path, clip):
    renders = Renders(steps=1)
    store = JobStore(renders, root=tmp_path / "jobs")
    ask = lambda visitor, seed: store.submit(RenderRequest.of(clip=clip, seed=seed), visitor)
    try:
        first = ask("a", 0)
        wait_for(lambda: store.get(first).view.state == "running")
        assert ask("a", 0) == first, "a second press is the same render"
        mine = [ask("a", seed) for seed in range(1, MAX_OWN + 1)]
        with pytest.raises(InputError, match="of yours are waiting"):
            ask("a", 99)
        other = ask("b", 0)
        assert store.get(other).view.ahead == 1, "it comes before what the first visitor has waiting"
        renders.go.release(2)
        assert [*store.follow(other)][-1].state == "done"
        assert all(store.get(job).view.state != "done" for job in mine)
    finally:
        renders.go.release(9)
        store.close()


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_as_what_it_is(tmp_path, clip):
    def render(request, folder):
        yield from ()
        no_space()

    store = JobStore(render, root=tmp_path / "jobs")
    try:
        view = [*store.follow(store.submit(RenderRequest.of(clip=clip)))][-1]
        assert view.state == "failed" and "disk of the server is full" in view.message
    finally:
        store.close()


def test_an_upload_that_finds_no_room_leaves_nothing_behind(tmp_path, clip, monkeypatch):
    store = JobStore(Renders(), root=tmp_path / "jobs")
    try:
        for name in ("os.link", "shutil.copyfile"):
            monkeypatch.setattr(name, no_space)
        with pytest.raises(InputError, match="disk of the server is full"):
            store.submit(RenderRequest.of(clip=clip))
        assert not list((tmp_path / "jobs").iterdir())
    finally:
        store.close()


def test_a_result_that_finds_no_room_for_its_report_is_shown_later(tmp_path, monkeypatch):
    videos = [tmp_path / f"{name}.mp4" for name in ("result", "source", "warp")]
    for video in videos:
        video.write_bytes(b"a video")
    view = JobView("done", "Done.", result=RenderResult(tmp_path, *videos, report(RenderRequest.of(clip="clip.mp4"))))
    card: Any = SimpleNamespace(**{part.name: part.name for part in fields(RenderCard)})
    rendering = Rendering(cast(Page, None), card, cast(Describe, None))
    with monkeypatch.context() as fault:
        fault.setattr(Path, "write_text", no_space)
        shown = rendering.shown(view, None)
        assert "disk is full" in shown["progress"] and "compare" not in shown
    assert rendering.shown(view, None).keys() >= {"compare", "video", "report", "figures"}
    assert json.loads((tmp_path / "clip-recaptured.json").read_text())["request"]["clip"] == "clip.mp4"


def test_what_is_not_in_the_book_goes_on(tmp_path, clip):
    """A disk that fills up must not cost the render that runs."""
    renders = Renders(steps=1)
    store = JobStore(renders, root=tmp_path / "jobs", keep_hours=0)
    try:
        renders.go.release(2)
        old = store.submit(RenderRequest.of(clip=clip))
        assert [*store.follow(old)][-1].state == "done"
        (tmp_path / "jobs.sqlite").unlink()
        (tmp_path / "jobs.sqlite").mkdir()
        assert [*store.follow(store.submit(RenderRequest.of(clip=clip)))][-1].state == "done"
        assert store.get(old) is None, "what is old goes all the same"
    finally:
        (tmp_path / "jobs.sqlite").rmdir()
        store.close()


def test_stop_frees_the_visitor_within_a_second(tmp_path, clip):
    """Though the step that runs takes longer."""
    renders = Renders(steps=2)
    store = JobStore(renders, root=tmp_path / "jobs")
    try:
        job = store.submit(RenderRequest.of(clip=clip))
        wait_for(lambda: store.get(job).view.state == "running")
        store.cancel(job)
        wait_for(lambda: store.get(job).view.state == "stopped", seconds=1.2)
        following = store.submit(RenderRequest.of(clip=clip, seed=1))
        renders.go.release(3)
        assert [*store.follow(following)][-1].state == "done"
        assert store.get(job).view.state == "stopped"
    finally:
        renders.go.release(9)
        store.close()


def test_eight_visitors_at_once_get_their_own_in_order(tmp_path):
    renders, ends = Renders(steps=1), []
    store = JobStore(renders, root=tmp_path / "jobs")

    def visit(n):
        path = tmp_path / f"clip-{n}.mp4"
        path.write_bytes(b"clip %d" % n)
        with turn:
            job = store.submit(RenderRequest.of(clip=str(path), seed=n), f"visitor {n}")
            asked.append(n)
        view = [*store.follow(job)][-1]
        ends.append((n, view.state, view.result.report.request.guidance.seed, Path(store.get(job).request.clip)))

    turn, asked = threading.Lock(), []
    visitors = [threading.Thread(target=visit, args=(n,)) for n in range(8)]
    try:
        for visitor in visitors:
            visitor.start()
        renders.go.release(8)
        for visitor in visitors:
            visitor.join(20)
        assert [request.guidance.seed for request in renders.seen] == asked
        assert sorted(n for n, *_ in ends) == list(range(8))
        for n, state, seed, clip in ends:
            assert (state, seed) == ("done", n) and clip.read_bytes() == b"clip %d" % n
    finally:
        renders.go.release(9)
        store.close()
