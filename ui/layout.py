"""The page: its parts, what they ask of the pipeline, and how a job's progress comes back to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from pipeline import InputError, relayed
from pipeline.camera.files import FORMATS, read_moves, write_move
from pipeline.camera.moves import MOVES, fov_of
from pipeline.media.video import size_of, to_uint8
from pipeline.models import table
from pipeline.models.caption import Caption, caption
from pipeline.prior.settings import vocabulary_of
from pipeline.render.analysis import Analysis, analyse
from pipeline.render.events import RenderResult
from pipeline.render.request import DEFAULTS, RenderRequest
from pipeline.render.view import measure, move_of, path_warnings, show_holes, wants_other_frames
from pipeline.render.view import preview as preview_frame
from ui import mask_editor, media, widgets
from ui.analyses import Analyse, Analyses
from ui.camera_tab import editor_scene, editor_value
from ui.controls import (
    BEFORE_RENDER,
    CHANGES,
    EMPTY_CLOUD,
    _advanced,
    _number,
    amount_slider,
    depth_choices,
    frames_of,
    limits,
    request_from,
    values_from,
)
from ui.examples import find_examples
from ui.jobs import JobStore
from ui.result import figures_html, public_report
from ui.terms import ask_terms, chosen_model, terms_classes, terms_html
from ui.theme import CSS, theme
from ui.words import analysis_words, preview_words, progress_words, share_words

NAME = "Recapture"
Describe = Callable[[Tensor], Caption]
WAITS_FOR_CLIP = "Starts by itself once there is a clip."
EMPTY_DEPTH = "Depth of the clip"
EMPTY_WARP = "Your clip, seen from the new camera path, appears here."
EMPTY_PREVIEW = "While a render runs, you see it form here."


def build(
    backbone: str,
    store: JobStore,
    *,
    examples: Path,
    analyse: Analyse = analyse,
    describe: Describe = caption,
    depth_model: str | None = None,
) -> gr.Blocks:
    """The page, for one backbone. `launch_options` holds what else `launch` needs.

    depth_model: what is chosen at first, a name of the table, a folder or a hub id; one that is not in the
    table joins the choices. Visitors choose among these only: what a server fetches and reads is its host's to say.
    """
    analyses = Analyses(analyse)
    if depth_model and (spec := table.find(depth_model)):
        depth_model = spec.name
    found = find_examples(examples)
    gr.set_static_paths([widgets.plotly_script()])

    # What each control is called in a RenderRequest; the handlers get their values in this order.
    controls: dict[str, Any] = {}

    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 12 * 3600)) as page:
        job_id = gr.BrowserState("", storage_key="recapture-job", secret="recapture-browser-state")
        made = gr.State("")  # the job that Render has just made
        shown = gr.State(None)  # what the analysis on the page was made of
        gr.HTML(
            f'<header class="rc-header"><h1>{NAME}</h1>'
            "<p>Film a clip you already have once more, along a new camera path, or with an object replaced.</p>"
            "</header>"
        )

        with gr.Row(elem_classes="rc-row"):
            with gr.Column(elem_classes="rc-card", min_width=320):
                widgets.heading(1, "Clip", f"Up to {limits().megabytes} MB; a few seconds are used, from its start")
                clip = controls["clip"] = gr.Video(
                    label="Your clip", show_label=False, sources=["upload"], height=300, buttons=[], elem_id="clip",
                    elem_classes="rc-clip",
                )  # fmt: skip
                strip = None
                if found:
                    pictures = [
                        (title, media.data_url(media.poster(request.clip), "image/jpeg")) for title, request, _ in found
                    ]
                    strip = widgets.example_strip(pictures, elem_id="examples")
            with gr.Column(elem_classes="rc-card", min_width=320):
                widgets.heading(2, "Analyse", "How far everything is, estimated from the clip")
                depth = widgets.loop_view("Depth", EMPTY_DEPTH, elem_id="depth", elem_classes=["rc-depth", "rc-grow"])
                with gr.Row(elem_classes="rc-depth-row"):
                    analysis_status = gr.HTML(widgets.status_html(WAITS_FOR_CLIP), elem_id="analysis-status")
                    analyse_button = gr.Button(
                        "Analyse again", size="sm", elem_id="analyse", interactive=False, min_width=120, scale=0
                    )
                analysis_notes = gr.HTML("", elem_id="analysis-notes")
                depth_choice = controls["depth_model"] = gr.Dropdown(
                    depth_choices(depth_model), value=depth_model or "", label="Depth from", elem_id="depth-model"
                )
                accepted = controls["accepted"] = gr.State(())
                depth_terms = ask_terms(depth_choice, "depth")

        with gr.Column(elem_classes="rc-card"):
            widgets.heading(3, "What to change", "A new camera path, another object, or both")
            with gr.Tabs(elem_classes="rc-tabs") as tabs:
                with gr.Tab("Camera path", id="camera", render_children=True), gr.Row(elem_classes="rc-camera"):
                    with gr.Column(min_width=300, scale=2):
                        camera = controls["camera"] = gr.Dropdown(
                            [(preset.label, name) for name, preset in MOVES.items()], value=DEFAULTS["camera"],
                            label="Start from", elem_id="camera",
                        )  # fmt: skip
                        amount = controls["amount"] = gr.Slider(
                            **amount_slider(DEFAULTS["camera"]), step=1, buttons=[], elem_id="amount"
                        )
                        warp = widgets.loop_view(
                            "Your clip from the new path", EMPTY_WARP, elem_id="warp", elem_classes=["rc-warp"]
                        )
                        warp_status = gr.HTML(widgets.status_html(""), elem_id="warp-status")
                        with gr.Accordion(
                            "Open a camera file", open=False, elem_classes="rc-advanced", elem_id="open-path"
                        ):
                            formats = "; ".join(label for label, _ in FORMATS.values())
                            gr.HTML(f'<p class="rc-caption">{escape(formats)}.</p>')
                            camera_file = gr.File(
                                label="Camera path", file_types=[".json", ".txt", ".npz"], type="filepath", height=120,
                                elem_id="camera-file",
                            )  # fmt: skip
                            with gr.Row(elem_classes="rc-fields"):
                                camera_name = gr.Dropdown(
                                    [], label="Camera in the file", min_width=130, interactive=True
                                )
                                camera_unit = gr.Textbox(
                                    label="Units to the subject",
                                    placeholder="1; ReCamMaster 5",
                                    max_length=20,
                                    min_width=130,
                                )
                    with gr.Column(min_width=320, scale=3):
                        # the path lives in the page, so that whatever is asked for next has the latest
                        editor = controls["move"] = widgets.camera_editor(
                            EMPTY_CLOUD, elem_id="editor", elem_classes="rc-editor"
                        )
                with gr.Tab("Replace an object", id="object", render_children=True, elem_id="replace-tab"):
                    tab = mask_editor.replace_tab(DEFAULTS["grow"])
                    controls |= tab.controls

        with gr.Column(elem_classes="rc-card"):
            widgets.heading(4, "Render", "The model fills what your clip did not see")
            with gr.Row(elem_classes="rc-camera"):
                with gr.Column(min_width=320, scale=3):
                    controls["change"] = gr.Radio(
                        [(words, name) for name, words in CHANGES.items()], value="camera", label="Change",
                        elem_id="change",
                    )  # fmt: skip
                    with gr.Row(elem_classes="rc-prompt"):
                        controls["prompt"] = gr.Textbox(
                            label="Prompt (optional)", placeholder="What is in the scene", lines=1,
                            max_lines=4, max_length=2000, elem_id="prompt", min_width=160,
                            info=vocabulary_of(backbone) or None,
                        )  # fmt: skip
                        suggest_button = gr.Button("Suggest", scale=0, min_width=96, elem_id="suggest")
                    prompt_status = gr.HTML("", elem_id="prompt-status", elem_classes="rc-optional")
                    with gr.Accordion("Advanced settings", open=False, elem_classes="rc-advanced", elem_id="advanced"):
                        advanced, other_terms = _advanced()
                        controls |= advanced
                    with gr.Row(elem_classes=["rc-buttons", "rc-actions"]):
                        start_button = gr.Button("Render", variant="primary", elem_id="render", scale=3)
                        stop_button = gr.Button("Stop", elem_id="stop", interactive=False, scale=1)
                    progress = gr.HTML(widgets.status_html(""), elem_id="progress")
                with gr.Column(min_width=300, scale=2):
                    preview = widgets.loop_view(
                        "The render, forming", EMPTY_PREVIEW, elem_id="preview", elem_classes=["rc-preview"]
                    )
                    preview_note = gr.HTML("", elem_id="preview-note", elem_classes="rc-optional")

        # Put away by its class, not by visible=False: a part that is not mounted loses its template with an update.
        with gr.Column(elem_classes=["rc-card", "rc-away"], elem_id="result") as result_card:
            widgets.heading(None, "Result", "Your clip and the new one, playing in step")
            compare = widgets.compare_view(elem_id="compare")
            with gr.Row(elem_classes="rc-buttons"):
                video_file = gr.DownloadButton("Download the video", variant="primary", elem_id="download-video")
                report_file = gr.DownloadButton("Download the report (JSON)", elem_id="download-report")
            figures = gr.HTML("", elem_id="figures")

        inputs = list(controls.values())

        def request_of(values: tuple) -> RenderRequest:
            return request_from(dict(zip(controls, values, strict=True)), backbone)

        def camera_request(values: tuple) -> RenderRequest:
            """The request without what it replaces: all that an analysis needs."""
            given = dict(zip(controls, values, strict=True)) | {"change": "camera"}
            return request_from(given | BEFORE_RENDER, backbone)

        def warp_request(values: tuple) -> RenderRequest:
            """What the warp shows: the camera path, and what is replaced where the render will have both."""
            given = dict(zip(controls, values, strict=True))
            request, mask = camera_request(values), given["mask"]
            both = given["change"] == "both" and mask is not None and mask["of"] == frames_of(request)
            return request_from(given | BEFORE_RENDER, backbone) if both else request

        def has_clip(values: tuple) -> bool:
            return bool(dict(zip(controls, values, strict=True))["clip"])

        def set_controls(request: RenderRequest) -> list[Any]:
            values = values_from(request)
            values["amount"] = gr.Slider(**amount_slider(request.camera, values["amount"]))
            values["accepted"] = request.accepted or gr.skip()  # an example takes back nothing
            return [values[name] for name in controls]

        # --- analysis and warp ---------------------------------------------------------------------------------

        def nothing(values: tuple) -> dict[Any, Any]:
            """The page without an analysis; the visitor's own path stays."""
            kept = dict(zip(controls, values, strict=True))["move"] or {}
            return {
                shown: None,
                analysis_notes: "",
                editor: {"empty": EMPTY_CLOUD} | {k: kept[k] for k in ("move", "own", "serial") if kept.get("own")},
                depth: {"empty": EMPTY_DEPTH},
                warp: {"empty": EMPTY_WARP},
                warp_status: widgets.status_html(""),
            }

        def show_analysis(*values):
            """Depth and point cloud of the chosen clip."""
            button_on, button_off = gr.Button(interactive=True), gr.Button(interactive=False)
            if not has_clip(values):
                yield nothing(values) | {
                    analysis_status: widgets.status_html(WAITS_FOR_CLIP),
                    analyse_button: button_off,
                }
                return
            yield {analysis_status: widgets.status_html("Reading the clip …", "busy"), analyse_button: button_off}
            try:
                request = camera_request(values)
                say = lambda event: {analysis_status: widgets.status_html(f"{event.message} …", "busy")}
                found = yield from relayed(analyses.find(request), say)
                yield {analysis_status: widgets.status_html("Drawing depth and point cloud …", "busy")}
                folder = store.new_folder()
                standing = editor_scene(found, folder)
                z = found.depth.z.float().cpu().numpy()
                (folder / "depth.webp").write_bytes(media.loop_webp(media.depth_frames(z), found.fps))
                yield {
                    shown: analyses.key(request),
                    analysis_status: widgets.status_html(analysis_words(found), "done"),
                    analysis_notes: f'<p class="rc-caption">{escape(" ".join(found.notes))}</p>',
                    analyse_button: button_on,
                    editor: editor_value(standing, move_of(request, found), own=request.move is not None),
                    depth: {"url": widgets.file_url(folder / "depth.webp"), "alt": "Depth: near is bright"},
                }
            except Exception as error:
                words = widgets.status_html(widgets.failure_words(error), "error")
                yield nothing(values) | {analysis_status: words, analyse_button: button_on}

        def show_terms(choice, names):
            """The terms of the chosen model, if it has any."""
            model = chosen_model(choice)
            return terms_html(model), gr.Checkbox(value=model in names), gr.Column(elem_classes=terms_classes(model))

        def accept(ticked, choice, names):
            """The names of all models whose terms this visitor has accepted."""
            model = chosen_model(choice)
            return tuple(name for name in names if name != model) + ((model,) if ticked else ())

        def show_if_new(known, *values):
            """As `show_analysis`, unless a field was left as it was."""
            try:
                wanted = analyses.key(camera_request(values)) if has_clip(values) else None
            except InputError as error:  # half typed, perhaps: what stands on the page stays
                yield {analysis_status: widgets.status_html(widgets.failure_words(error), "error")}
                return
            if wanted is None or wanted == known:
                standing = analyses.get(camera_request(values)) if wanted else None
                words = widgets.status_html(analysis_words(standing), "done") if standing else gr.skip()
                yield {analysis_status: words}
            else:
                yield from show_analysis(*values)

        def show_warp(known, *values):
            """The clip along the chosen path; uses the analysis that is at hand."""
            if known is None:  # no clip, or its analysis failed and says so beside it
                yield {warp_status: widgets.status_html("")}
                return
            try:
                request = warp_request(values)
            except InputError:  # a setting is wrong, and its message stands already
                yield {warp_status: gr.skip()}
                return
            try:
                say = lambda event: {warp_status: widgets.status_html(f"{event.message} …", "busy")}
                analysis = yield from relayed(analyses.find(request), say)
                analysis = analyses.hidden(request, analysis)
                measurement = measure(analysis, request)
                unknown = 1 - measurement.mask.float().mean(dim=(1, 2, 3))
                frames = to_uint8(show_holes(measurement))
                file = store.new_folder() / "warp.webp"
                file.write_bytes(media.loop_webp(frames, analysis.fps))
                warnings = "".join(
                    widgets.status_html(words, "warning") for words in path_warnings(analysis, request, 1 - unknown)
                )
                words = widgets.status_html(
                    share_words(unknown.mean().item(), wants_other_frames(analysis, request, measurement))
                )
                yield {
                    warp: {"url": widgets.file_url(file), "alt": "Your clip from the new path; unknown is checkered"},
                    warp_status: words + widgets.unknown_strip(unknown.tolist()) + warnings,
                }
            except Exception as error:
                words = widgets.status_html(widgets.failure_words(error), "error")
                yield {warp_status: words, warp: {"empty": EMPTY_WARP}}

        def show_named(known, *values):
            """The path of the named move, in place of the visitor's own."""
            given = dict(zip(controls, values, strict=True))
            standing = given["move"] or {"empty": EMPTY_CLOUD}
            given["move"] = editor_value(standing, None, own=False)
            try:
                request = camera_request(tuple(given.values()))
                analysis = analyses.get(request)
                if known is not None and analysis is not None:
                    given["move"] = editor_value(standing, move_of(request, analysis), own=False)
            except InputError:  # no clip yet, or a setting is wrong, and its message stands already
                pass
            yield {editor: given["move"]}
            yield from show_warp(known, *given.values())

        def show_edited(event: gr.EventData, known, *values):
            """The visitor's own path: one frame of the warp at once, then all of it."""
            try:
                request = warp_request(values)
                analysis = analyses.get(request)
                if known is not None and analysis is not None:
                    picture = preview_frame(analyses.hidden(request, analysis), request, float(event.at))
                    yield {warp: {"url": media.picture_url(picture), "alt": "One frame of your clip from the new path"}}
            except (InputError, TypeError, ValueError) as error:
                yield {warp_status: widgets.status_html(widgets.failure_words(error), "error")}
                return
            yield from show_warp(known, *values)

        def save_path(event: gr.EventData, known, *values):
            """The camera path as a file that the page downloads."""
            try:
                request = camera_request(values)
                analysis = analyses.get(request)
                standing = dict(zip(controls, values, strict=True))["move"]
                if known is None or standing is None or analysis is None:
                    raise InputError("Analyse the clip again first: its frames decide how many cameras are written.")
                name = str(event.format)
                content = write_move(
                    name, move_of(request, analysis), frames=len(analysis.clip.frames),
                    own_fov=fov_of(analysis.source, size_of(analysis.clip.frames)),
                    size=size_of(analysis.full.frames),
                )  # fmt: skip
                file = store.new_folder() / f"camera-path-{name}{FORMATS[name][1]}"
                file.write_bytes(content)
                return standing | {"download": widgets.file_url(file)}, gr.skip()
            except Exception as error:
                return gr.skip(), widgets.status_html(widgets.failure_words(error), "error")

        def open_path(file, name, unit, standing):
            """The move in a file: the names in it, and the path for the editor."""
            if not file:
                return {camera_name: gr.Dropdown([], value=None)}
            try:
                moves = read_moves(file, unit=_number(unit, "Units to the subject", float) if unit else None)
                name = name if name in moves else next(iter(moves))
                return {
                    editor: editor_value(standing or {"empty": EMPTY_CLOUD}, moves[name], own=True),
                    camera_name: gr.Dropdown(list(moves), value=name),
                }
            except Exception as error:
                return {warp_status: widgets.status_html(widgets.failure_words(error), "error")}

        analysis_outputs = [
            shown, analysis_status, analysis_notes, analyse_button, editor, depth, warp, warp_status,
        ]  # fmt: skip
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}

        def then_warp(event):
            return event.then(show_warp, [shown, *inputs], [warp, warp_status], **quiet)

        def analysis_at_hand(values: tuple) -> Analysis:
            analysis = analyses.get(camera_request(values))
            if analysis is None:
                raise InputError("The clip is not analysed yet; wait until it is.")
            return analysis

        def suggest(*values):
            """The clip's middle frame in words, as the prompt."""
            yield {prompt_status: widgets.status_html("Describing the clip …", "busy")}
            try:
                frames = analysis_at_hand(values).full.frames
                found = describe(frames[len(frames) // 2])
                words = f"Suggested by {found.by}, from the clip's middle frame. Change it as you like."
                yield {controls["prompt"]: found.words, prompt_status: widgets.status_html(words)}
            except Exception as error:
                yield {prompt_status: widgets.status_html(widgets.failure_words(error), "error")}

        suggest_button.click(suggest, inputs, [controls["prompt"], prompt_status], **quiet, concurrency_limit=1)

        start_painting = mask_editor.connect(
            tab, controls, analysis_at_hand, lambda values: frames_of(camera_request(values)), store.new_folder
        )

        def then_all(event):
            """What follows an analysis: the warp, and the picture to paint on."""
            return start_painting(then_warp(event))

        for trigger in (clip.upload, clip.clear, analyse_button.click):
            then_all(trigger(show_analysis, inputs, analysis_outputs, **quiet))
        # what was said of one clip says nothing of the next
        said = {request.guidance.prompt for _, request, _ in found}
        of_clip = [controls[name] for name in ("prompt", "mask", "change")]
        for trigger in (clip.upload, clip.clear):
            trigger(lambda words: ("" if words in said else gr.skip(), None, "camera"), of_clip[:1], of_clip, **quiet)
        settings = [controls[name] for name in ("fov", "frames", "start", "stride", "height", "width")]
        changes = [event for field in settings for event in (field.submit, field.blur)]
        changes += [controls["depth"].upload, controls["depth"].clear, controls["depth_kind"].input, depth_choice.input]
        then_all(gr.on(changes, show_if_new, [shown, *inputs], analysis_outputs, trigger_mode="always_last", **quiet))
        for terms in (depth_terms, *other_terms):
            choice, told = terms.choice, [terms.words, terms.box, terms.column]
            choice.change(show_terms, [choice, accepted], told, **quiet)
            ticked = terms.box.input(accept, [terms.box, choice, accepted], accepted, **quiet)
            if terms is depth_terms:
                then_all(ticked.then(show_if_new, [shown, *inputs], analysis_outputs, **quiet))

        # While a warp is computed only the latest of the changes that come meanwhile is kept.
        latest: Any = quiet | {"trigger_mode": "always_last"}
        named = ([shown, *inputs], [editor, warp, warp_status])
        camera.input(lambda name: gr.Slider(**amount_slider(name)), camera, amount, **quiet).then(
            show_named, *named, **quiet
        )
        amount.input(show_named, *named, **latest)
        editor.reset(show_named, *named, **quiet)
        controls["change"].input(show_warp, [shown, *inputs], [warp, warp_status], **latest)
        editor.edit(show_edited, [shown, *inputs], [warp, warp_status], **latest)
        editor.save(save_path, [shown, *inputs], [editor, warp_status], **quiet)
        opened = [camera_file, camera_name, camera_unit, editor], [editor, camera_name, warp_status]
        for trigger in (camera_file.upload, camera_name.input, camera_unit.submit):
            then_warp(trigger(open_path, *opened, **quiet))

        if strip is not None:

            def pick(event: gr.EventData):
                request, described = found[int(event.index)][1:]
                own = dict.fromkeys(controls, gr.skip()) | {"clip": request.clip, "mask": None, "change": "camera"}
                tab = gr.Tabs(selected="object" if request.mask else "camera")
                return [*(set_controls(request) if described else own.values()), tab]

            picked = strip.pick(pick, None, [*inputs, tabs], **quiet)
            then_all(picked.then(show_analysis, inputs, analysis_outputs, **quiet))

        # --- renders as jobs -----------------------------------------------------------------------------------

        def start(visit: gr.Request, *values):
            """The job; it is followed only if there is one: the words of a refusal stay."""
            try:
                made = store.submit(request_of(values), str(visit.session_hash or ""))
                return made, made, widgets.status_html("Starting …", "busy", 0.0)
            except Exception as error:
                return gr.skip(), "", widgets.status_html(widgets.failure_words(error), "error")

        def follow(wanted):
            """Bring the page to where the job is, until it ends. A closed page ends this, never the job."""
            last = None
            # A generator that yields nothing would empty all of its outputs.
            if not wanted:
                yield {start_button: gr.Button(interactive=True)}
                return
            yield {start_button: gr.Button(interactive=True), stop_button: gr.Button(interactive=False)}
            for view in store.follow(wanted):
                update: dict[Any, Any] = {
                    start_button: gr.Button(interactive=not view.active),
                    stop_button: gr.Button(interactive=view.active),
                }
                if view.active:
                    update[progress] = widgets.status_html(progress_words(view), "busy", view.fraction)
                    if last is None:
                        update[preview] = {"empty": "The first preview comes with the first step."}
                        update[result_card] = gr.Column(elem_classes=["rc-card", "rc-away"])
                else:
                    kind = {"done": "done", "failed": "error", "interrupted": "warning"}.get(view.state, "")
                    update[progress] = widgets.status_html(widgets.without_paths(view.message), kind)
                if view.preview is not None and (last is None or view.step != last.step):
                    update[preview_note] = preview_words(view.preview_by)
                    update[preview] = {"url": media.preview_url(view.preview), "alt": f"Preview of step {view.step}"}
                if view.result is not None:
                    update |= finished(view.result, watched=last is not None)
                last = view
                yield update

        def finished(result: RenderResult, watched: bool) -> dict[Any, Any]:
            height, width = result.report.sizes.result
            # downloads are told apart by the clip's name; the report is written last, so that both stand with it
            public = public_report(result)
            given = Path(public.request.clip).stem
            video, report = (result.folder / f"{given}-recaptured{end}" for end in (".mp4", ".json"))
            if not report.exists():
                widgets.same_file(result.video, video)
                report.write_text(json.dumps(public.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
            return {
                result_card: gr.Column(elem_classes=["rc-card"]),
                compare: {
                    "source": widgets.file_url(result.source),
                    "result": widgets.file_url(result.video),
                    "width": width,
                    "height": height,
                    "scroll": watched,
                },
                video_file: gr.DownloadButton(value=str(video)),
                report_file: gr.DownloadButton(value=str(report)),
                figures: figures_html(public),
            }

        job_outputs = [
            start_button,
            stop_button,
            progress,
            preview,
            preview_note,
            result_card,
            compare,
            video_file,
            report_file,
            figures,
        ]

        started = start_button.click(start, inputs, [job_id, made, progress], **quiet)
        started.then(follow, made, job_outputs, **quiet)
        stop_button.click(store.cancel, job_id, None, **quiet)

        # --- coming back ---------------------------------------------------------------------------------------

        def restore(wanted, chosen):
            """The clip and the settings of the visitor's own last job, unless a clip was chosen meanwhile."""
            job = store.get(wanted)
            return [gr.skip()] * len(controls) if job is None or chosen else set_controls(job.request)

        def put_away(wanted):
            """The result of another clip goes; a render that is still running stays."""
            job = store.get(wanted)
            if job is not None and job.view.active:
                return [gr.skip()] * 4
            away = gr.Column(elem_classes=["rc-card", "rc-away"])
            return away, widgets.status_html(""), {"empty": EMPTY_PREVIEW}, ""

        page.load(follow, job_id, job_outputs, **quiet)
        # In two steps: what was chosen is asked for when it would be overwritten, not when the page began to load.
        restored = page.load(lambda: None, None, None, **quiet).then(restore, [job_id, clip], inputs, **quiet)
        then_all(restored.then(show_analysis, inputs, analysis_outputs, **quiet))
        for trigger in (clip.upload, clip.clear, *([strip.pick] if strip is not None else [])):
            trigger(put_away, job_id, [result_card, progress, preview, preview_note], **quiet)

    page.queue(default_concurrency_limit=None)
    return page


def launch_options(store: JobStore, examples: Path) -> dict[str, Any]:
    """What `launch` must be told so that the page looks and works as meant."""
    return {
        "theme": theme(),
        "css": CSS,
        "head": f"<script>{(widgets.STATIC / 'away.js').read_text(encoding='utf-8')}</script>",
        "allowed_paths": [str(store.root), str(examples)],
        "max_file_size": f"{limits().megabytes}mb",
        "max_threads": 100,
        "footer_links": [],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
    }
