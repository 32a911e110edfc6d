"""The command line, over the app's functions: `python -m pipeline COMMAND`, see --help.

Progress goes to a bar on a terminal, else as plain lines to standard output; errors are one line on standard error.
Exit codes: 0 done, 1 (doctor) nothing can render here, 2 something the user gave cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import InputError, result_of
from pipeline.cli.progress import Progress


def recapture(options: argparse.Namespace) -> None:
    """Film a clip anew along a camera path."""
    places = _checked_places(options)
    _render_to(_request(options), *places, options.keep)


def replace_object(options: argparse.Namespace) -> None:
    """Put something else in the place of an object that a mask shows, or nothing; along a new camera path, if asked."""
    places = _checked_places(options)
    _render_to(_request(options), *places, options.keep)


def render_file(options: argparse.Namespace) -> None:
    """Render a request as written in a JSON file."""
    from pipeline.render.request import RenderRequest

    path = Path(options.request)
    try:
        request = RenderRequest.from_json(path.read_text(encoding="utf-8-sig"), _accepted(options))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the request {path}: {getattr(error, 'strerror', None) or error}.") from error

    def located(name: str) -> str:
        beside = path.parent / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    files = {name: getattr(request, name) for name in ("clip", "depth", "mask", "first_frame")}
    request = request.changed(**{name: located(path) for name, path in files.items() if path})
    _render_to(request, *_checked_places(options), options.keep)


def warp(options: argparse.Namespace) -> None:
    """Stop at the measurement: the clip seen from the new camera, its holes as a grey checkerboard."""
    from pipeline.media.files import make_writable, writing
    from pipeline.media.video import Clip, write_video
    from pipeline.render.analysis import analyse, hide
    from pipeline.render.events import StageEvent
    from pipeline.render.report import keep_measurement, silence_of, sound_of
    from pipeline.render.view import check_cameras, look, show_holes

    output, _ = _checked_places(options)
    request = _request(options)
    keep = Path(options.keep) if options.keep else None
    if keep:
        make_writable(keep)
    with Progress() as progress:
        show = lambda event: isinstance(event, StageEvent) and progress.show(event.message, 5 * event.fraction)
        analysis = result_of(analyse(request, filmed_by=partial(check_cameras, request)), show)
        analysis = result_of(hide(analysis, request), show)
        view = result_of(look(analysis, request), show)
        progress.show("Writing the video", 0.8)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".recapture-") as folder, writing(output):
            video = Path(folder) / "warp.mp4"
            shown = Clip(show_holes(view.known.measurement), view.analysis.fps)
            write_video(video, shown, **sound_of(request, analysis))
            os.replace(video, output)
        if keep:
            with writing(keep):
                keep_measurement(keep, view)
        progress.show("Done", 1.0)
    elsewhere = view.elsewhere
    words = f" {elsewhere:.1%} is seen by other frames only, and was taken from there." if elsewhere else ""
    _say(
        [
            *view.analysis.notes,
            *silence_of(request, analysis),
            f"{view.unknown.mean():.1%} of the picture is unknown.{words}",
        ]
    )
    print(f"Wrote {output}")


def mask_of(options: argparse.Namespace) -> None:
    """Write the mask of an object that is clicked on in a frame, as a picture for --mask of replace."""
    import cv2

    from pipeline.masks.click import select
    from pipeline.masks.shape import Click
    from pipeline.media.files import make_writable, writing
    from pipeline.media.video import probe, read_video

    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise InputError(f"The output {output} must end in .png.")
    if options.frame < 0:
        raise InputError("--frame must be 0 or more.")
    make_writable(output.parent)
    info, frame = probe(options.clip), read_video(options.clip, start=options.frame, frames=1).frames[0]
    height, width = frame.shape[1:]  # that of a large clip is smaller than its pictures
    clicks: list[Click] = vars(options).get("clicks", [])
    if beside := [c for c in clicks if c.row >= info.height or c.column >= info.width]:
        at = f"{beside[0].column},{beside[0].row}"
        raise InputError(f"The click {at} is not on the picture, which is {info.width}x{info.height} pixels.")
    moved = [Click(c.row * height // info.height, c.column * width // info.width, c.positive) for c in clicks]
    mask = select(frame, moved).numpy()
    whole = cv2.resize(mask.astype("uint8") * 255, (info.width, info.height), interpolation=cv2.INTER_LINEAR)
    with writing(output):
        found, data = cv2.imencode(".png", whole)
        assert found
        output.write_bytes(data.tobytes())
    print(
        f"Wrote {output}: {mask.mean():.1%} of frame {options.frame}. Use it as --mask {output} --frame {options.frame}"
    )


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
    if options.real is not None:
        if options.task or options.clips or options.methods or options.prompts or options.ray or figure:
            raise InputError("--real goes with --backbone, --cameras, --frames, --depth-model, --steps and --output.")
        from pipeline.evaluation import real

        shown = dict(steps=options.steps, output=output, progress=say)
        shown |= dict(cameras=options.cameras, frames=options.frames, depth_model=options.depth_model)
        print(real.evaluate(options.real, options.backbone, **shown))
        return
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
    from pipeline.models import hub, table

    if options.download is None:
        print(hub.table())
        return
    spec = table.MODELS.get(options.download)
    if spec is None:
        raise InputError(f"Unknown model {options.download!r}: give one of {', '.join(table.MODELS)}.")
    for folder in hub.download(spec, _accepted(options)):
        print(folder)


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine has, what will run on it and how fast, and what is missing. Downloads nothing."""
    from pipeline.cli.doctor import run

    return run(as_json=options.json)


def _render_to(request: Any, output: Path, report: Path | None, keep: str | None) -> None:
    from pipeline.media.files import write_report, writing
    from pipeline.render.events import DoneEvent, FailedEvent, StageEvent, StepEvent
    from pipeline.render.run import render

    result, stage = None, ""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".recapture-") as folder, Progress() as progress:
        for event in render(request, folder, keep=keep):
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
            write_report(report, result.report.to_dict())
    raw = result.report.measurement.raw
    _say(result.report.notes)
    seconds = result.report.seconds["total"]
    decibels = "infinite" if raw.psnr is None else f"{raw.psnr:.1f} dB"
    print(f"Wrote {output} in {seconds:.1f} s; raw measurement PSNR {decibels}, SSIM {raw.ssim:.3f}")


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(note)


def _checked_places(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where the result and, if asked for, its report are to be written."""
    from pipeline.media.files import make_writable

    output = Path(options.output)
    if output.suffix.lower() != ".mp4":
        raise InputError(f"The output {output} must end in .mp4.")
    if output.is_dir():
        raise InputError(f"The output {output} is a folder; give the path of a file.")
    clip = getattr(options, "clip", None)
    if clip and output.exists() and Path(clip).exists() and output.samefile(clip):
        raise InputError(f"The output {output} is the clip itself; give another path.")
    make_writable(output.parent)
    report = Path(options.report) if vars(options).get("report") else None
    if report:
        make_writable(report.parent)
        if report.is_dir():
            raise InputError(f"The report {report} is a folder; give the path of a file.")
    return output, report


def _request(options: argparse.Namespace) -> Any:
    from pipeline.models import hub
    from pipeline.render.request import DEFAULTS, RenderRequest

    # only what was given on the command line is there (argparse.SUPPRESS): the defaults stand in one place
    given = {name: value for name, value in vars(options).items() if name in DEFAULTS}
    if "backbone" not in given:
        given["backbone"], why = hub.default_backbone()
        print(why)
    given["accepted"] = _accepted(options)
    unmoved = {name: value for name, value in given.items() if name not in ("camera", "amount")}
    if {"camera_from_clip", "stabilise", "look_at"} & set(vars(options)):
        _check_before(RenderRequest.of(**unmoved, camera="still"), vars(options).get("look_at"))
    move = _move(options, given["backbone"])
    request = RenderRequest.of(**(unmoved | {"move": move} if move else given))
    if "look_at" in vars(options):
        request = _looking(request, options)
    if "stabilise" not in vars(options):
        return request
    from pipeline.render.filmed import stabilised

    if clash := {"speed", "time", "frozen"} & set(vars(options)):
        raise InputError(f"--stabilise follows the clip as it was filmed: leave out --{min(clash)}.")
    return request.changed(move=stabilised(_analysed(request), options.stabilise))  # its depth is kept for the render


def _check_before(request: Any, look_at: str | None) -> None:
    """Raises `InputError` for what need not wait until a clip is analysed for the camera path alone."""
    from pipeline.masks.files import check_mask_file
    from pipeline.media.video import probe
    from pipeline.render.request import check_asked

    check_asked(request)
    probe(request.clip)
    if look_at is not None:
        check_mask_file(look_at)


def _looking(request: Any, options: argparse.Namespace) -> Any:
    """The request whose camera looks at the object of --look-at."""
    from pipeline.masks.follow import follow
    from pipeline.render.analysis import read_mask
    from pipeline.render.filmed import looking_at
    from pipeline.render.view import move_of

    if "stabilise" in vars(options):
        raise InputError("--stabilise looks where the clip looked: leave out --look-at.")
    analysis = _analysed(request)
    given = read_mask(options.look_at, analysis, start=request.start, stride=request.stride)
    seen = result_of(follow(analysis.full.frames, given))
    return request.changed(move=looking_at(move_of(request, analysis), analysis, seen))


def _analysed(request: Any) -> Any:
    """The analysis of a request's clip, with a bar."""
    from pipeline.render.analysis import analyse
    from pipeline.render.events import StageEvent

    with Progress() as progress:
        show = lambda event: isinstance(event, StageEvent) and progress.show(event.message, event.fraction)
        return result_of(analyse(request), show)


def _accepted(options: argparse.Namespace) -> tuple[str, ...]:
    """Names of models whose terms the user accepts: of --accept, else of the environment."""
    names = vars(options).get("accepted", os.environ.get("RECAPTURE_ACCEPT", "")).split(",")
    return tuple(name.strip() for name in names if name.strip())


def _clip_move(options: argparse.Namespace, backbone: str) -> Any:
    """The move of the clip that --camera-from-clip names."""
    from pipeline.render.analysis import analyse
    from pipeline.render.events import StageEvent
    from pipeline.render.filmed import move_of_clip
    from pipeline.render.request import RenderRequest

    asked = {name: value for name, value in vars(options).items() if name in ("frames", "depth_model", "memory")}
    if options.run is convert:  # there the frames are those of the file
        asked.pop("frames", None)
    request = RenderRequest.of(
        options.camera_from_clip, **asked, backbone=backbone, accepted=_accepted(options), camera="still"
    )
    with Progress() as progress:
        show = lambda event: isinstance(event, StageEvent) and progress.show(event.message, event.fraction)
        return result_of(move_of_clip(request, analyse(request)), show)


def _move(options: argparse.Namespace, backbone: str) -> Any:
    """The move in the file or of the clip that is named, or a named one that is to go otherwise; None for a named one
    as is. backbone: with whose depth that clip is looked at."""
    from pipeline.camera.files import read_move
    from pipeline.camera.geometry import DEFAULT_FOV
    from pipeline.camera.moves import preset_move, scaled, standing_at, timing_of

    given = vars(options)
    if "look_at" in given and options.run is convert:
        raise InputError("--look-at is for a clip: recapture it, or replace something in it.")
    if "stabilise" in given:
        if options.run is convert:
            raise InputError("--stabilise is for a clip: recapture it, or replace something in it.")
        if given.get("camera", "still") != "still" or {"camera_from_clip", "amount", "camera_scale"} & set(given):
            raise InputError("--stabilise is a camera path of its own: leave out --camera and what belongs to it.")
        return None
    camera, scale = given.get("camera", "orbit-left"), given.get("camera_scale", 1.0)
    its_own = {"speed": given["speed"]} if "speed" in given else {}
    if "time" in given and "frozen" in given:
        raise InputError("--frozen is a --time that stands still: give one of the two.")
    if "time" in given:
        its_own["timing"] = timing_of(given["time"])
    if "frozen" in given:
        its_own["timing"] = standing_at(given["frozen"])
    if "camera_from_clip" in given:
        if {"amount", "camera_name", "camera_unit"} & set(given):
            raise InputError("--camera-from-clip says how far the camera goes: leave out what is for --camera.")
        return replace(scaled(_clip_move(options, backbone), scale), **its_own)
    if Path(camera).suffix or Path(camera).exists():
        if "amount" in given:
            raise InputError("--amount is for a named camera move; the path in a file says how far it goes.")
        move = read_move(camera, name=given.get("camera_name"), unit=given.get("camera_unit"))
        return replace(scaled(move, scale), **its_own)
    if {"camera_name", "camera_unit", "camera_scale"} & set(given):
        raise InputError("--camera-name, --camera-unit and --camera-scale are for a camera path from elsewhere.")
    return (
        replace(preset_move(camera, given.get("amount"), given.get("fov", DEFAULT_FOV)), **its_own) if its_own else None
    )


def convert(options: argparse.Namespace) -> None:
    """Write a named camera move, or one from a file, in a format of your choice."""
    from pipeline.camera.files import FORMATS, write_move
    from pipeline.camera.geometry import DEFAULT_FOV
    from pipeline.camera.moves import preset_move
    from pipeline.media.files import make_writable, writing

    output = Path(options.output)
    fov = vars(options).get("fov", DEFAULT_FOV)
    move = _move(options, "nano") or preset_move(options.camera, vars(options).get("amount"), fov)
    content = write_move(options.format, move, frames=options.frames, own_fov=fov, size=options.size)
    if output.suffix.lower() != FORMATS[options.format][1]:
        raise InputError(
            f"A camera path as {options.format} ends in {FORMATS[options.format][1]}, unlike {output.name}."
        )
    make_writable(output.parent)
    with writing(output):
        output.write_bytes(content)
    print(f"Wrote {output}")
