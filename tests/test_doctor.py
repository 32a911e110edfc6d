import json
import time
from types import SimpleNamespace

import pytest
import torch

from pipeline.__main__ import main
from pipeline.cli import doctor
from pipeline.cli.doctor import whereabouts
from pipeline.models import hub, memory, table
from pipeline.models.table import MODELS
from pipeline.prior.load import skeleton
from pipeline.render.request import RenderRequest

WAN = MODELS["wan2.1-fun-1.3b-inp"]
GIB = 2**30


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def store(cache, ref: str, files: dict[str, bytes | None], commit: str | None = None):
    """Files of a model as the hub's cache holds them; None: a file whose download has not ended."""
    folder = cache / f"models--{ref.replace('/', '--')}"
    snapshot = folder / "snapshots" / (commit or "0" * 40)
    for directory in (folder / "blobs", folder / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    for number, (name, content) in enumerate(files.items()):
        if content is None:
            (folder / "blobs" / f"{number}.incomplete").write_bytes(b"half")
            continue
        blob = folder / "blobs" / str(number)
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(blob)


DEPTH, TINY, LORA = (MODELS[name] for name in ("depth-anything-v2-small", "taew2.1", "causvid-lora"))


def test_what_is_in_the_hubs_cache(hub_cache):
    assert whereabouts(DEPTH) == ("absent", 0, [])
    revision = DEPTH.parts[0].revision
    files: dict[str, bytes | None] = {"config.json": b"{}", "preprocessor_config.json": b"{}"}
    store(hub_cache, DEPTH.ref, files, revision)
    assert whereabouts(DEPTH) == ("partial", 4, ["model.safetensors"])
    store(hub_cache, DEPTH.ref, files | {"model.safetensors": b"w" * 1000}, revision)
    assert whereabouts(DEPTH) == ("complete", 1004, [])


@pytest.mark.parametrize("spec", [TINY, LORA], ids=lambda spec: spec.name)
def test_models_of_one_file(hub_cache, spec):
    (file,) = spec.parts[0].files
    store(hub_cache, spec.ref, {"other.safetensors": b"another of the same repository"})
    assert whereabouts(spec) == ("absent", 0, [])
    store(hub_cache, spec.ref, {file: b"w" * 10})
    assert whereabouts(spec) == ("complete", 10, []) and hub.at_hand(spec.name)


def test_parts_and_shards_count_one_by_one(hub_cache):
    vae = WAN.parts[2]
    store(hub_cache, vae.repo, {"vae/config.json": b"{}", "vae/m-00001-of-00002.safetensors": b"w" * 10}, vae.revision)
    state, size, missing = whereabouts(WAN)
    assert (state, size) == ("partial", 12) and "m-00002-of-00002.safetensors" in missing
    assert "vae/*.json" not in missing and "text_encoder/*.safetensors" in missing


def test_a_download_that_has_not_ended_is_partial(hub_cache):
    store(hub_cache, TINY.ref, {"taew2_1.safetensors": None})
    assert whereabouts(TINY)[:2] == ("partial", 4)


def test_what_comes_with_the_program_is_complete():
    state, size, missing = whereabouts(MODELS["nano"])
    assert (state, missing) == ("complete", []) and 30e6 < size < 62e6


def test_the_memory_that_is_free_decides_how_a_model_runs():
    size = memory.model_size(**skeleton(WAN), window=81)
    machine = lambda free: {"memory free": free * GIB, "zerogpu": False}
    told = lambda gpu, main: doctor.memory_words(size, gpu and {"memory free": gpu * 10**9}, machine(main))
    for free, modes in ((80, ["whole", "whole"]), (11, ["offload", "offload"]), (7, ["tiles", "tiles"])):
        found = told(free, 64)
        assert found["verdict"] == "runs on the GPU" and [way["frames"] for way in found["memory"]] == [49, 81]
        assert [way["mode"] for way in found["memory"]] == modes
        for way in found["memory"]:
            plan = memory.choose(size, way["frames"], 480, 832, free=free * 10**9)
            assert way["need"] == plan.need <= free * 10**9 and way["words"] == plan.words
    found = told(1, 64)
    assert found["verdict"] == "too large for the GPU" and "are missing" in found["memory"][0]["words"]
    assert told(None, 8)["verdict"].startswith("needs a GPU")
    assert told(None, 128)["verdict"].startswith("too slow")
    assert doctor.memory_words(size, None, machine(8) | {"zerogpu": True})["verdict"].startswith("runs whole")


def test_a_gpu_is_described(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA Old", major=8, minor=6, total_memory=12 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10 * GIB, 12 * GIB))
    (gpu,) = doctor.gpus_here()
    assert (gpu["bfloat16"], gpu["float8"], gpu["memory free"]) == (True, False, 10 * GIB)


def test_what_requirements_want(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("torch>=2.0  # any\n\nno-such-package-at-all>=1\ntqdm>1000\n")
    unmet = doctor.unmet_of(file)
    assert unmet[0] == "no-such-package-at-all is not installed" and unmet[1].startswith("tqdm is ") and len(unmet) == 2
    # PyAV's excluded versions free some sound twice: with them all works but such sound, see `media.child`
    assert [line for line in doctor.unmet_of(table.ROOT / "requirements.txt") if not line.startswith("av is")] == []


def test_nothing_is_waited_for_long():
    begun = time.monotonic()
    assert doctor.in_background(lambda: time.sleep(30))(0.05) is None
    assert time.monotonic() - begun < 5
    assert doctor.in_background(lambda: "found")(5) == "found"


def test_the_hub_is_not_asked_when_offline(hub_cache, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("asked"))
    assert doctor.ask_hub()["state"] == "offline"


def test_durations():
    assert [doctor.duration_words(s) for s in (4.4, 100, 7000, 86400, 3e5)] == [
        "4 seconds", "100 seconds", "117 minutes", "24 hours", "3 days",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_whole_examination(hub_cache, capsys, monkeypatch):
    short = lambda clip, **given: RenderRequest.of(clip, frames=5, size=(64, 96), **given)
    monkeypatch.setattr(doctor, "RenderRequest", SimpleNamespace(of=short))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hub"]["state"] == "offline"
    trial, nano = found["trial"], found["runs"][0]
    assert trial["works"] and nano["model"] == "nano" and nano["seconds"] == trial["seconds"] > 0
    assert trial["seconds"] >= trial["steps"] * trial["step"]
    assert {model["name"]: model["state"] for model in found["models"]} == {
        spec.name: "complete" if spec.local else "absent" for spec in MODELS.values()
    }
    assert not hub_cache.exists()  # nothing was fetched

    text = doctor.report(found)
    commands = [missing["get"] for missing in found["missing"]]
    assert hub.command_for(WAN) in commands and hub.command_for(LORA) in commands
    assert not set(commands) & {hub.command_for(spec) for spec in table.of_role("metric")}
    unbroken = [*commands, *(disk["folder"] for disk in found["disks"])]  # a path may be as long as it is
    assert all(len(line) <= 92 or line.strip() in unbroken for line in text.splitlines())
    for word in ("nano", WAN.name, "offline mode", "cores", "libx264", *commands):
        assert word in text


def test_without_the_small_models_it_says_so_and_fails(hub_cache, monkeypatch, tmp_path, capsys):
    for module in (table, hub):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch\n")
    monkeypatch.setattr(doctor.cost, "work_of", lambda *_: None)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "cannot render here" in said and "model_index.json" in said
