"""The command line of app.py, and what the environment says of how it is served."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

import app

ROOT = Path(app.__file__).resolve().parent


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Runs app.main with these arguments; what `launch` was told, and which backbone was warmed up."""
    told, warmed = {}, []
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **given: told.update(given))
    monkeypatch.setattr(app, "warm", warmed.append)
    monkeypatch.setattr(app, "get_backbone", str)
    monkeypatch.setattr(app, "measure", lambda *_, **__: None)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    monkeypatch.setattr(app, "threading", SimpleNamespace(Thread=InThisThread))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        told.clear(), warmed.clear()
        app.main()
        return dict(told), list(warmed)

    return run


class InThisThread:
    def __init__(self, *, target, args=(), **_):
        self.start = lambda: target(*args)


def test_flags_win_and_nothing_else_is_decided(launched):
    told, _ = launched()
    # None is how Gradio is told to look at GRADIO_SERVER_NAME, GRADIO_SERVER_PORT and GRADIO_SHARE
    assert (told["server_name"], told["server_port"], told["share"]) == (None, None, None)
    assert "root_path" not in told
    told, _ = launched("--host", "0.0.0.0", "--port", "7871", "--share")
    assert (told["server_name"], told["server_port"], told["share"]) == ("0.0.0.0", 7871, True)


def test_visitors_files_lie_with_the_uploads(launched, tmp_path):
    told, _ = launched()
    assert Path(told["allowed_paths"][0]).parent == tmp_path / "uploads"


def test_the_backbone_is_warmed_up_unless_it_would_be_downloaded(launched, monkeypatch, caplog):
    assert launched()[1] == ["nano"]
    monkeypatch.setenv("RECAPTURE_BACKBONE", "wan2.1-fun-1.3b-inp")
    assert launched()[1] == []
    assert launched("--backbone", "nano")[1] == ["nano"]
    assert launched("--backbone", "no such model")[1] == []
    assert "no such model" in caplog.text


def test_a_space_allows_less(launched, monkeypatch):
    assert launched()[0]["max_file_size"] == "500mb"
    monkeypatch.setenv("SPACE_ID", "somebody/recapture")
    assert launched()[0]["max_file_size"] == "200mb"


@pytest.mark.slow
def test_the_environment_is_respected(tmp_path, tiny_backbone_folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ROOT_PATH": "/film",
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
        "RECAPTURE_CACHE": str(tmp_path / "cache"), "RECAPTURE_BACKBONE": str(tiny_backbone_folder),
    }  # fmt: skip
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5) as answer:
                    config = json.load(answer)
                break
            except OSError:
                time.sleep(0.5)
        assert config["root"].endswith("/film")
        (folder,) = (file for file in (tmp_path / "uploads").glob("recapture-*") if file.is_dir())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert not list(folder.parent.glob(f"{folder.name}*"))  # visitors' files go with the service
