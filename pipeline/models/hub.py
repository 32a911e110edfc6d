"""Models on this machine and on the hub: where they are, what is missing, and how it is fetched.

Of a part of a model: `snapshot` is its folder, whole or not, and `cached` the folder if it is whole. Of a model:
`at_hand` is its folder if all of it is here, and `locate` the same or an error. These ask no network. `fetch` and
`fetch_matching` get files of one repository, `download` gets all parts of a model of the table.
"""

from __future__ import annotations

import re
import shutil
import time
import urllib.request
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from pipeline import InputError
from pipeline.models.table import (
    MODELS,
    NOT_SERVED,
    ORIGINAL_FILES,
    ROOT,
    SPECS,
    ModelSpec,
    Part,
    check_accepted,
    find,
    of_role,
    size,
    title_of,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")


def resolve(ref: str) -> str:
    """The folder (absolute path) or hub id ("owner/name") that `ref` means; of several parts, the first.

    ref: a name of `MODELS`, a folder that holds a model_index.json or a transformer in Wan's own layout, or a hub id.
    Nothing is downloaded. Raises `InputError` for anything else, for a model that should have come with the program but
    is not there, and for models that are known not to work.
    """
    if ref in MODELS:
        spec = MODELS[ref]
        if spec.folder is None:
            return spec.ref
        folder = ROOT / spec.folder
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The weights of the model {ref!r} are missing: {folder} has no model_index.json.")
        return str(folder)
    folder = Path(ref).expanduser()
    if ref and folder.is_dir():
        if (folder / "high_noise_model").is_dir():
            raise InputError(f"The model in {ref!r} is a Wan 2.2 model with two transformers: not served. {_instead()}")
        if not (folder / "model_index.json").is_file() and not any(folder.glob(ORIGINAL_FILES)):
            raise InputError(
                f"The folder {ref!r} holds no model: it has no model_index.json, and no {ORIGINAL_FILES} as Wan's own "
                "layout has."
            )
        return str(folder.resolve())
    for pattern, reason in NOT_SERVED.items():
        if pattern.search(ref):
            raise InputError(f"The model {ref!r} is not served: {reason}. {_instead()}")
    if _HUB_ID.fullmatch(ref):
        return ref
    raise InputError(
        f"Unknown model {ref!r}: give one of {', '.join(spec.name for spec in of_role('backbone'))}, a folder with a "
        "model_index.json, or a Hugging Face id of the form owner/name."
    )


def _instead() -> str:
    return f"Use one of {', '.join(spec.name for spec in of_role('backbone'))}."


def default_backbone(cuda: bool | None = None) -> tuple[str, str]:
    """The name of the backbone that this machine should use, and why, in plain words.

    The default on CUDA, once its weights are there; 16 GB are never downloaded because nobody said otherwise.
    cuda: whether there is a CUDA device; None to look.
    """
    if cuda is None:
        import torch

        cuda = torch.cuda.is_available()
    spec = MODELS["wan2.1-fun-1.3b-inp"]
    if not cuda:
        return "nano", "There is no CUDA GPU, so the small nano model is used."
    if at_hand(spec.name):
        return spec.name, f"There is a CUDA GPU, and the weights of {spec.name} are on this machine."
    return "nano", (
        f"There is a CUDA GPU, but the weights of {spec.name} ({size(spec.download_bytes)}, {spec.licence}) are not on "
        f"this machine, so the small nano model is used. This gets them: {command_for(spec)}"
    )


def snapshot(part: Part) -> Path | None:
    """The folder of a part in the hub's cache, with all its files or some of them; the network is not asked."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(part.repo, revision=part.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def cached(part: Part) -> Path | None:
    """The folder of a part in the hub's cache, if all its files are there; the network is not asked."""
    folder = snapshot(part)
    return None if folder is None or lacking(folder, part.files) else folder


def at_hand(ref: str) -> Path | None:
    """The folder of a model that can be loaded without the network, of several parts the first; None if it cannot be.

    ref: a name of `MODELS`, a folder, or a hub id, of which it is not known what it should hold.
    """
    spec = find(ref)
    if spec is None:
        return Path(ref) if Path(ref).is_dir() else snapshot(Part(ref, (), 0))
    if spec.folder is not None:
        return ROOT / spec.folder
    folders = [cached(part) for part in spec.parts]
    return folders[0] if folders and all(folders) else None


def locate(ref: str) -> Path:
    """As `at_hand`, for models that are not fetched unasked. Raises `InputError` that says what gets them."""
    folder = at_hand(ref)
    if folder is not None:
        return folder
    spec = find(ref)
    what = f"{title_of(ref)} ({size(spec.download_bytes)}, {spec.licence})" if spec else ref
    get = command_for(spec) if spec else f"hf download {ref}"
    raise InputError(f"The model {what} is not on this machine. This gets it: {get}")


def download(spec: ModelSpec, accepted: Collection[str] = ()) -> tuple[Path, ...]:
    """The folders of a model's parts, fetched first where they are not in the hub's cache.

    accepted: names of models whose terms the user accepted. Raises `InputError` if this model's are not among them,
    if the disk is too small, and, with the model's size and the command that gets it, if the hub cannot be reached.
    """
    if spec.folder is not None:
        return (Path(resolve(spec.name)),)
    check_accepted(spec.name, accepted)
    if spec.by_hand:
        raise InputError(f"No hub has the model {spec.name!r}; its file is got by hand: {spec.by_hand}")
    missing = [part for part in spec.parts if cached(part) is None]
    needed = sum(part.download_bytes for part in missing)
    if missing:
        _check_disk(spec.name, needed)
    try:
        return tuple(fetch(part.repo, part.files, part.revision) for part in spec.parts)
    except InputError as error:
        raise InputError(
            f"The model {spec.name!r} is not on this machine; {size(needed)} are missing, which this gets where there "
            f"is a network: {command_for(spec)}. {error}"
        ) from error


def fetch(hub_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder with these files (names or patterns, each has to match) of a model on the hub.

    From the hub's cache if they are all there, else downloaded; HF_HUB_OFFLINE, HF_HOME and their like are respected.
    Pickles are never fetched. Raises `InputError` that says what to do if the files cannot be had.
    """
    if folder := cached(Part(hub_id, tuple(files), 0, revision)):
        return folder
    folder = fetch_matching(hub_id, files, revision)
    if missing := lacking(folder, files):
        raise InputError(f"{_unreachable(hub_id)} Missing: {', '.join(missing)}.")
    return folder


def fetch_matching(hub_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """As `fetch`, of those files that match one of the patterns; for models of which it is not known what they hold."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{hub_id}"
    pickles = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=pickles))
    except GatedRepoError as error:
        raise InputError(
            f"The model {hub_id} is given only to those who accept its terms: do so on {page}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no model {hub_id} on the Hugging Face hub, or it is private; see {page}."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{_unreachable(hub_id)} {str(error).splitlines()[0]}") from error


def loading(ref: str) -> str:
    """What happens next when a model is loaded, in words; with what has to be downloaded for it first."""
    spec = find(ref)
    missing = [part for part in spec.parts if cached(part) is None] if spec else []
    if spec is None or not missing:
        return f"Loading the model {ref}"
    needed = size(sum(part.download_bytes for part in missing))
    return f"Downloading the model {ref} ({needed}, {spec.licence}), then loading it"


def command_for(spec: ModelSpec) -> str:
    """The command that gets a model of the table."""
    if spec.by_hand:
        return spec.by_hand
    return f"python -m pipeline models --download {spec.name}" + (f" --accept {spec.name}" if spec.terms else "")


def obtainable(ref: str, seconds: float = 3.0) -> bool:
    """Whether a model of the table can be used here: it is on this machine, or the hub answers within `seconds`.

    What the hub said counts for ten minutes.
    """
    spec = find(ref)
    return spec is not None and (at_hand(ref) is not None or hub_answers(int(time.monotonic() // 600), seconds))


@lru_cache(1)
def hub_answers(_: int, seconds: float) -> bool:
    """Whether the Hugging Face hub can be reached. The first argument changes when it is to be asked again."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def _unreachable(hub_id: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"The model {hub_id} is not (all) in the hub's cache ({HF_HUB_CACHE}), and could not be fetched from the "
        f"Hugging Face hub. Connect this machine, or run hf download {hub_id} on one that is connected and copy that "
        "folder."
    )


def lacking(folder: Path, files: Sequence[str]) -> list[str]:
    """The patterns that nothing in the folder matches, and the shards of weights that are missing by others' names."""
    missing = [pattern for pattern in files if not any(folder.glob(pattern))]
    for path in folder.glob("**/*.safetensors"):
        if found := _SHARD.fullmatch(path.name):
            stem, count = found.groups()
            others = (f"{stem}-{index:05}-of-{count}.safetensors" for index in range(1, int(count) + 1))
            missing += [name for name in others if not path.with_name(name).exists() and name not in missing]
    return missing


def _check_disk(name: str, needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The model {name!r} needs {size(needed)} on the disk, and {size(free)} are free in {HF_HUB_CACHE}; make "
            "room, or set HF_HOME to a folder on a larger disk."
        )


def table() -> str:
    """The table as text: name, role, licence, download, whether it is here; below, what licences forbid."""
    head = ("name", "role", "licence", "download", "here")
    rows = []
    for spec in SPECS:
        here = "comes with the program" if spec.local else "yes" if at_hand(spec.name) else "no"
        if spec.by_hand:
            here = "by hand"
        rows.append((spec.name, spec.role, spec.licence, size(spec.download_bytes) if not spec.local else "none", here))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    lines += ["", "What they are:", *(f"  {spec.name}: {spec.note}" for spec in SPECS)]
    lines += ["", "What is forbidden:", *(f"  {spec.name}: {spec.terms}" for spec in SPECS if spec.terms)]
    lines += ["  The others may be used for anything that the law allows."]
    lines += ["", "Got by hand:", *(f"  {spec.name}: {spec.by_hand}" for spec in SPECS if spec.by_hand)]
    lines += ["", "Models may share parts, which are downloaded once. " + default_backbone()[1]]
    return "\n".join(lines)
