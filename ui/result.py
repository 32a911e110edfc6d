"""A finished render: its figures, and the report as others may see it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from pipeline.render.events import RenderResult
from ui.words import change_words


def figures_html(report: dict[str, Any]) -> str:
    """The figures of a report in plain words; what a report lacks is left out."""

    def at(*path: str) -> Any:
        value: Any = report
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def row(title: str, figure: str, note: str = "") -> str:
        small = f"<small>{escape(note)}</small>" if note else ""
        return f"<div><dt>{escape(title)}</dt><dd>{escape(figure)}{small}</dd></div>"

    rows = []
    if name := at("request", "clip"):
        rows.append(row("Your clip", name))
    if changed := change_words(report):
        rows.append(row("What was changed", changed))
    if (unknown := at("unknown")) is not None:
        rows.append(row("Filled in by the model", f"{100 * unknown:.1f} %", "of the picture, not seen by your clip"))
    if elsewhere := at("from_other_frames"):
        rows.append(row("Seen by other frames", f"{100 * elsewhere:.1f} %", "of the picture, and taken from there"))
    raw, kept = at("measurement", "raw"), at("measurement", "composited")
    if raw:
        decibels = "equal" if raw.get("psnr") is None else f"{raw['psnr']:.1f} dB"
        note = "PSNR where your clip is known, before it is put back"
        if kept:
            note += ", " + ("equal" if kept.get("psnr") is None else f"{kept['psnr']:.1f} dB") + " after"
        rows.append(row("Faithful to your clip", decibels, note))
        if raw.get("ssim") is not None:
            after = f", {kept['ssim']:.3f} after" if kept and kept.get("ssim") is not None else ""
            rows.append(row("Structure kept", f"{raw['ssim']:.3f}", f"SSIM in the same place, 1 is equal{after}"))
    if source := at("first_frame", "from"):
        rows.append(row("First frame", source[0].upper() + source[1:]))
    if (total := at("seconds", "total")) is not None:
        sampling = at("seconds", "sample")
        note = f"of which {sampling:.1f} s in {at('steps')} steps" if sampling is not None else ""
        rows.append(row("Time taken", f"{total:.1f} s", note))
    if (count := at("frames", "count")) and (size := at("sizes", "result")):
        worked = at("sizes", "working")
        note = f"the model worked at {worked[1]} × {worked[0]}" if worked else ""
        rows.append(row("Video", f"{count} frames, {size[1]} × {size[0]}", note))
    if at("seed") is not None:
        rows.append(row("Seed", str(at("seed")), "the same settings and seed give the same video"))
    notes = "".join(f'<p class="rc-caption">{escape(note)}</p>' for note in at("notes") or [])
    return f'<dl class="rc-figures">{"".join(rows)}</dl>{notes}'


def public_report(result: RenderResult) -> dict[str, Any]:
    """The report without the places of files on the server: those are nobody's business."""
    report = dict(result.report)
    request = dict(report.get("request") or {})
    for name in ("clip", "depth", "mask", "first_frame"):
        if request.get(name):
            request[name] = Path(request[name]).name
    if report.get("request"):
        report["request"] = request
    if isinstance(report.get("depth"), dict) and report["depth"].get("from"):
        report["depth"] = report["depth"] | {"from": Path(report["depth"]["from"]).name}
    return report
