"""What this machine has, what will run on it and how fast, and what is missing: `python -m pipeline doctor`.

Nothing is downloaded and nothing is waited for long. What is measured is measured here and now; what is only estimated
says so.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline import InputError, cost, models
from pipeline.backbone import Settings, default_dtype, read_settings
from pipeline.cache import cache_folder
from pipeline.models import MODELS, ModelSpec
from pipeline.render import DoneEvent, FailedEvent, RenderRequest, render, warm
from pipeline.video import Clip, working_size, write_video

HUB_SECONDS = 3.0
TRIAL_STEPS = 2
SHOWN = ("torch", "diffusers", "transformers", "accelerate", "gradio", "spaces", "av", "huggingface_hub")
DECODERS, ENCODERS = ("h264", "hevc", "vp9", "av1", "prores", "mpeg4"), ("libx264", "aac")
WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "ProcessorPil", "Extractor")
EFFICIENCY = 0.5  # assumed: of the speed of large matrix products and convolutions, what a whole model reaches
GB = 1e9


def run(*, as_json: bool = False) -> int:
    """Print the report; 0 if the small models can render here, else 1."""
    found = examine()
    print(json.dumps(found, indent=2) if as_json else report(found))
    return 0 if found["trial"]["works"] else 1


def examine() -> dict[str, Any]:
    """All that the report says, as JSON."""
    hub = _in_background(_ask_hub)
    found: dict[str, Any] = {
        "software": _software(),
        "machine": _machine(),
        "gpus": _gpus(),
        "disks": [_disk("hub cache", _hub_cache()), _disk("our cache", cache_folder())],
        "video": _codecs(),
        "models": [_model(spec) for spec in MODELS.values()],
        "trial": _trial(),
    }
    found["hub"] = hub(HUB_SECONDS) or {"state": "not reachable", "endpoint": _endpoint(), "seconds": HUB_SECONDS}
    found["runs"] = [_prospect(spec, found) for spec in MODELS.values() if spec.role == "backbone"]
    found["missing"] = _missing(found)
    return found


# --- what there is ----------------------------------------------------------------------------------------------------


def _software() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "cuda of torch": torch.version.cuda}
    return versions | {name: _version(name) for name in SHOWN}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:  # a container may have less than the machine
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "bfloat16": default_dtype("cpu") is torch.bfloat16,
        "memory": total,
        "memory free": free,
        "space": os.environ.get("SPACE_ID"),
        "zerogpu": bool(os.environ.get("SPACES_ZERO_GPU")),
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        gpus.append(
            {
                "name": properties.name,
                "memory": total,
                "memory free": free,
                "capability": f"{capability[0]}.{capability[1]}",
                "bfloat16": capability >= (8, 0),
                "float8": capability >= (8, 9),
            }
        )
    return gpus


def _disk(what: str, folder: Path) -> dict[str, Any]:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    return {"what": what, "folder": str(folder), "free": free, "writable": os.access(there, os.W_OK)}


def _codecs() -> dict[str, list[str]]:
    from av.codec import Codec

    def there(name: str, mode: Any) -> bool:
        try:
            return bool(Codec(name, mode))
        except (ValueError, LookupError):  # PyAV's own error is both
            return False

    return {
        "reads": [name for name in DECODERS if there(name, "r")],
        "writes": [name for name in ENCODERS if there(name, "w")],
        "cannot": [name for name in ENCODERS if not there(name, "w")],
    }


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _ask_hub() -> dict[str, Any]:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return {"state": "offline", "endpoint": _endpoint(), "seconds": 0.0}
    begun = time.perf_counter()
    try:
        get_session().head(_endpoint(), timeout=HUB_SECONDS)
        state = "reachable"
    except Exception:  # of whichever library asks: no name, no route, refused, too slow
        state = "not reachable"
    return {"state": state, "endpoint": _endpoint(), "seconds": round(time.perf_counter() - begun, 2)}


def _in_background(work: Callable[[], Any]) -> Callable[[float], Any]:
    """Begin work(); the function returned waits for its result so many seconds, then gives up and returns None."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)  # looking up a name has no timeout
    thread.start()

    def wait(seconds: float) -> Any:
        thread.join(seconds)
        return results[0] if results else None

    return wait


# --- models -----------------------------------------------------------------------------------------------------------


def _model(spec: ModelSpec) -> dict[str, Any]:
    state, size, missing = whereabouts(spec.name if spec.local else spec.ref)
    return {
        "name": spec.name,
        "ref": spec.ref,
        "role": spec.role,
        "licence": spec.licence,
        "download": spec.download_bytes,
        "state": state,
        "bytes": size,
        "missing": missing,
        "get": None if spec.local or state == "complete" else f"hf download {spec.ref}",
    }


def whereabouts(ref: str) -> tuple[str, int, list[str]]:
    """("complete" | "partial" | "absent", bytes on this machine, missing files) of a model: see `models.resolve`."""
    try:
        resolved = models.resolve(ref)
    except InputError:
        return "absent", 0, []
    folder = Path(resolved)
    unfinished: list[Path] = []
    if not folder.is_dir():
        from huggingface_hub.file_download import repo_folder_name

        stored = _hub_cache() / repo_folder_name(repo_id=resolved, repo_type="model")
        unfinished = list(stored.glob("blobs/*.incomplete"))
        main = stored / "refs" / "main"
        folder = stored / "snapshots" / (main.read_text().strip() if main.is_file() else "none")
        if not folder.is_dir():
            return ("partial" if unfinished else "absent"), _bytes(unfinished), []
    missing = missing_files(folder)
    size = _bytes(folder.rglob("*")) + _bytes(unfinished)
    return ("partial" if missing or unfinished else "complete"), size, missing


def missing_files(folder: Path) -> list[str]:
    """What a folder in the layout of diffusers, or of one model of transformers, lacks according to its own indices."""
    index = folder / "model_index.json"
    if not index.is_file():
        return _missing_weights(folder) if (folder / "config.json").is_file() else ["config.json"]
    missing = []
    for name, given in json.loads(index.read_text(encoding="utf-8")).items():
        if name.startswith("_") or not isinstance(given, list) or given[-1] is None:
            continue
        if not (folder / name).is_dir():
            missing.append(f"{name}/")
        elif not str(given[-1]).endswith(WITHOUT_WEIGHTS):
            missing += [f"{name}/{file}" for file in _missing_weights(folder / name)]
    return missing


def _missing_weights(folder: Path) -> list[str]:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    indices = list(folder.glob("*.safetensors.index.json"))
    for index in indices:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not indices and not any(file.is_file() for file in folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in {file.resolve() for file in files} if file.is_file())


# --- what will run ----------------------------------------------------------------------------------------------------


def _trial() -> dict[str, Any]:
    """A short render of the small models on a synthetic clip, in a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="recapture-doctor-") as name:
        folder, before = Path(name), os.environ.get("RECAPTURE_CACHE")
        os.environ["RECAPTURE_CACHE"] = str(folder / "cache")
        try:
            begun = time.perf_counter()
            warm("nano")
            loading = time.perf_counter() - begun
            settings = read_settings(Path(models.resolve("nano")))
            write_video(folder / "clip.mp4", _clip(settings.frames))
            request = RenderRequest(str(folder / "clip.mp4"), steps=TRIAL_STEPS)
            for event in render(request, folder / "out"):
                if isinstance(event, FailedEvent):
                    return {"works": False, "error": event.message}
                if isinstance(event, DoneEvent):
                    return {"works": True} | _trial_figures(event.result.report, settings, loading)
            return {"works": False, "error": "The render ended without a result."}
        except Exception as error:  # whatever it is: to say so is what this is for
            return {"works": False, "error": f"{type(error).__name__}: {error}"}
        finally:
            if before is None:
                del os.environ["RECAPTURE_CACHE"]
            else:
                os.environ["RECAPTURE_CACHE"] = before


def _trial_figures(report: dict[str, Any], settings: Settings, loading: float) -> dict[str, Any]:
    stages = report["seconds"]
    step = stages["sample"] / TRIAL_STEPS
    return {
        "loading": round(loading, 2),
        "step": round(step, 4),
        "seconds": round(stages["total"] + step * (settings.steps - TRIAL_STEPS), 2),
        "frames": report["frames"]["count"],
        "size": report["sizes"]["working"],
        "steps": settings.steps,
        "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
    }


def _clip(frames: int) -> Clip:
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 26, generator=generator), size=(240, 416))
    return Clip(torch.cat([picture.roll(2 * t, dims=-1) for t in range(frames)]), 8.0)


def _prospect(spec: ModelSpec, found: dict[str, Any]) -> dict[str, Any]:
    """At which size and length a backbone works, how long a render takes, and whether its weights fit."""
    run: dict[str, Any] = {
        "model": spec.name,
        "size": None,
        "frames": None,
        "steps": None,
        "seconds": None,
        "how": None,
    }
    if spec.local:
        trial = found["trial"]
        if not trial["works"]:
            return run | {"verdict": "does not run"}
        how = f"measured: a render of {TRIAL_STEPS} steps, the others reckoned"
        return run | {name: trial[name] for name in ("size", "frames", "steps", "seconds")} | {
            "how": how, "verdict": "runs",
        }  # fmt: skip
    settings = Settings()
    size = working_size(480, 832, pixels=settings.pixels, multiple=16)
    run |= {"size": list(size), "frames": settings.frames, "steps": settings.steps}
    work = cost.work_of(spec.name, settings.frames, size)
    gpu = found["gpus"][0] if found["gpus"] else None
    run |= {"verdict": weights_verdict(spec, gpu, found["machine"])}
    if work is not None:
        pace = cost.measure_pace("cuda" if gpu else "cpu", default_dtype("cuda" if gpu else "cpu"))
        seconds = cost.seconds_of(work, pace, steps=settings.steps) / EFFICIENCY
        run |= {"seconds": round(seconds), "how": "estimate: half the speed of matrix products measured here"}
    return run


def weights_verdict(spec: ModelSpec, gpu: dict[str, Any] | None, machine: dict[str, Any]) -> str:
    """Whether the weights find room, in a few words. Frames and their latents come on top of them."""
    weights = f"{spec.download_bytes / GB:.0f} GB of weights"
    if machine["zerogpu"]:
        return f"runs on the GPU that is lent ({weights})"
    if gpu is None:
        room = machine["memory free"] > 2 * spec.download_bytes  # float32 on the CPU
        return f"too slow without a GPU ({weights})" if room else f"needs a GPU; too large for the memory ({weights})"
    if gpu["memory free"] > spec.download_bytes:
        return f"fits on the GPU ({weights})"
    if machine["memory free"] > spec.download_bytes:
        return f"fits only by turns: GPU and memory together ({weights})"
    return f"too large for GPU and memory ({weights})"


def _missing(found: dict[str, Any]) -> list[dict[str, str]]:
    missing = []
    if lacking := _unmet(models.ROOT / "requirements.txt"):
        missing.append({"what": ", ".join(lacking), "get": "python -m pip install -r requirements.txt"})
    if not found["gpus"] and torch.version.cuda is None and shutil.which("nvidia-smi"):
        get = "python -m pip install --upgrade torch --index-url https://download.pytorch.org/whl/cu128"
        missing.append({"what": "PyTorch is made for the CPU only, though there is an NVIDIA GPU", "get": get})
    for model in found["models"]:
        if model["state"] == "complete":
            continue
        left = model["download"] - model["bytes"]
        what = f"{model['name']} ({model['role']}, {model['licence']}), {_size(max(left, 0))} to fetch"
        room = found["disks"][0]
        if left > room["free"]:
            what += f", but only {_size(room['free'])} free at {room['folder']}: set HF_HOME to a larger disk"
        get = model["get"] or "git checkout -- assets/nano"
        missing.append({"what": what, "get": get})
    for codec in found["video"]["cannot"]:
        missing.append({"what": f"PyAV without {codec}", "get": "python -m pip install --force-reinstall av"})
    missing += [
        {"what": f"{disk['folder']} cannot be written", "get": f"export {name}=A_FOLDER"}
        for disk, name in zip(found["disks"], ("HF_HOME", "RECAPTURE_CACHE"), strict=True)
        if not disk["writable"]
    ]
    return missing


def _unmet(file: Path) -> list[str]:
    from packaging.requirements import Requirement

    unmet = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not (line := line.split("#")[0].strip()):
            continue
        wanted, found = Requirement(line), _version(Requirement(line).name)
        if found is None:
            unmet.append(f"{wanted.name} is not installed")
        elif not wanted.specifier.contains(found, prereleases=True):
            unmet.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
    return unmet


# --- in words ---------------------------------------------------------------------------------------------------------


def report(found: dict[str, Any], columns: int = 92) -> str:
    """The report as text of at most that many columns, but for commands, which stay in one piece."""
    lines: list[str] = []

    def section(title: str, rows: Iterable[tuple[str, str]], width: int = 18) -> None:
        lines.extend(["", title])
        for name, words in rows:
            wrapped = textwrap.wrap(words, columns - width - 4, break_long_words=False, break_on_hyphens=False) or [""]
            lines.extend(f"  {name if not i else '':<{width}}  {part}" for i, part in enumerate(wrapped))

    software, machine, video, hub = (found[name] for name in ("software", "machine", "video", "hub"))
    versions = [f"{name} {version}" for name, version in software.items() if version and name not in ("python",)]
    rows = [
        ("Python", software["python"]),
        ("packages", ", ".join(versions)),
        ("processor", f"{machine['cores']} cores, {machine['system']}, bfloat16 {_yes(machine['bfloat16'])}"),
        ("memory", f"{_size(machine['memory free'])} free of {_size(machine['memory'])}"),
    ]
    for gpu in found["gpus"]:
        able = f"bfloat16 {_yes(gpu['bfloat16'])}, float8 {_yes(gpu['float8'])}"
        memory = f"{_size(gpu['memory free'])} free of {_size(gpu['memory'])}"
        rows.append(("GPU", f"{gpu['name']}, {memory}, compute capability {gpu['capability']}, {able}"))
    if not found["gpus"]:
        rows.append(("GPU", "lent for one call at a time (ZeroGPU)" if machine["zerogpu"] else "none"))
    rows += [(disk["what"], f"{_size(disk['free'])} free at {disk['folder']}") for disk in found["disks"]]
    rows.append(("video", f"reads {', '.join(video['reads'])}; writes {', '.join(video['writes'])}"))
    states = {"offline": "offline mode (HF_HUB_OFFLINE)", "reachable": f"reachable in {hub['seconds']:.1f} s"}
    rows.append(("hub", f"{hub['endpoint']}: {states.get(hub['state'], hub['state'])}"))
    section("This machine", rows)

    width = max([18, *(len(model["name"]) for model in found["models"])])
    section("Models", [(model["name"], _model_words(model)) for model in found["models"]], width)
    section("What will run", [(run["model"], _run_words(run)) for run in found["runs"]], width)
    if not found["trial"]["works"]:
        section("The small models cannot render here", [("", found["trial"]["error"])])
    if found["missing"]:
        lines.extend(["", "Missing"])
        for missing in found["missing"]:
            lines.extend(textwrap.wrap(missing["what"], columns - 2, initial_indent="  ", subsequent_indent="  "))
            lines.append(f"    {missing['get']}")
    return "\n".join(lines[1:])


def _model_words(model: dict[str, Any]) -> str:
    here = {
        "complete": f"here, {_size(model['bytes'])}",
        "partial": f"only in part here, {_size(model['bytes'])} of {_size(model['download'])}",
        "absent": f"not here, {_size(model['download'])} to fetch" if model["download"] else "not here",
    }[model["state"]]
    missing = f"; without {', '.join(model['missing'][:4])}" if model["missing"] else ""
    return f"{model['role']}, {model['licence']}: {here}{missing}"


def _run_words(run: dict[str, Any]) -> str:
    if run["size"] is None:
        return run["verdict"]
    height, width = run["size"]
    words = f"{run['verdict']}; {run['frames']} frames of {height}x{width}, {run['steps']} steps"
    return words if run["seconds"] is None else f"{words}: about {duration_words(run['seconds'])} ({run['how']})"


def duration_words(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.0f} MB"


def _yes(able: bool) -> str:
    return "yes" if able else "no"
