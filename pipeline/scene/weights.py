"""The published weights of CUT3R: converted once to safetensors, without running anything that their pickle names.

    python -m pipeline.scene.weights cut3r_512_dpt_4_64.pth --output FOLDER --accept cut3r

The file is linked from github.com/CUT3R/CUT3R. Its weights are under CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import InputError
from pipeline.models import table
from pipeline.scene import recurrent
from pipeline.scene.cut3r import CUT3R, Config, CUT3REncoder
from pipeline.scene.latents import SceneEncoder
from pipeline.scene.recurrent import load_recurrent

NAME = "cut3r"
SPEC = table.MODELS[NAME]
FILE = "model.safetensors"
_TWICE = re.compile(r"\.scratch\.layer_rn\.(\d)\.")  # the same tensors have a second name, see `heads.Scratch`

# What the pickle names besides its tensors: arguments and figures of the training. They are let in as nothing.
_ARGUMENTS = (
    "argparse.Namespace",
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "Box", "Container", "Node")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
    *(f"builtins.{name}" for name in ("dict", "list", "str", "int", "float", "bool", "tuple", "object")),
    "typing.Any",
    "collections.defaultdict",
    *(f"numpy.{name}" for name in ("core.multiarray.scalar", "_core.multiarray.scalar", "dtype")),
)


class Nothing:
    """Stands for an object of a pickle, and keeps nothing of it."""

    def __new__(cls, *_: object, **__: object) -> Nothing:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None:
        """As a list has it."""

    def extend(self, items: object) -> None:
        """As a list has it."""


def convert(file: str | Path, folder: str | Path, accepted: Collection[str] = (), config: Config | None = None) -> Path:
    """Write the tensors of a published pickle to `folder` as safetensors, beside a config.json; returns the file.

    accepted: has to contain "cut3r", which accepts the terms of its licence. config: sizes, None for the published.
    Only tensors are read (`weights_only`): of what else the file names the arguments of the training are let in as
    nothing, and anything else is refused. Raises `InputError` for that, and where a tensor is missing, left over, or of
    another shape than the configuration says.
    """
    table.check_accepted(NAME, accepted)
    tensors = _single(_tensors(Path(file)), Path(file).name)
    with torch.device("meta"):
        network = CUT3R(config or Config())
    _check(tensors, network, Path(file).name)
    written = Path(folder) / FILE
    written.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, written, {"licence": SPEC.licence})
    sizes = {"kind": NAME} | asdict(network.config)
    (written.parent / "config.json").write_text(json.dumps(sizes, indent=2), encoding="utf-8")
    return written


def load_cut3r(folder: str | Path, device: str | torch.device = "cpu") -> CUT3R:
    """CUT3R with the weights and sizes that `convert` wrote to `folder`, in float32. Raises `InputError`."""
    file, sizes = Path(folder) / FILE, Path(folder) / "config.json"
    if not (file.is_file() and sizes.is_file()):
        raise InputError(
            f"The folder {str(folder)!r} holds no CUT3R: it lacks {FILE} or config.json. Convert the published file "
            f"cut3r_512_dpt_4_64.pth with: python -m pipeline.scene.weights FILE --output {folder} --accept {NAME}"
        )
    try:
        tensors = load_file(file, device=str(device))
        given = json.loads(sizes.read_text(encoding="utf-8"))
        given.pop("kind", None)
        config = Config(**given | {"maps": tuple(given["maps"])})
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"The weights {str(file)!r} cannot be read ({error}); convert them again.") from error
    with torch.device("meta"):
        network = CUT3R(config)
    _check(tensors, network, str(file))
    network.load_state_dict({key: tensors[_first_name(key)].float() for key in network.state_dict()}, assign=True)
    return network.eval().requires_grad_(False)


ENCODERS: dict[str, Callable[[str, str], SceneEncoder]] = {
    NAME: lambda folder, device: CUT3REncoder(load_cut3r(folder, device)),
    recurrent.KIND: load_recurrent,
}


def kind_of(folder: str | Path) -> str:
    """Which row of `ENCODERS` the scene encoder of a folder is, as its config.json says. Raises `InputError`."""
    try:
        kind = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The folder {str(folder)!r} holds no scene encoder: no config.json says its kind.") from error
    if kind not in ENCODERS:
        raise InputError(f"The scene encoder in {str(folder)!r} is a {kind!r}; known are {', '.join(ENCODERS)}.")
    return kind


def listed(folder: str | Path) -> str:
    """The name in `table.MODELS` of a folder's scene encoder, whose terms have to be accepted; "" for one of ours."""
    kind = kind_of(folder)
    return kind if kind in table.MODELS else ""


@lru_cache(maxsize=1)
def load_encoder(folder: str, device: str = "cpu") -> SceneEncoder:
    """The scene encoder of a folder. The last one is kept. Raises `InputError`."""
    return ENCODERS[kind_of(folder)](folder, device)


def _first_name(key: str) -> str:
    return _TWICE.sub(lambda found: f".scratch.layer{int(found[1]) + 1}_rn.", key)


def _tensors(file: Path) -> dict[str, Tensor]:
    allowed = [(Nothing, name) for name in _ARGUMENTS]
    try:
        with torch.serialization.safe_globals(allowed):  # pyright: ignore[reportArgumentType]
            given: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {str(file)!r}.") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f" It names {found[1]}." if found else ""
        raise InputError(
            f"The file {file.name!r} is no pickle of tensors and plain arguments, and is not opened.{named} Take the "
            "file that the authors of CUT3R publish."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"The file {file.name!r} cannot be read ({error}); fetch it again.") from error
    tensors = given.get("model") if isinstance(given, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"The file {file.name!r} holds no weights under the name 'model', as CUT3R's file does.")
    return {str(key).removeprefix("module."): value for key, value in tensors.items()}


def _single(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Each tensor once. A second name has to mean the same tensor."""
    for key, value in tensors.items():
        first = _first_name(key)
        if first != key and not (first in tensors and torch.equal(tensors[first], value)):
            raise InputError(f"In the file {name!r} {key} differs from {first}, which is to be the same.")
    return {key: value for key, value in tensors.items() if _first_name(key) == key}


def _check(tensors: Mapping[str, Tensor], network: CUT3R, name: str) -> None:
    wanted = {key: value.shape for key, value in network.state_dict().items() if _first_name(key) == key}
    wrong = sorted(key for key in {*wanted, *tensors} if key not in tensors or wanted.get(key) != tensors[key].shape)
    if wrong:
        raise InputError(
            f"{name!r} is not cut3r_512_dpt_4_64, the only CUT3R that is known here: {len(wrong)} tensors are missing, "
            f"left over or of another shape, such as {', '.join(wrong[:3])}."
        )


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.scene.weights", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", metavar="FILE", help="cut3r_512_dpt_4_64.pth, as its authors publish it")
    parser.add_argument("--output", required=True, metavar="FOLDER", help=f"where {FILE} is written")
    parser.add_argument("--accept", default="", metavar="MODEL", help=f"{NAME}: you accept the terms. {SPEC.terms}")
    given = parser.parse_args(arguments)
    try:
        print(convert(given.file, given.output, given.accept.split(",")))
    except InputError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
