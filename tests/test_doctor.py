import json
import time
from types import SimpleNamespace

import pytest
import torch

from pipeline import doctor, models
from pipeline.__main__ import main
from pipeline.doctor import missing_files, whereabouts
from pipeline.models import MODELS

WAN = MODELS["wan2.1-fun-1.3b-inp"]
GIB = 2**30


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def store(hub, ref: str, files: dict[str, bytes | None]):
    """Files of a model as the hub's cache holds them; None: a file whose download has not ended."""
    folder = hub / f"models--{ref.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    for directory in (folder / "blobs", folder / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("abc")
    for number, (name, content) in enumerate(files.items()):
        if content is None:
            (folder / "blobs" / f"{number}.incomplete").write_bytes(b"half")
            continue
        blob = folder / "blobs" / str(number)
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


INDEX = json.dumps({
    "_class_name": "WanImageToVideoPipeline", "transformer": ["diffusers", "WanTransformer3DModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"], "image_encoder": [None, None],
}).encode()  # fmt: skip
SHARDS = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}).encode()


def test_what_is_in_the_hubs_cache(hub):
    assert whereabouts(WAN.ref) == ("absent", 0, [])
    files = {
        "model_index.json": INDEX, "tokenizer/tokenizer.json": b"{}", "transformer/config.json": b"{}",
        "transformer/m.safetensors.index.json": SHARDS, "transformer/m-1.safetensors": b"x" * 1000,
    }  # fmt: skip
    state, size, missing = whereabouts_of(hub, files)
    assert (state, missing) == ("partial", ["transformer/m-2.safetensors"])
    assert size == sum(map(len, files.values()))
    files["transformer/m-2.safetensors"] = b"y"
    assert whereabouts_of(hub, files) == ("complete", size + 1, [])
    del files["tokenizer/tokenizer.json"]
    assert whereabouts_of(hub, files)[2] == ["tokenizer/"]


def whereabouts_of(hub, files):
    import shutil

    shutil.rmtree(hub, ignore_errors=True)
    store(hub, WAN.ref, files)
    return whereabouts(WAN.ref)


def test_a_download_that_has_not_ended_is_partial(hub):
    one = {"config.json": b"{}", "model.safetensors": b"w"}
    store(hub, "somebody/depth", one)
    assert whereabouts("somebody/depth")[0] == "complete"
    store(hub, "somebody/depth", {"a": b"", "b": b"", "other.safetensors": None})
    assert whereabouts("somebody/depth")[0] == "partial"


def test_missing_files_of_one_model(tmp_path):
    assert missing_files(tmp_path) == ["config.json"]
    (tmp_path / "config.json").write_text("{}")
    assert missing_files(tmp_path) == ["*.safetensors"]
    (tmp_path / "model.bin").write_bytes(b"a pickle is never read")
    assert missing_files(tmp_path) == ["*.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert missing_files(tmp_path) == []


def test_what_comes_with_the_program_is_complete():
    state, size, missing = whereabouts("nano")
    assert (state, missing) == ("complete", []) and 30e6 < size < 60e6


def test_the_weights_find_room_or_not():
    machine = lambda free: {"memory free": free * GIB, "zerogpu": False}
    gpu = lambda free: {"memory free": free * GIB}
    verdict = lambda *given: doctor.weights_verdict(WAN, *given)
    assert verdict(gpu(24), machine(4)).startswith("fits on the GPU")
    assert verdict(gpu(8), machine(32)).startswith("fits only by turns")
    assert verdict(gpu(8), machine(8)).startswith("too large")
    assert verdict(None, machine(8)).startswith("needs a GPU")
    assert verdict(None, machine(64)).startswith("too slow")
    assert verdict(None, machine(8) | {"zerogpu": True}).startswith("runs on the GPU that is lent")


def test_a_gpu_is_described(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA Old", major=8, minor=6, total_memory=12 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10 * GIB, 12 * GIB))
    (gpu,) = doctor._gpus()
    assert (gpu["bfloat16"], gpu["float8"], gpu["memory free"]) == (True, False, 10 * GIB)


def test_what_requirements_want(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("torch>=2.0  # any\n\nno-such-package-at-all>=1\ntqdm>1000\n")
    unmet = doctor._unmet(file)
    assert unmet[0] == "no-such-package-at-all is not installed" and unmet[1].startswith("tqdm is ") and len(unmet) == 2
    assert doctor._unmet(models.ROOT / "requirements.txt") == []


def test_nothing_is_waited_for_long():
    begun = time.monotonic()
    assert doctor._in_background(lambda: time.sleep(30))(0.05) is None
    assert time.monotonic() - begun < 5
    assert doctor._in_background(lambda: "found")(5) == "found"


def test_the_hub_is_not_asked_when_offline(hub, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("asked"))
    assert doctor._ask_hub()["state"] == "offline"


def test_durations():
    assert [doctor.duration_words(s) for s in (4.4, 100, 7000, 86400, 3e5)] == [
        "4 seconds", "100 seconds", "117 minutes", "24 hours", "3 days",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_whole_examination(hub, capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hub"]["state"] == "offline"
    trial, nano = found["trial"], found["runs"][0]
    assert trial["works"] and nano["model"] == "nano" and nano["seconds"] == trial["seconds"] > 0
    assert trial["seconds"] >= trial["steps"] * trial["step"]
    assert {model["name"]: model["state"] for model in found["models"]} == {
        spec.name: "complete" if spec.local else "absent" for spec in MODELS.values()
    }
    assert not hub.exists()  # nothing was fetched

    text = doctor.report(found)
    commands = [missing["get"] for missing in found["missing"]]
    assert f"hf download {WAN.ref}" in commands
    assert all(len(line) <= 92 or line.strip() in commands for line in text.splitlines())
    for word in ("nano", WAN.name, "offline mode", "cores", "libx264", *commands):
        assert word in text


def test_without_the_small_models_it_says_so_and_fails(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch\n")
    monkeypatch.setattr(doctor.cost, "work_of", lambda *_: None)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "cannot render here" in said and "model_index.json" in said
