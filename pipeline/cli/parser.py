"""The arguments of the command line."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any, NoReturn

from pipeline.cli.commands import (
    benchmark,
    convert,
    describe,
    doctor,
    evaluate,
    list_models,
    mask_of,
    recapture,
    render_file,
    replace_object,
    warp,
)

TITLE = "Film an existing video anew, along another camera path or with an object replaced."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give height x width, such as 128x208")
    return int(found[1]), int(found[2])


def _click(text: str, positive: bool = True) -> Any:
    from pipeline.masks.shape import Click

    found = re.fullmatch(r"(\d+),(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no pixel; give its column and row, such as 320,180")
    return Click(int(found[2]), int(found[1]), positive)


def _click_beside(text: str) -> Any:
    return _click(text, False)


def _fov(text: str) -> float:
    """Degrees, or the millimetres of a lens before a picture 36 mm wide, as degrees."""
    try:
        if text.endswith("mm"):
            return math.degrees(2 * math.atan(18 / float(text[:-2])))
        return float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no field of view; give degrees, or a lens as 35mm") from error


def _outputs(added: argparse.ArgumentParser, kept: str) -> None:
    added.add_argument("--output", required=True, metavar="FILE", help="the video to write, .mp4")
    added.add_argument("--keep", default=None, metavar="DIR", help=f"also write {kept} there, at working size")


def _report(added: argparse.ArgumentParser) -> None:
    added.add_argument("--report", default=None, metavar="FILE", help="also write the report there, as JSON")


def _accept(added: argparse.ArgumentParser) -> None:
    words = "you accept the terms of that model; several, separated by commas (default: $RECAPTURE_ACCEPT)"
    added.add_argument("--accept", dest="accepted", metavar="MODEL", help=words)


def _camera(added: argparse.ArgumentParser, default: str = "orbit-left") -> None:
    from pipeline.camera.moves import MOVES, SPEEDS, TIMINGS

    add = added.add_argument
    add("--camera", metavar="MOVE", help=f"{', '.join(MOVES)}, or the file of a camera path (default {default})")
    add("--amount", type=float, help="of a named move, in degrees or percent of the distance (default: its own)")
    add("--speed", choices=SPEEDS, help="how the camera travels along its path")
    words = f"how the clip plays: {', '.join(TIMINGS)}, or pairs of the result's time and the clip's moment, 0 to 1"
    add("--time", metavar="CURVE", help=f"{words}, such as 0:0,0.5:1,1:0")
    add("--frozen", type=float, metavar="MOMENT", help="time stands still at that moment of the clip, 0 to 1")
    add("--camera-from-clip", metavar="CLIP", help="move as the camera of this clip does, instead of --camera")
    words = "the clip's own path, smoothed over so many seconds, instead of --camera"
    add("--stabilise", type=float, metavar="SECONDS", help=words)
    words = "the camera looks at the object that this mask shows, wherever it goes (a file as --mask of replace)"
    add("--look-at", metavar="MASK", help=words)
    add("--camera-name", metavar="NAME", help="which camera of a file that holds several (default: the first)")
    add("--camera-unit", type=float, metavar="N", help="how many of the file's units the subject is away")
    add("--camera-scale", type=float, metavar="N", help="go N times as far: a path from a file or of a clip")


def _source(added: argparse.ArgumentParser, default: str = "orbit-left") -> None:
    from pipeline.depth.files import KINDS
    from pipeline.models.table import of_role

    add = added.add_argument
    add("clip", metavar="CLIP", help="a video, a picture, or a folder of numbered pictures")
    _camera(added, default)
    words = "field of view of the clip in degrees, longer side, or its lens, such as 35mm (default: the file's, or 55)"
    add("--fov", type=_fov, help=words)
    add("--frames", type=int, help="number of frames, any (default: all, up to 49 or what the model was made for)")
    add("--start", type=int, help="first frame (default 0)")
    add("--stride", type=int, help="use every n-th frame (default 1)")
    add("--size", type=_size, metavar="HxW", help="size the model works at (default: its own)")
    names = ", ".join(spec.name for spec in of_role("backbone"))
    words = f"video model: {names}, a folder or a Hugging Face id (default: by what this machine has)"
    add("--backbone", metavar="MODEL", help=words)
    words = "do not take what a frame does not see from frames that do"
    add("--no-other-frames", dest="other_frames", action="store_false", help=words)
    add("--depth", metavar="PATH", help="your own depth: npz, or a folder of EXR or 16-bit PNG")
    words = "what its numbers mean, where the file does not say it (disparity: near is large; metric: metres)"
    add("--depth-kind", choices=KINDS, help=words)
    names = ", ".join(spec.name for spec in of_role("depth"))
    add("--depth-model", metavar="MODEL", help=f"{names}, a folder or a Hugging Face id (default: the backbone's)")
    _accept(added)


def _masked(added: argparse.ArgumentParser, *, required: bool) -> None:
    add = added.add_argument
    add("--mask", required=required, metavar="FILE", help="the object, in white: a picture, a video, or an npz")
    add(
        "--frame",
        dest="mask_frame",
        type=int,
        help="the frame that a single picture shows (default: the first used)",
    )
    add("--mask-label", type=int, metavar="N", help="only this label of a label map (default: all of them)")
    add("--invert", action="store_true", help="replace everything but what the mask shows")
    add("--grow", type=float, help="widen the mask by so many percent of the shorter side (default 2)")
    add("--remove", action="store_true", help="put nothing there: take what stood behind it from other frames")


def _first_frame(added: argparse.ArgumentParser) -> None:
    from pipeline.models.table import of_role

    add = added.add_argument
    add("--first-frame", metavar="FILE", help="a picture of what the first frame is to show")
    names = ", ".join(spec.name for spec in of_role("first frame"))
    words = f"paints what is unknown of the first frame: {names}, a folder or a Hugging Face id"
    add("--first-frame-model", metavar="MODEL", help=words)


def _sampling(added: argparse.ArgumentParser, prompt: str) -> None:
    from pipeline.method.latent_mask import LATENT_MASKS, PHI
    from pipeline.method.methods import WORDS
    from pipeline.method.solvers import SCHEDULES, SOLVERS
    from pipeline.models.memory import MODES

    add = added.add_argument
    says = " ".join(f"{name}: {words}" for name, words in WORDS.items())
    add("--method", help=f"how the sampler is told what is known. {says} (default inversecrafter)")
    add("--prompt", help=prompt)
    add("--negative-prompt", help="what it must not show")
    add("--seed", type=int, help="of the noise (default 0); the same seed gives the same result")
    add("--steps", type=int, help="sampling steps (default: the model's)")
    add("--guidance-scale", type=float, help="how strictly the prompt is followed (default: the model's)")
    add("--strength", type=float, help="noise level to start from, up to 1 = pure noise (default: the model's)")
    masks = f"{', '.join(LATENT_MASKS)} (default: learned, if the model has it; reference: camera stands still)"
    add("--latent-mask", metavar="MASK", help=masks)
    add("--phi", help=f"what normalises a latent mask: {', '.join(PHI)} (default wiener)")
    add("--tau", type=float, help="temperature of phi, above 0 (default 0.6)")
    add("--solver", help=f"data consistency: {', '.join(SOLVERS)} (default dds)")
    add("--gamma", type=float, help="of dds: trust in the model against the measurement, above 0 (default 0.03)")
    counts = ", ".join(f"{name} {row.iterations}" for name, row in SOLVERS.items() if row.iterations)
    add("--iterations", type=int, help=f"of a solver that has them (default {counts})")
    add("--schedule", help=f"of the iterations over the noise levels: {', '.join(SCHEDULES)} (default constant)")
    steps = ", ".join(f"{name} {row.step_size:g}" for name, row in SOLVERS.items() if row.step_size)
    add("--step-size", type=float, help=f"of a solver that takes gradient steps (default {steps})")
    add("--guide-from", type=float, help="noise level from which data consistency acts (default 1)")
    add("--guide-until", type=float, help="noise level until which it acts (default 0)")
    add("--condition", help="what the model is shown: warp (default), first-frame or none")
    add("--no-composite", dest="composite", action="store_false", help="leave the model's pixels, at working size")
    words = "for two eyes, side by side: how far the right one stands, in percent of the distance to the subject"
    add("--stereo", type=float, metavar="PERCENT", help=words)
    add("--no-grain", dest="grain", action="store_false", help="leave what is painted smooth at the clip's size")
    words = "off (default); cache: skip what changes little from step to step; lora: few steps by causvid-lora"
    add("--fast", help=words)
    add("--memory", help=f"how the model is placed on a GPU: auto (default), {', '.join(MODES)}")
    add("--compile", action="store_true", help="compile the model's blocks first, which takes a while")
    add("--seam", type=float, help="percent of the shorter side over which the clip fades out (default 1)")


def _benchmark(added: argparse.ArgumentParser) -> None:
    added.add_argument("--backbone", default="nano", help="model: a name, a folder or a Hugging Face id (default nano)")
    added.add_argument("--depth", default=None, metavar="FILE", help="depth of the benchmark's clip, where no model is")
    added.add_argument("--size", type=_size, default=None, metavar="HxW", help="size the model works at")
    add = added.add_argument
    add(
        "--real",
        nargs="?",
        const="wan2.1-fun-1.3b-inp",
        default=None,
        metavar="NAME",
        help="time a real model with random weights instead, without downloading it (default wan2.1-fun-1.3b-inp)",
    )
    add("--frames", nargs="+", type=int, default=None, help="with --real: lengths of the clip (default 33 49 81)")
    add("--steps", type=int, default=None, help="with --real: steps of a render (default 50)")
    add("--timed", type=int, default=None, help="with --real: how many of them are timed (default 6)")
    add("--modes", nargs="*", default=None, help="with --real: memory modes to measure (default: all)")
    add("--shrink", type=int, default=1, help="with --real: divide widths and layers, for machines without a GPU")


def _evaluation(added: argparse.ArgumentParser) -> None:
    added.add_argument("--backbone", default="nano", help="model: a name, a folder or a Hugging Face id (default nano)")
    add = added.add_argument
    add(
        "task",
        nargs="?",
        choices=("camera", "replace", "cycle"),
        default=None,
        metavar="TASK",
        help="camera, replace or cycle",
    )
    add("folder", nargs="?", default=None, metavar="FOLDER", help="videos, folders of frames, or the layout of DAVIS")
    words = "the holes that a path opens in these clips, filled, against the clips themselves"
    add("--real", metavar="FOLDER", default=None, help=words)
    add("--clips", nargs="+", metavar="CLIP", default=None, help="these clips instead of a folder, along all six paths")
    wanted = "what to compare, such as dds,gamma=0.2 or repaint,binary,iterations=3 (default: dds; on scenes, several)"
    add("--methods", nargs="+", metavar="METHOD", default=None, help=wanted)
    words = "JSON {clip: [prompts]}: what stands there instead (replace), or what the clip shows; only these clips"
    add("--prompts", metavar="FILE", default=None, help=words)
    add("--cameras", nargs="+", metavar="MOVE", default=None, help="paths of each clip (default: one of six in turn)")
    add("--frames", type=int, default=None, help="frames of each clip (default: as many as the model was made for)")
    add("--depth-model", metavar="MODEL", default=None, help="depth of the clips (default: what comes with the model)")
    _accept(added)
    add("--ray", action="store_true", default=False, help="on a Ray cluster ($RAY_ADDRESS, else this machine)")
    add("--scenes", type=int, default=12, help="number of unseen scenes (default 12)")
    add("--first-seed", type=int, default=0, help="seed of the first scene (default 0)")
    add("--steps", type=int, default=None, help="sampling steps (default: the model's)")
    words = "one JSON line a scene or clip and method, as they are done; goes on from there"
    add("--output", default=None, metavar="FILE", help=words)
    added.add_argument("--figure", default=None, metavar="FILE", help="also write a strip of pictures, .png")


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m pipeline", description=TITLE)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__, argument_default=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    added = command("recapture", recapture)
    _source(added)
    _first_frame(added)
    _sampling(added, "what the video shows")
    _outputs(added, "measurement.npz, raw.npz and depth.npz")
    _report(added)

    added = command("replace", replace_object)
    _source(added, "still")
    added.set_defaults(camera="still")
    _masked(added, required=True)
    _first_frame(added)
    _sampling(added, "what stands there instead; with --remove, what the background is")
    _outputs(added, "measurement.npz, raw.npz and depth.npz")
    _report(added)

    added = command("warp", warp)
    _source(added)
    _masked(added, required=False)
    _outputs(added, "measurement.npz and depth.npz")

    added = command("mask", mask_of)
    added.add_argument("clip", metavar="CLIP", help="a video, a picture, or a folder of numbered pictures")
    add = added.add_argument
    add("--click", dest="clicks", action="append", type=_click, metavar="X,Y", help="a pixel of the object; several")
    add("--not", dest="clicks", action="append", type=_click_beside, metavar="X,Y", help="a pixel that is not of it")
    add("--frame", type=int, default=0, help="the frame of the clip that was clicked on (default 0)")
    add("--output", required=True, metavar="FILE", help="the mask to write, .png")

    added = command("render", render_file)
    added.add_argument("request", metavar="REQUEST", help="a request as JSON, such as those in examples/")
    _accept(added)
    _outputs(added, "measurement.npz, raw.npz and depth.npz")
    _report(added)

    added = command("camera", convert)
    _camera(added)
    added.set_defaults(camera="orbit-left")
    add = added.add_argument
    add("--format", default="recapture", help="recapture (default), trajectorycrafter, recammaster, nerfstudio or npz")
    add("--frames", type=int, default=49, help="cameras to write where the format has no keyframes (default 49)")
    add("--fov", type=_fov, help="field of view of the clip in degrees, longer side, or its lens as 35mm (default 55)")
    add("--size", type=_size, default=(480, 832), metavar="HxW", help="picture that K is for (default 480x832)")
    add("--output", required=True, metavar="FILE", help="the file to write")

    from pipeline.models.table import of_role

    added = command("caption", describe)
    added.add_argument("clip", metavar="CLIP", help="a video file")
    names = ", ".join(spec.name for spec in of_role("captions"))
    words = f"{names}, a folder or a Hugging Face id (default: what suits this machine)"
    added.add_argument("--model", metavar="MODEL", help=words)
    _accept(added)

    added = command("doctor", doctor)
    added.add_argument("--json", action="store_true", default=False, help="as JSON")

    _benchmark(command("benchmark", benchmark))

    added = command("models", list_models)
    added.add_argument("--download", default=None, metavar="NAME", help="get a model of the table from the hub")
    _accept(added)

    _evaluation(command("evaluate", evaluate))
    return made
