"""Figures as they come: one JSON line a clip or scene and method, and what they say together.

A run that is killed goes on where its file ends: a line is written at once, and a last one that is only half there
counts as not written.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import InputError
from pipeline.media.cache import content_key
from pipeline.media.files import writing
from pipeline.models import hub

Row = dict[str, Any]
LEVEL = 0.95  # of the confidence intervals


def fingerprint(backbone_ref: str) -> str:
    """What the results depend on besides the request: figures of other weights must not mix with these."""
    folder = Path(hub.resolve(backbone_ref))
    names = ("vae", "transformer", "text_encoder", "mask_encoder", "inpainter", "soft", "recapture.json")
    parts = [folder / name for name in names]
    return content_key(*(part for part in parts if part.exists()))[:12] if folder.is_dir() else backbone_ref


def kept(output: Path | None, run: Mapping[str, Any]) -> list[Row]:
    """The rows of the same run that the file holds. Raises `InputError` for a file of something else."""
    if output is None or not output.exists():
        return []
    try:
        whole, _ = _split(output.read_bytes())
        rows = [json.loads(line) for line in whole.decode().splitlines()]
        return [row for row in rows if run.items() <= row.items()]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"Cannot go on from {output}: {error}. Give another file, or none.") from error


def append(output: Path | None, row: Row) -> None:
    """Write a row below the others, in place of a last line that a killed run left half written."""
    if output is None:
        return
    with writing(output), output.open("a+b") as file:
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                whole, _ = _split(file.read())
                file.truncate(len(whole))
        file.write(json.dumps(row).encode() + b"\n")


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The whole lines of a file, and the half one at its end."""
    at = content.rfind(b"\n") + 1
    return content[:at], content[at:]


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval (Student's t); nan for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return mean(values), math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean(values), float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error


def with_error(middle: float, error: float, form: str) -> str:
    """A figure and its error in words; the figure alone where the error is nan, as that of a single value."""
    return f"{middle:{form}}" + ("" if math.isnan(error) else f" ± {error:{form.lstrip('+')}}")


def columns_of(rows: Iterable[Row], without: Collection[str] = ()) -> list[str]:
    """The numeric columns of any of the rows, in the order in which they come."""
    found = {name: None for row in rows for name, value in row.items() if _number(value) and name not in without}
    return list(found)


def table(rows: Sequence[Row], names: Sequence[str], columns: Sequence[str], titles: Mapping[str, str]) -> str:
    """A Markdown table, one line a row: what the columns `names` say, and the figures in `columns`."""
    lines = _head([*names, *columns], titles)
    lines += [_line([_text(row.get(name)) for name in (*names, *columns)]) for row in rows]
    return "\n".join(lines)


def summary(
    rows: Sequence[Row],
    by: Sequence[str],
    columns: Sequence[str],
    titles: Mapping[str, str],
    *,
    unit: str = "clip",
    sets: Mapping[str, Callable[[Sequence[Row]], float | None]] = types.MappingProxyType({}),
) -> str:
    """A Markdown table, one line a group of rows that agree in the columns `by`: means with 95 % confidence intervals.

    A group's sample are its units: rows of the same clip are averaged first, since they are not independent.
    Figures that are not finite or missing are left out; a group of a single unit has no interval. sets: figures of a
    whole group, which have none either; a column that would be empty is left out.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in by), []).append(row)
    of_sets = {name: [figure(members) for members in groups.values()] for name, figure in sets.items()}
    of_sets = {name: figures for name, figures in of_sets.items() if any(figure is not None for figure in figures)}
    lines = _head([*by, f"{unit}s", *columns, *of_sets], titles)
    for number, (group, members) in enumerate(groups.items()):
        units: dict[Any, list[Row]] = {}
        for row in members:
            units.setdefault(row.get(unit), []).append(row)
        cells = []
        for column in columns:
            given = [[row[column] for row in same if _number(row.get(column))] for same in units.values()]
            values = [mean(finite) for same in given if (finite := [v for v in same if math.isfinite(v)])]
            if values:
                cells.append(_with_interval(*interval(values)))
            else:
                cells.append(_text(math.inf) if any(math.inf in same for same in given) else "")
        cells += [_text(figures[number]) for figures in of_sets.values()]
        lines.append(_line([*map(_text, group), str(len(units)), *cells]))
    return "\n".join(lines)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _head(names: Sequence[str], titles: Mapping[str, str]) -> list[str]:
    return [_line([titles.get(name, name) for name in names]), "|" + "---|" * len(names)]


def _line(cells: Iterable[str]) -> str:
    # what a user wrote must not end a cell
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return "exact" if math.isinf(value) else f"{value:.{_digits(value)}f}"


def _with_interval(middle: float, half: float) -> str:
    return with_error(middle, half, f".{_digits(middle)}f")


def _digits(value: float) -> int:
    """Decimals that show four digits, three at most behind the point."""
    return 3 if not math.isfinite(value) else min(3, max(0, 3 - math.floor(math.log10(max(1.0, abs(value))))))
