"""report.html and contact-sheet.png of a batch, from its file and its manifest. Every text in it is escaped."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..output import write_text, write_whole
from .contact_sheet import Shown, contact_sheet
from .manifest import DONE, Line
from .parcels import Unit
from .rows import Sheet

REPORT, SHEET = "report.html", "contact-sheet.png"
MOST_SHOWN = 5000
STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
color: #2b2724; background: #faf9f7 } h1 { font-size: 1.4rem } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .45rem .6rem; border-top: 1px solid #ddd8d0 }
td.picture { width: 8rem } img { max-width: 8rem; max-height: 8rem; display: block } .failed { color: #9d2b1e }
.sheet img { max-width: 100%; max-height: none } pre { white-space: pre-wrap; margin: 0 } .quiet { color: #7a736b }"""
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"


def write_report(
    folder: Path, sheet: Sheet, lines: Mapping[Unit, Line], summary: Mapping[str, Any], plan: str
) -> Path:
    """The pages anew, whole or not at all. Rows that are not in the file any more are left out."""
    units = [Unit(row.id, image) for row in sheet.rows for image in range(row.images)]
    shown = [lines[unit] for unit in units if unit in lines]
    strange = [line for unit, line in lines.items() if unit.row.startswith("row ")]
    numbers = {row.id: row.number for row in sheet.rows}
    current = {f"row {bad.number}" for bad in sheet.bad}
    rows = [*shown, *(line for line in strange if line.unit.row in current)]
    pictures = [
        Shown(folder / file["path"], label(numbers[line.unit.row], line.data.get("seed")))
        for line in shown
        if line.state == DONE
        for file in line.data.get("files", [])[:1]
        if str(file.get("media", "")).startswith("image/")
    ][:MOST_SHOWN]
    if pictures:
        buffer = io.BytesIO()
        contact_sheet(pictures).save(buffer, "PNG")
        write_whole(folder / SHEET, lambda file: file.write(buffer.getvalue()))
    done = sum(line.state == DONE for line in rows)
    title = f"{done} of {len(units) + len(sheet.bad)} made"
    write_text(folder / REPORT, page(title, rows, numbers, [told(summary), plan], sheet_there=bool(pictures)))
    return folder / REPORT


def page(
    title: str, rows: list[Line], numbers: Mapping[str, int], about: Sequence[str], *, sheet_there: bool
) -> str:
    picture = f'<p class="sheet"><a href="{SHEET}"><img src="{SHEET}" alt="all pictures"></a></p>'
    ordered = sorted(
        rows, key=lambda line: (numbers.get(line.unit.row, line.data.get("row", 0)), line.unit.image)
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<pre class="quiet">{escape(text)}</pre>' for text in about),
        picture if sheet_there else "",
        "<table><tr><th>row</th><th>result</th><th>what was asked for</th><th>about</th></tr>",
        *(entry(line, numbers.get(line.unit.row, line.data.get("row"))) for line in ordered),
        "</table></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def told(summary: Mapping[str, Any]) -> str:
    return (
        f"this run: {summary['made']} made in {summary['seconds']:.1f} s, {summary['done_before']} there before, "
        f"{summary['failed']} failed; models opened: {summary['loads']}, prompts encoded: {summary['encodings']}"
    )


def label(number: int, seed: Any) -> str:
    return f"row {number}" if seed is None else f"row {number}, seed {seed}"


def entry(line: Line, number: Any) -> str:
    """One row of the table."""
    data, request = line.data, dict(line.data.get("request") or {})
    asked = escape(str(request.pop("prompt", "")))
    rest = ", ".join(f"{name} {value}" for name, value in request.items())
    files = [file for file in data.get("files", []) if isinstance(file, dict)]
    links = "".join(link(str(file["path"]), str(file.get("media", ""))) for file in files)
    about = [f"seed {data['seed']}"] if "seed" in data else []
    about += [f"{sum(data['seconds'].values()):.2f} s"] if isinstance(data.get("seconds"), dict) else []
    about += [f"in a batch of {data['together']}"] if data.get("together", 1) > 1 else []
    notes = "".join(f"<br>{escape(str(note))}" for note in data.get("notes", []))
    error = f'<span class="failed">{escape(str(data["error"]))}</span>' if "error" in data else ""
    return (
        f'<tr><td>{escape(str(number))}</td><td class="picture">{links}</td>'
        f'<td>{asked}<br><span class="quiet">{escape(rest)}</span></td>'
        f"<td>{escape(', '.join(about))}{notes}{error}</td></tr>"
    )


def link(path: str, media: str) -> str:
    place = escape(quote(path))
    body = (
        f'<img src="{place}" alt="{escape(path)}" loading="lazy">'
        if media.startswith("image/")
        else escape(path)
    )
    return f'<a href="{place}">{body}</a> '
