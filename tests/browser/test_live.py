"""The whole app under faults: a Stop in a long stage, a full disk, a killed server, eight visitors at once."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import write_clip
from tests.browser.page import analysed, open_page, upload, wait_words
from tests.browser.visitor import Visitor

pytestmark = pytest.mark.browser
HERE = Path(__file__).resolve().parent


class App:
    """`python app.py` on a backbone, with faults that are switched on and off, see `faulty_app`."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone = folder, backbone
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        (folder / "faults").mkdir()
        self.start()

    def start(self) -> None:
        environment = os.environ | {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(self.folder / "gradio"),
            "HF_HUB_OFFLINE": "1",
            "RECAPTURE_CACHE": str(self.folder / "cache"),
        }
        options = ["--backbone", str(self.backbone), "--port", str(self.port), "--host", "127.0.0.1"]
        command = [sys.executable, str(HERE / "faulty_app.py"), str(self.folder / "faults"), *options]
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        for _ in range(240):
            assert self.process.poll() is None, f"the app ended:\n{(self.folder / 'log.txt').read_text()}"
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                time.sleep(0.25)
        pytest.fail("the app did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def fault(self, name: str, on: bool = True) -> None:
        (self.folder / "faults" / name).touch() if on else (self.folder / "faults" / name).unlink(missing_ok=True)

    def jobs(self) -> list[Path]:
        return sorted((self.folder / "gradio").glob("recapture-*/job-*"), key=lambda path: path.stat().st_ctime)


@pytest.fixture(scope="module")
def app(tiny_backbone_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    backbone = Path(shutil.copytree(tiny_backbone_folder, folder / "backbone"))
    settings = json.loads((backbone / "recapture.json").read_text()) | {"depth": "depth", "steps": 2}
    shutil.copytree(HERE.parents[1] / "assets" / "nano" / "depth", backbone / "depth")
    (backbone / "recapture.json").write_text(json.dumps(settings))
    app = App(folder, backbone)
    yield app
    app.process.terminate()
    app.process.wait(90)


@pytest.fixture
def visit_app(app, chromium):
    """A function that opens the app as a new visitor whose clip is analysed."""
    contexts = []
    app.wait()

    def visitor(clip):
        contexts.append(chromium.new_context())
        page = open_page(contexts[-1], app.address, cloud=False)
        upload(page, clip)
        analysed(page)
        return page

    yield visitor
    for name in ("slow", "full"):
        app.fault(name, False)
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("short") / "disc.mp4", frames=5, size=(96, 160))


def test_stop_acts_though_the_stage_goes_on(app, visit_app, short):
    """How soon is asked where no browser takes its time: tests/test_jobs_kept.py."""
    page = visit_app(short)
    app.fault("slow")
    page.click("#render")
    wait_words(page, "progress", "Decoding")
    page.wait_for_selector("#preview img")
    page.click("#stop")
    wait_words(page, "progress", "Stopped")
    expect(page.locator("#render")).to_be_enabled()
    expect(page.locator("#preview img")).to_be_visible()  # what was seen of it stays
    app.fault("slow", False)
    page.click("#render")
    wait_words(page, "progress", "Done")


def test_a_full_disk_is_said_and_leaves_nothing_behind(app, visit_app, short):
    page = visit_app(short)
    app.fault("full")
    page.click("#render")
    words = wait_words(page, "progress", "disk is full")
    assert "again" in words and "/" not in words and "Error" not in words
    (*_, job) = app.jobs()
    left = [path.name for path in job.rglob("*") if path.suffix == ".mp4" and "given" not in path.parent.name]
    assert left == [] and not list(job.rglob(".write-*"))
    app.fault("full", False)
    page.click("#render")
    wait_words(page, "progress", "Done")


def test_a_killed_server_is_missed_by_nobody_for_long(app, visit_app, short):
    served, left = visit_app(short), visit_app(short)
    served.click("#render")
    wait_words(served, "progress", "Done")
    app.fault("slow")
    left.click("#render")
    wait_words(left, "progress", "Decoding")
    app.kill()
    wait_words(left, "rc-server", "cannot be reached")
    app.fault("slow", False)
    app.start()
    app.wait()

    wait_words(left, "progress", "server was stopped.*press Render to start it again")  # the page comes back by itself
    left.wait_for_selector("#clip video")
    wait_words(left, "analysis-status", "^Ready")
    left.click("#render")
    wait_words(left, "progress", "Done")

    served.reload()
    wait_words(served, "progress", "Done")
    expect(served.locator("#result")).to_be_visible()
    served.wait_for_function("[...document.querySelectorAll('#compare video')].every(v => v.readyState >= 2)")


def test_eight_visitors_at_once_get_their_own(app, tmp_path):
    app.wait()
    colours = np.random.default_rng(0).permuted(np.linspace(30, 220, 24).astype(np.uint8)).reshape(8, 3)
    found, faults = {}, []

    def visit(number: int) -> None:
        try:
            visitor = Visitor(app.address)
            clip = visitor.upload(plain_clip(tmp_path / f"clip-{number}.mp4", colours[number]))
            job, *_ = visitor.click("render", clip=clip, **{"set-seed": str(number), "set-steps": "1"})
            visitor.follow(job)
            (folder,) = [path for path in app.jobs() if path.name == f"job-{job}"]
            report = json.loads(visitor.file(folder / f"clip-{number}-recaptured.json"))
            found[number] = report["request"]["seed"], colour_of(visitor.file(folder / "result.mp4"))
        except Exception as error:
            faults.append((number, repr(error)))

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(120)
    assert faults == [] and sorted(found) == list(range(8))
    for number, (seed, colour) in found.items():
        assert seed == number
        assert np.abs(colours.astype(float) - colour).sum(1).argmin() == number


def plain_clip(path: Path, colour: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = np.broadcast_to(colour, (64, 96, 3)).copy()
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def colour_of(video: bytes) -> np.ndarray:
    """The mean colour in the middle of the first frame."""
    with av.open(io.BytesIO(video)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    return picture[height // 4 : -height // 4, width // 4 : -width // 4].mean((0, 1))
