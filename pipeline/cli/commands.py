"""The command line, over the app's functions: `python -m pipeline COMMAND`, see --help.

Progress goes to a bar on a terminal, else as plain lines to standard output; errors are one line on standard error.
Exit codes: 0 done, 1 (doctor) nothing can render here, 2 something the user gave cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from pipeline import InputError

TITLE = "Film an existing video anew, along another camera path or with an object replaced."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def recapture(options: argparse.Namespace) -> None:
    """Film a clip anew along a camera path."""
    _render_to(_request(options), options)


def replace_object(options: argparse.Namespace) -> None:
    """Put something else in the place of an object that a mask shows, or nothing; along a new camera path, if asked."""
    _render_to(_request(options), options)


def render_file(options: argparse.Namespace) -> None:
    """Render a request as written in a JSON file."""
    from pipeline.render.render import RenderRequest

    path = Path(options.request)
    try:
        request = RenderRequest.from_json(path.read_text(encoding="utf-8"), _accepted(options))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the request {path}: {getattr(error, 'strerror', None) or error}.") from error

    def located(name: str) -> str:
        beside = path.parent / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    files = {name: getattr(request, name) for name in ("clip", "depth", "mask", "first_frame")}
    _render_to(replace(request, **{name: located(path) for name, path in files.items() if path}), options)


def warp(options: argparse.Namespace) -> None:
    """Stop at the measurement: the clip seen from the new camera, its holes as a grey checkerboard."""
    from pipeline.media.video import Clip, write_video
    from pipeline.render.render import (
        Analysis,
        analyse,
        at_moment,
        hide,
        keep_measurement,
        make_writable,
        measure,
        replaced_place,
        see_elsewhere,
        show_holes,
        sound_of,
        wants_other_frames,
        writing,
    )

    request, output = _request(options), _checked_output(options)
    keep = Path(options.keep) if options.keep else None
    if keep:
        make_writable(keep)
    with _Progress() as progress:
        analysis = None
        for event in analyse(request):
            if isinstance(event, Analysis):
                analysis = event
            else:
                progress.show(event.message, 5 * event.fraction)
        assert analysis is not None
        for event in hide(analysis, request):
            if isinstance(event, Analysis):
                analysis = event
            else:
                progress.show(event.message, 5 * event.fraction)
        analysis = at_moment(analysis, request)
        progress.show("Warping", 0.5)
        own = measure(analysis, request)
        found = None
        if wants_other_frames(analysis, request, own):
            found = see_elsewhere(analysis, request, own, replaced_place(analysis, request))
        measurement = found.measurement if found else own
        progress.show("Writing the video", 0.8)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".recapture-") as folder, writing(output):
            video = Path(folder) / "warp.mp4"
            shown = Clip(show_holes(measurement), analysis.fps)
            write_video(video, shown, **sound_of(request, analysis))
            os.replace(video, output)
        if keep:
            with writing(keep):
                keep_measurement(keep, measurement, analysis)
        progress.show("Done", 1.0)
    unknown = 1 - measurement.mask.float().mean().item()
    elsewhere = 1 - own.mask.float().mean().item() - unknown
    words = f" {elsewhere:.1%} is seen by other frames only, and was taken from there." if elsewhere else ""
    _say([*analysis.notes, f"{unknown:.1%} of the picture is unknown.{words}"])
    print(f"Wrote {output}")


def benchmark(options: argparse.Namespace) -> None:
    """Print how long the parts take, as ratios within one run; of a real model with random weights, and its memory."""
    from pipeline.evaluation.benchmark import real, run

    if options.real:
        clip = {"frames": options.frames, "steps": options.steps, "modes": options.modes, "timed": options.timed}
        given = {name: value for name, value in (clip | {"size": options.size}).items() if value is not None}
        real(options.real, shrink=options.shrink, **given)
        return
    run(options.backbone, depth=options.depth, size=options.size)


def describe(options: argparse.Namespace) -> None:
    """Say what the middle frame of a clip shows, as a suggestion for the prompt."""
    from pipeline.models.caption import caption, middle_frame

    found = caption(middle_frame(options.clip), vars(options).get("model"), _accepted(options))
    print(found.words)
    print(f"Suggested by {found.by}.", file=sys.stderr)


def evaluate(options: argparse.Namespace) -> None:
    """Compare methods on unseen scenes of the procedural world, whose true second view is known; or, as the papers do,
    on a folder of clips: camera (re-capture), replace (an object), cycle (re-capture there and back)."""
    from pipeline.camera.geometry import PRESETS
    from pipeline.evaluation import folders, scores
    from pipeline.evaluation import scenes as world

    if options.scenes < 1:
        raise InputError("--scenes must be 1 or more.")
    output, figure = (Path(path) if path else None for path in (options.output, options.figure))
    say = lambda message: print(message, file=sys.stderr, flush=True)
    accepted = _accepted(options)
    shown: dict[str, Any] = dict(
        methods=options.methods, steps=options.steps, output=output, accepted=accepted, progress=say
    )
    if absent := scores.absent(accepted):
        lacking: dict[str, list[str]] = {}
        for name, get in absent.items():
            lacking.setdefault(get, []).append(name)
        say("Not measured, since the weights are not on this machine, or their terms not accepted:")
        for get, names in lacking.items():
            say(f"  {', '.join(names)}: {get}")
    if options.task is None and options.clips is None:
        for name in ("prompts", "cameras", "frames", "depth_model", "ray"):
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')} is for clips; give a task and a folder, or --clips.")
        print(world.evaluate(options.backbone, options.first_seed, options.scenes, figure=figure, **shown))
        return
    if (options.clips is None) == (options.folder is None):
        raise InputError(f"Give a folder of clips, as in: evaluate {options.task} FOLDER; or --clips, not both.")
    if options.task == "replace" and options.cameras:
        raise InputError("--cameras is for camera and cycle; where an object is replaced the camera stands still.")
    if figure is not None:
        raise InputError("--figure is for unseen scenes; leave it out.")
    cameras = options.cameras
    if options.clips is None:
        sources = folders.sources_of(options.folder)
    else:
        sources = [replace(source, name=clip) for clip in options.clips for source in folders.sources_of(clip)]
        cameras = cameras or tuple(PRESETS)
    prompts = folders.read_prompts(options.prompts) if options.prompts else None
    shown |= dict(frames=options.frames, depth_model=options.depth_model, ray=options.ray)
    print(
        folders.evaluate(options.task or "camera", sources, options.backbone, prompts=prompts, cameras=cameras, **shown)
    )


def list_models(options: argparse.Namespace) -> None:
    """Show the models: what for, licence, size, whether they are on this machine; or download one of them."""
    from pipeline.models import table as models

    if options.download is None:
        print(models.table())
        return
    spec = models.MODELS.get(options.download)
    if spec is None:
        raise InputError(f"Unknown model {options.download!r}: give one of {', '.join(models.MODELS)}.")
    for folder in models.download(spec, _accepted(options)):
        print(folder)


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine has, what will run on it and how fast, and what is missing. Downloads nothing."""
    from pipeline.cli.doctor import run

    return run(as_json=options.json)


class _Progress:
    """A bar on a terminal, else a line for each new stage."""

    def __enter__(self) -> _Progress:
        self.bar = None
        self.last = ""
        if sys.stderr.isatty():
            layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
            # a size that tqdm need not ask for: it shows nothing on terminals that do not know their own
            columns = shutil.get_terminal_size().columns
            self.bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, leave=False, ncols=columns, nrows=24)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, message: str, fraction: float, detail: str = "") -> None:
        if self.bar is not None:
            self.bar.set_description_str(f"{message}{detail}", refresh=False)
            self.bar.update(max(0.0, fraction - self.bar.n))
            self.bar.refresh()
        elif message != self.last:
            print(message, flush=True)
        self.last = message


def _render_to(request: Any, options: argparse.Namespace) -> None:
    from pipeline.render.render import (
        DoneEvent,
        FailedEvent,
        StageEvent,
        StepEvent,
        make_writable,
        render,
        write_report,
        writing,
    )

    output = _checked_output(options)
    report = Path(options.report) if options.report else None
    if report:
        make_writable(report.parent)
    result, stage = None, ""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".recapture-") as folder, _Progress() as progress:
        for event in render(request, folder, keep=options.keep):
            if isinstance(event, StageEvent):
                stage = event.message
                progress.show(stage, event.fraction)
            elif isinstance(event, StepEvent):
                left = f" {event.index}/{event.total}, about {event.seconds_left:.0f} s left"
                progress.show(stage, event.fraction, left)
            elif isinstance(event, FailedEvent):
                raise InputError(event.message)
            elif isinstance(event, DoneEvent):
                result = event.result
        assert result is not None
        with writing(output):
            os.replace(result.video, output)
        if report:
            write_report(report, result.report)
    raw = result.report["measurement"]["raw"]
    _say(result.report["notes"])
    seconds = result.report["seconds"]["total"]
    decibels = "infinite" if raw["psnr"] is None else f"{raw['psnr']:.1f} dB"
    print(f"Wrote {output} in {seconds:.1f} s; raw measurement PSNR {decibels}, SSIM {raw['ssim']:.3f}")


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(note)


def _checked_output(options: argparse.Namespace) -> Path:
    from pipeline.render.render import make_writable

    output = Path(options.output)
    if output.suffix.lower() != ".mp4":
        raise InputError(f"The output {output} must end in .mp4.")
    if output.is_dir():
        raise InputError(f"The output {output} is a folder; give the path of a file.")
    clip = getattr(options, "clip", None)
    if clip and output.exists() and Path(clip).exists() and output.samefile(clip):
        raise InputError(f"The output {output} is the clip itself; give another path.")
    make_writable(output.parent)
    return output


def _request(options: argparse.Namespace) -> Any:
    from pipeline.models import table as models
    from pipeline.render.render import RenderRequest

    # only what was given on the command line is there (argparse.SUPPRESS): the defaults stand in one place
    names = {field.name for field in fields(RenderRequest)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if "backbone" not in given:
        given["backbone"], why = models.default_backbone()
        print(why)
    if move := _move(options):
        given = {name: value for name, value in given.items() if name not in ("camera", "amount")} | {"move": move}
    given["accepted"] = _accepted(options)
    return RenderRequest(**given)


def _accepted(options: argparse.Namespace) -> tuple[str, ...]:
    """Names of models whose terms the user accepts: of --accept, else of the environment."""
    names = vars(options).get("accepted", os.environ.get("RECAPTURE_ACCEPT", "")).split(",")
    return tuple(name.strip() for name in names if name.strip())


def _move(options: argparse.Namespace) -> Any:
    """The move in the file that --camera names, or a named one that is to go otherwise; None for a named one as is."""
    from pipeline.camera.files import read_move
    from pipeline.camera.moves import preset_move

    given = vars(options)
    camera = given.get("camera", "orbit-left")
    its_own = {name: given[name] for name in ("speed", "frozen") if name in given}
    if Path(camera).suffix or Path(camera).exists():
        if "amount" in given:
            raise InputError("--amount is for a named camera move; the path in a file says how far it goes.")
        return replace(read_move(camera, name=given.get("camera_name"), unit=given.get("camera_unit")), **its_own)
    if "camera_name" in given or "camera_unit" in given:
        raise InputError("--camera-name and --camera-unit are for a camera path from a file.")
    return replace(preset_move(camera, given.get("amount"), given.get("fov", 55.0)), **its_own) if its_own else None


def convert(options: argparse.Namespace) -> None:
    """Write a named camera move, or one from a file, in a format of your choice."""
    from pipeline.camera.files import FORMATS, write_move
    from pipeline.camera.moves import preset_move
    from pipeline.render.render import DEFAULT_FOV, make_writable, writing

    output = Path(options.output)
    fov = vars(options).get("fov", DEFAULT_FOV)
    move = _move(options) or preset_move(options.camera, vars(options).get("amount"), fov)
    content = write_move(options.format, move, frames=options.frames, own_fov=fov, size=options.size)
    if output.suffix.lower() != FORMATS[options.format][1]:
        raise InputError(
            f"A camera path as {options.format} ends in {FORMATS[options.format][1]}, unlike {output.name}."
        )
    make_writable(output.parent)
    with writing(output):
        output.write_bytes(content)
    print(f"Wrote {output}")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give height x width, such as 128x208")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pipeline", description=TITLE)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__, argument_default=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    def outputs(added: argparse.ArgumentParser, kept: str) -> None:
        added.add_argument("--output", required=True, metavar="FILE", help="the video to write, .mp4")
        added.add_argument("--keep", default=None, metavar="DIR", help=f"also write {kept} there, at working size")

    def report(added: argparse.ArgumentParser) -> None:
        added.add_argument("--report", default=None, metavar="FILE", help="also write the report there, as JSON")

    def accept(added: argparse.ArgumentParser) -> None:
        words = "you accept the terms of that model; several, separated by commas (default: $RECAPTURE_ACCEPT)"
        added.add_argument("--accept", dest="accepted", metavar="MODEL", help=words)

    def camera(added: argparse.ArgumentParser, default: str = "orbit-left") -> None:
        from pipeline.camera.moves import MOVES, SPEEDS

        add = added.add_argument
        add("--camera", metavar="MOVE", help=f"{', '.join(MOVES)}, or the file of a camera path (default {default})")
        add("--amount", type=float, help="of a named move, in degrees or percent of the distance (default: its own)")
        add("--speed", choices=SPEEDS, help="how the camera travels along its path")
        add("--frozen", type=float, metavar="MOMENT", help="time stands still at that moment of the clip, 0 to 1")
        add("--camera-name", metavar="NAME", help="which camera of a file that holds several (default: the first)")
        add("--camera-unit", type=float, metavar="N", help="how many of the file's units the subject is away")

    def source(added: argparse.ArgumentParser, default: str = "orbit-left") -> None:
        from pipeline.models.table import of_role

        add = added.add_argument
        add("clip", metavar="CLIP", help="a video file")
        camera(added, default)
        add("--fov", type=float, help="field of view of the clip in degrees, longer side (default: the file's, or 55)")
        add("--frames", type=int, help="number of frames, any (default: as many as the model was made for)")
        add("--start", type=int, help="first frame (default 0)")
        add("--stride", type=int, help="use every n-th frame (default 1)")
        add("--size", type=_size, metavar="HxW", help="size the model works at (default: its own)")
        names = ", ".join(spec.name for spec in of_role("backbone"))
        words = f"video model: {names}, a folder or a Hugging Face id (default: by what this machine has)"
        add("--backbone", metavar="MODEL", help=words)
        words = "do not take what a frame does not see from frames that do"
        add("--no-other-frames", dest="other_frames", action="store_false", help=words)
        add("--depth", metavar="PATH", help="your own depth: npz, or a folder of EXR or 16-bit PNG")
        names = ", ".join(spec.name for spec in of_role("depth"))
        add("--depth-model", metavar="MODEL", help=f"{names}, a folder or a Hugging Face id (default: the backbone's)")
        accept(added)

    def masked(added: argparse.ArgumentParser, *, required: bool) -> None:
        add = added.add_argument
        add("--mask", required=required, metavar="FILE", help="the object, in white: a picture, a video, or an npz")
        add(
            "--frame",
            dest="mask_frame",
            type=int,
            help="the frame that a single picture shows (default: the first used)",
        )
        add("--invert", action="store_true", help="replace everything but what the mask shows")
        add("--grow", type=float, help="widen the mask by so many percent of the shorter side (default 2)")
        add("--remove", action="store_true", help="put nothing there: take what stood behind it from other frames")

    def first_frame(added: argparse.ArgumentParser) -> None:
        from pipeline.models.table import of_role

        add = added.add_argument
        add("--first-frame", metavar="FILE", help="a picture of what the first frame is to show")
        names = ", ".join(spec.name for spec in of_role("first frame"))
        words = f"paints what is unknown of the first frame: {names}, a folder or a Hugging Face id"
        add("--first-frame-model", metavar="MODEL", help=words)

    def sampling(added: argparse.ArgumentParser, prompt: str) -> None:
        from pipeline.method.latent_mask import LATENT_MASKS, PHI
        from pipeline.method.solvers import SCHEDULES, SOLVERS
        from pipeline.models.memory import MODES

        add = added.add_argument
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
        add("--no-grain", dest="grain", action="store_false", help="leave what is painted smooth at the clip's size")
        words = "off (default); cache: skip what changes little from step to step; lora: few steps by causvid-lora"
        add("--fast", help=words)
        add("--memory", help=f"how the model is placed on a GPU: auto (default), {', '.join(MODES)}")
        add("--compile", action="store_true", help="compile the model's blocks first, which takes a while")
        add("--seam", type=float, help="percent of the shorter side over which the clip fades out (default 1)")

    added = command("recapture", recapture)
    source(added)
    first_frame(added)
    sampling(added, "what the video shows")
    outputs(added, "measurement.npz, raw.npz and depth.npz")
    report(added)

    added = command("replace", replace_object)
    source(added, "still")
    added.set_defaults(camera="still")
    masked(added, required=True)
    first_frame(added)
    sampling(added, "what stands there instead; with --remove, what the background is")
    outputs(added, "measurement.npz, raw.npz and depth.npz")
    report(added)

    added = command("warp", warp)
    source(added)
    masked(added, required=False)
    outputs(added, "measurement.npz and depth.npz")

    added = command("render", render_file)
    added.add_argument("request", metavar="REQUEST", help="a request as JSON, such as those in examples/")
    accept(added)
    outputs(added, "measurement.npz, raw.npz and depth.npz")
    report(added)

    added = command("camera", convert)
    camera(added)
    added.set_defaults(camera="orbit-left")
    add = added.add_argument
    add("--format", default="recapture", help="recapture (default), trajectorycrafter, recammaster, nerfstudio or npz")
    add("--frames", type=int, default=49, help="cameras to write where the format has no keyframes (default 49)")
    add("--fov", type=float, help="field of view of the clip in degrees, longer side (default 55)")
    add("--size", type=_size, default=(480, 832), metavar="HxW", help="picture that K is for (default 480x832)")
    add("--output", required=True, metavar="FILE", help="the file to write")

    from pipeline.models.table import of_role

    added = command("caption", describe)
    added.add_argument("clip", metavar="CLIP", help="a video file")
    names = ", ".join(spec.name for spec in of_role("captions"))
    words = f"{names}, a folder or a Hugging Face id (default: what suits this machine)"
    added.add_argument("--model", metavar="MODEL", help=words)
    accept(added)

    added = command("doctor", doctor)
    added.add_argument("--json", action="store_true", default=False, help="as JSON")

    added = command("benchmark", benchmark)
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

    added = command("models", list_models)
    added.add_argument("--download", default=None, metavar="NAME", help="get a model of the table from the hub")
    accept(added)

    added = command("evaluate", evaluate)
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
    add("--clips", nargs="+", metavar="CLIP", default=None, help="these clips instead of a folder, along all six paths")
    wanted = "what to compare, such as dds,gamma=0.2 or repaint,binary,iterations=3 (default: dds; on scenes, several)"
    add("--methods", nargs="+", metavar="METHOD", default=None, help=wanted)
    words = "JSON {clip: [prompts]}: what stands there instead (replace), or what the clip shows; only these clips"
    add("--prompts", metavar="FILE", default=None, help=words)
    add("--cameras", nargs="+", metavar="MOVE", default=None, help="paths of each clip (default: one of six in turn)")
    add("--frames", type=int, default=None, help="frames of each clip (default: as many as the model was made for)")
    add("--depth-model", metavar="MODEL", default=None, help="depth of the clips (default: what comes with the model)")
    accept(added)
    add("--ray", action="store_true", default=False, help="on a Ray cluster ($RAY_ADDRESS, else this machine)")
    add("--scenes", type=int, default=12, help="number of unseen scenes (default 12)")
    add("--first-seed", type=int, default=0, help="seed of the first scene (default 0)")
    add("--steps", type=int, default=None, help="sampling steps (default: the model's)")
    words = "one JSON line a scene or clip and method, as they are done; goes on from there"
    add("--output", default=None, metavar="FILE", help=words)
    added.add_argument("--figure", default=None, metavar="FILE", help="also write a strip of pictures, .png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
