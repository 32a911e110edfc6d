"""The app on a tiny random backbone, and a headless Chromium to drive it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest

from tests.browser.page import SECONDS, open_page, stop_renders

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def write_clip(path: Path, *, frames: int = 24, size: tuple[int, int] = (240, 416), fps: int = 12) -> Path:
    """A red disc that moves over a coarse checkerboard."""
    height, width = size
    rng = np.random.default_rng(0)
    background = np.kron(rng.integers(60, 200, (height // 16, width // 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = background.copy()
            picture[(x - 100 - 6 * t) ** 2 + (y - height // 2) ** 2 < 45**2] = [220, 70, 50]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "disc.mp4")


@pytest.fixture(scope="session")
def server(tiny_backbone_folder, tmp_path_factory):
    """The address of the app, run as a user runs it."""
    folder = tmp_path_factory.mktemp("app")
    backbone = Path(shutil.copytree(tiny_backbone_folder, folder / "backbone"))
    settings = json.loads((backbone / "recapture.json").read_text())
    settings |= {"frames": 9, "length": 9, "pixels": 96 * 160, "steps": 6}
    if "depth" not in settings:
        from pipeline.depth.network import DepthNet

        DepthNet().save_pretrained(backbone / "depth")
        settings["depth"] = "depth"
    (backbone / "recapture.json").write_text(json.dumps(settings))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "HF_HUB_OFFLINE": "1",
        "RECAPTURE_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder),
    }
    log = (folder / "log.txt").open("w")
    command = [sys.executable, "app.py", "--backbone", str(backbone), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, f"the app ended:\n{(folder / 'log.txt').read_text()}"
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the app did not start:\n{(folder / 'log.txt').read_text()}")
        yield address
    finally:
        process.terminate()
        process.wait(90)
        log.close()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    path = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if not path:
        pytest.fail("Chromium is missing: install the Debian package 'chromium', or set CHROMIUM_PATH.")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)  # with a fresh profile of its own
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """A function that opens the app as a new visitor; faults in the page's scripts fail the test."""
    contexts, faults = [], []

    def visitor(width: int = 1440, height: int = 900, *, touch: bool = False, cloud: bool = True):
        context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch)
        contexts.append(context)
        context.on("weberror", lambda fault: faults.append(str(fault.error)))
        return open_page(context, server, cloud)

    yield visitor
    for context in contexts:
        for page in context.pages:
            stop_renders(page)
        context.close()
    assert not faults
