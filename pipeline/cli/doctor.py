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

from pipeline import InputError
from pipeline.media.cache import cache_folder
from pipeline.media.video import Clip, working_size, write_video
from pipeline.models import cost, hub, memory, table
from pipeline.models.table import MODELS, ModelSpec
from pipeline.prior.load import default_dtype, skeleton
from pipeline.prior.settings import Settings, read_settings
from pipeline.render.events import DoneEvent, FailedEvent
from pipeline.render.loaded import warm
from pipeline.render.report import Report
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

HUB_SECONDS = 3.0
TRIAL_STEPS = 2
SHOWN = ("torch", "diffusers", "transformers", "accelerate", "gradio", "spaces", "av", "numba", "huggingface_hub")
DECODERS, ENCODERS = ("h264", "hevc", "vp9", "av1", "prores", "mpeg4"), ("libx264", "aac")
WANTED, CLIPS = (480, 832), (49, 81)  # height and width, and frames, for which the use of memory is said
EFFICIENCY = 0.5  # assumed: of the speed of large matrix products and convolutions, what a whole model reaches


def run(*, as_json: bool = False) -> int:
    """Print the report; 0 if the small models can render here, else 1."""
    found = examine()
    print(json.dumps(found, indent=2) if as_json else report(found))
    return 0 if found["trial"]["works"] else 1


def examine() -> dict[str, Any]:
    """All that the report says, as JSON."""
    hub = in_background(ask_hub)
    found: dict[str, Any] = {
        "software": _software(),
        "machine": _machine(),
        "gpus": gpus_here(),
        "disks": [_disk("hub cache", _hub_cache()), _disk("our cache", cache_folder())],
        "video": _codecs(),
        "models": [_model(spec) for spec in MODELS.values()],
        "trial": _trial(),
    }
    found["hub"] = hub(HUB_SECONDS) or {"state": "not reachable", "endpoint": _endpoint(), "seconds": HUB_SECONDS}
    device = "cuda" if found["gpus"] else "cpu"
    pace = cost.measure_pace(device, default_dtype(device)) if not found["machine"]["zerogpu"] else None
    found["runs"] = [_prospect(spec, found, pace) for spec in table.of_role("backbone")]
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
    main = psutil.virtual_memory()
    total, free = main.total, main.available
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
        "zerogpu": memory.lent(),
    }


def gpus_here() -> list[dict[str, Any]]:
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


def ask_hub() -> dict[str, Any]:
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


def in_background(work: Callable[[], Any]) -> Callable[[float], Any]:
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
    state, size, missing = whereabouts(spec)
    return {
        "name": spec.name,
        "ref": spec.ref,
        "role": spec.role,
        "licence": spec.licence,
        "download": spec.download_bytes,
        "state": state,
        "bytes": size,
        "missing": missing,
        "get": None if spec.local or state == "complete" else hub.command_for(spec),
    }


def whereabouts(spec: ModelSpec) -> tuple[str, int, list[str]]:
    """("complete" | "partial" | "absent", bytes on this machine, missing files) of a model."""
    if spec.folder is not None:
        folder = table.ROOT / spec.folder
        missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
        return ("absent" if missing else "complete"), _bytes(folder.rglob("*")), missing
    size, lacking = 0, [spec.by_hand] if spec.by_hand else []
    for part in spec.parts:
        folder = hub.snapshot(part)
        if folder is not None:
            size += _bytes(path for pattern in part.files for path in folder.glob(pattern))
        if hub.cached(part) is None:
            lacking += part.files if folder is None else hub.lacking(folder, part.files)
            size += _bytes(_stored(part.repo).glob("blobs/*.incomplete"))
    return ("partial" if size else "absent") if lacking else "complete", size, lacking if size else []


def _stored(repo: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return _hub_cache() / repo_folder_name(repo_id=repo, repo_type="model")


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
            settings = read_settings(Path(hub.resolve("nano")))
            write_video(folder / "clip.mp4", _clip(settings.frames))
            request = RenderRequest.of(str(folder / "clip.mp4"), steps=TRIAL_STEPS)
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


def _trial_figures(report: Report, settings: Settings, loading: float) -> dict[str, Any]:
    stages = report.seconds
    step = stages["sample"] / TRIAL_STEPS
    return {
        "loading": round(loading, 2),
        "step": round(step, 4),
        "seconds": round(stages["total"] + step * (settings.steps - TRIAL_STEPS), 2),
        "frames": report.frames.count,
        "size": report.sizes.working,
        "steps": settings.steps,
        "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
    }


def _clip(frames: int) -> Clip:
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 26, generator=generator), size=(240, 416))
    return Clip(torch.cat([picture.roll(2 * t, dims=-1) for t in range(frames)]), 8.0)


def _prospect(spec: ModelSpec, found: dict[str, Any], pace: cost.Pace | None) -> dict[str, Any]:
    """At which size and length a backbone works, how long a render takes, and how it fits into memory."""
    run: dict[str, Any] = {
        "model": spec.name,
        "size": None,
        "frames": None,
        "steps": None,
        "seconds": None,
        "how": None,
        "memory": [],
    }
    if spec.local:
        trial = found["trial"]
        if not trial["works"]:
            return run | {"verdict": "does not run"}
        how = f"measured: a render of {TRIAL_STEPS} steps, the others reckoned"
        return run | {name: trial[name] for name in ("size", "frames", "steps", "seconds")} | {
            "how": how, "verdict": "runs",
        }  # fmt: skip
    folder = hub.at_hand(spec.name)
    settings = Settings() if folder is None else read_settings(folder)
    size = working_size(*WANTED, pixels=settings.pixels, multiple=16)
    run |= {"size": list(size), "frames": settings.frames, "steps": settings.steps}
    work = cost.work_of(spec.name, settings.frames, size)
    gpu = found["gpus"][0] if found["gpus"] else None
    run |= memory_words(memory.model_size(**skeleton(spec), window=settings.frames), gpu, found["machine"])
    if work is not None and pace is not None:
        seconds = cost.seconds_of(work, pace, steps=settings.steps) / EFFICIENCY
        run |= {"seconds": round(seconds), "how": "estimate: half the speed of matrix products measured here"}
    return run


def memory_words(size: memory.ModelSize, gpu: dict[str, Any] | None, machine: dict[str, Any]) -> dict[str, Any]:
    """Whether a model of that size runs in the memory that is free ("verdict"), and the memory mode that would be used
    for clips of 480x832 ("memory": frames, mode, bytes needed, in words)."""
    if machine["zerogpu"]:
        return {"verdict": "runs whole on the GPU that is lent", "memory": []}
    if gpu is None:
        needed = (size.transformer // memory.BYTES) * default_dtype("cpu").itemsize + size.vae
        needed += 2 * (size.text + size.image)  # which are float32 there
        if needed < machine["memory free"]:
            return {"verdict": f"too slow without a GPU, and would take {table.size(needed)} of memory", "memory": []}
        return {"verdict": f"needs a GPU; too large for the memory ({table.size(needed)} of weights)", "memory": []}
    ways = []
    for frames in CLIPS:
        try:
            plan = memory.choose(size, frames, *WANTED, free=gpu["memory free"])
            ways.append({"frames": frames, "mode": plan.mode.name, "need": plan.need, "words": plan.words})
        except InputError as error:
            ways.append({"frames": frames, "mode": None, "need": None, "words": str(error)})
    fits = [way["mode"] for way in ways if way["mode"]]
    return {"verdict": "runs on the GPU" if fits else "too large for the GPU", "memory": ways}


def _missing(found: dict[str, Any]) -> list[dict[str, str]]:
    missing = []
    if lacking := unmet_of(table.ROOT / "requirements.txt"):
        missing.append({"what": ", ".join(lacking), "get": "python -m pip install -r requirements.txt"})
    if not found["gpus"] and torch.version.cuda is None and shutil.which("nvidia-smi"):
        get = "python -m pip install --upgrade torch --index-url https://download.pytorch.org/whl/cu128"
        missing.append({"what": "PyTorch is made for the CPU only, though there is an NVIDIA GPU", "get": get})
    for model in found["models"]:
        if model["state"] == "complete" or model["role"] == "metric":  # nothing is rendered with those
            continue
        left = model["download"] - model["bytes"]
        what = f"{model['name']} ({model['role']}, {model['licence']}), {table.size(max(left, 0))} to fetch"
        room = found["disks"][0]
        if left > room["free"]:
            what += f", but only {table.size(room['free'])} free at {room['folder']}: set HF_HOME to a larger disk"
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


def unmet_of(file: Path) -> list[str]:
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
        ("memory", f"{table.size(machine['memory free'])} free of {table.size(machine['memory'])}"),
    ]
    for gpu in found["gpus"]:
        able = f"bfloat16 {_yes(gpu['bfloat16'])}, float8 {_yes(gpu['float8'])}"
        room = f"{table.size(gpu['memory free'])} free of {table.size(gpu['memory'])}"
        rows.append(("GPU", f"{gpu['name']}, {room}, compute capability {gpu['capability']}, {able}"))
    if not found["gpus"]:
        rows.append(("GPU", "lent for one call at a time (ZeroGPU)" if machine["zerogpu"] else "none"))
    rows += [(disk["what"], f"{table.size(disk['free'])} free at {disk['folder']}") for disk in found["disks"]]
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
        "complete": f"here, {table.size(model['bytes'])}",
        "partial": f"only in part here, {table.size(model['bytes'])} of {table.size(model['download'])}",
        "absent": f"not here, {table.size(model['download'])} to fetch" if model["download"] else "not here",
    }[model["state"]]
    missing = f"; without {', '.join(model['missing'][:4])}" if model["missing"] else ""
    return f"{model['role']}, {model['licence']}: {here}{missing}"


def _run_words(run: dict[str, Any]) -> str:
    if run["size"] is None:
        return run["verdict"]
    height, width = run["size"]
    words = f"{run['verdict']}; {run['frames']} frames of {height}x{width}, {run['steps']} steps"
    if run["seconds"] is not None:
        words += f": about {duration_words(run['seconds'])} ({run['how']})"
    height, width = WANTED
    return " ".join(
        [f"{words}.", *(f"{way['frames']} frames of {height}x{width}: {way['words']}" for way in run["memory"])]
    )


def duration_words(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _yes(able: bool) -> str:
    return "yes" if able else "no"
