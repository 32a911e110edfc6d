"""A finished render: its figures in plain words, and the report as others may see it."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path

from pipeline.render.events import RenderResult
from pipeline.render.report import Report
from ui.words import change_words


def figures_html(report: Report) -> str:
    """The figures of a report in plain words."""

    def row(title: str, figure: str, note: str = "") -> str:
        small = f"<small>{escape(note)}</small>" if note else ""
        return f"<div><dt>{escape(title)}</dt><dd>{escape(figure)}{small}</dd></div>"

    rows = [
        row("Your clip", report.request.clip),
        row("What was changed", change_words(report.request)),
        row("Filled in by the model", f"{100 * report.unknown:.1f} %", "of the picture, not seen by your clip"),
    ]
    if report.from_other_frames:
        share = f"{100 * report.from_other_frames:.1f} %"
        rows.append(row("Seen by other frames", share, "of the picture, and taken from there"))
    raw, kept = report.measurement.raw, report.measurement.composited
    decibels = lambda psnr: "equal" if psnr is None else f"{psnr:.1f} dB"
    after = f", {decibels(kept.psnr)} after" if kept else ""
    note = f"PSNR where your clip is known, before it is put back{after}"
    rows.append(row("Faithful to your clip", decibels(raw.psnr), note))
    after = f", {kept.ssim:.3f} after" if kept else ""
    rows.append(row("Structure kept", f"{raw.ssim:.3f}", f"SSIM in the same place, 1 is equal{after}"))
    origin = report.first_frame.origin
    rows.append(row("First frame", origin[0].upper() + origin[1:]))
    sampling = f"of which {report.seconds.get('sample', 0.0):.1f} s in {report.steps} steps"
    rows.append(row("Time taken", f"{report.seconds['total']:.1f} s", sampling))
    (height, width), (worked_height, worked_width) = report.sizes.result, report.sizes.working
    worked = f"the model worked at {worked_width} × {worked_height}"
    rows.append(row("Video", f"{report.frames.count} frames, {width} × {height}", worked))
    rows.append(row("Seed", str(report.request.guidance.seed), "the same settings and seed give the same video"))
    notes = "".join(f'<p class="rc-caption">{escape(note)}</p>' for note in report.notes)
    return f'<dl class="rc-figures">{"".join(rows)}</dl>{notes}'


def public_report(result: RenderResult) -> Report:
    """The report without the places of files on the server: those are nobody's business."""
    request = result.report.request
    files = {name: getattr(request, name) for name in ("clip", "depth", "mask", "first_frame")}
    request = request.changed(**{name: Path(file).name for name, file in files.items() if file})
    depth = replace(result.report.depth, origin=Path(result.report.depth.origin).name)
    return replace(result.report, request=request, depth=depth)
