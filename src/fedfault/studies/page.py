"""`write_page` puts a study's report into its folder: one self-contained page, and a document in Markdown and LaTeX."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedfault
from fedfault.errors import UserError, quote
from fedfault.report.page import collect_shared, make_environment
from fedfault.report.words import Table, format_count
from fedfault.runs.recorded import RunData
from fedfault.storage import delete_scratch, write_atomically
from fedfault.studies import best, clients, paper, results
from fedfault.studies.axes import make_slug
from fedfault.studies.references import find_keys, format_entries, format_reference
from fedfault.studies.results import Results, read_results
from fedfault.studies.statements import select_map_cells

PAGE, DOCUMENT, BIBLIOGRAPHY, TABLE = "report.html", "report.md", "references.bib", "cells.parquet"
LEGEND = {  # column of the table of cells -> how it is read
    "gain": " Gain: loss before training minus at the end.",
    "mean loss": " Mean loss: over the rounds.",
    "swing": " Swing: mean change from one evaluation to the next in the last half, signs dropped.",
    "forgetting": " Forgetting: change of the loss on general English.",
    "verdicts": " Verdicts are those of the failure detectors.",
}
BASIS = (
    "Held-out loss of every client under the model that it uses: means over the clients of a seed, then over the seeds. The "
    "worst client and the smallest gain are means over the seeds. Differences are paired by client and seed; below zero, "
    "clients are better off in the first arm. Each has its own 95 % interval by Student's t over the means of the seeds; "
    "with one seed it is over the clients, and says nothing of other seeds."
)
CAPTIONS = {
    "answers": (
        "Answers",
        "Differences in units of the smallest one that matters, turned so that a claim holds to the right of 1, and a claim "
        "of equality within ±1.",
    ),
    "timeline": (
        "By the simulated clock",
        "Validation over simulated seconds: thin lines are runs, thick ones the means of an arm over the seeds that all "
        "arms have, as far as its runs have come. Dashed: the moments that the hypotheses are about.",
    ),
    "clients": (
        "Every client",
        "Held-out loss at the end in one arm minus that in another: a point for every client and seed, seeds below one "
        "another. The dot is the mean, the bar its 95 % interval where there is one.",
    ),
    "cells": ("Every run", "The final validation loss: a tick a seed, the dot is their mean."),
}


def write_page(folder: Path) -> tuple[Results, Path]:
    """Write report.html, report.md, report.tex (.pdf with a TeX), references.bib, cells.parquet, figures/*.png and .pdf.

    Returns the results and the page.

    Raises `UserError` if the folder is no study, has no finished run or cannot be written.
    """
    r = read_results(folder)
    if not any(r.of(cell) for cell in r.study.cells):
        raise UserError(f"{folder}: no run of the study is finished yet; `fedfault study FILE` goes on")
    try:
        about = _collect_parts(r)
        delete_scratch(folder)
        write_atomically(folder / BIBLIOGRAPHY, about["bibtex"])
        _write_runs(folder / TABLE, r)
        write_atomically(folder / DOCUMENT, _render_template("template.md", about))
        paper.write_paper(folder, about)
        write_atomically(folder / PAGE, _render_template("template.html", about))
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror}") from e
    return r, folder / PAGE


def _write_runs(file: Path, r: Results) -> None:
    """Write a row a run, to draw the figures again by other means."""
    import pyarrow
    import pyarrow.parquet

    held = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(results.list_runs(r)), held)
    write_atomically(file, held.getvalue())


def _collect_parts(r: Results) -> dict[str, Any]:
    """Everything that the templates show."""
    from fedfault.report.theme import DARK, LIGHT

    used = find_keys(r.runs.values(), {a.test for a in r.answers} | ({"best"} if r.study.best else set()))
    drawn = _render_figures(r)
    own, rest = results.list_settings(r)
    cells = results.tabulate_cells(r)
    return {
        "title": r.study.name,
        "question": r.study.question,
        "headline": results.summarise_study(r),
        "answers": results.tabulate_answers(r),
        "rule": results.explain_rule(r),
        "best": _collect_best(r),
        "figures": drawn,
        "shared": collect_shared(drawn),
        "cells": cells,
        "clients": clients.tabulate_clients(r),
        "differences": clients.tabulate_differences(r, clients.compare_clients(r)),
        "basis": BASIS + (results.CHOSEN if r.study.sequential else ""),
        "clusters": clients.tabulate_clusters(r),
        "legend": _explain_cells(r, cells),
        "contrasts": results.tabulate_contrasts(r),
        "setup": own,
        "defaults": rest,
        "limits": results.list_limits(r),
        "command": r.study.command,
        "folder": quote(r.folder),
        "provenance": results.list_provenance(r),
        "references": [format_reference(key) for key in used],
        "bibtex": format_entries(used),
        "version": fedfault.__version__,
        "light": LIGHT.variables,
        "dark": DARK.variables,
    }


def _explain_cells(r: Results, cells: Table) -> str:
    """How the table of cells is read, of the columns that it has."""
    read = "".join(text for column, text in LEGEND.items() if column in cells.columns)
    if len(r.study.seeds) < 2:
        return f"Numbers of the one seed.{read}"
    uneven = len({len(r.of(cell)) for cell in r.study.cells}) > 1
    return (
        f"Means over seeds, each with its own 95 % interval by Student's t.{read} Seeds that all give the same value have "
        "no spread to go by: fewer than six of them have no interval."
        + (results.CHOSEN if r.study.sequential else "")
        + (" Cells have unequal numbers of seeds: compare them by their contrasts, which are paired." if uneven else "")
    )


def _collect_best(r: Results) -> list[dict[str, Any]]:
    """The tables of what to use when, each with its name and how it is read."""
    tables = {b.name: (best.tabulate_best(r, b), best.explain_best(b)) for b in r.study.best}
    return [{"name": name, "table": table, "text": text} for name, (table, text) in tables.items() if table]


def _render_figures(r: Results) -> list[dict[str, Any]]:
    """The figures that have something to show, as parts of the page; each also becomes figures/NAME.png and .pdf."""
    from fedfault.report import gallery
    from fedfault.report.inline import draw_inline
    from fedfault.studies.figures import make_figures

    folder = r.folder / "figures"
    folder.mkdir(exist_ok=True)
    nothing, found = RunData(r.folder, ()), []
    for name, plot in make_figures(r).items():
        wide, inline = draw_inline(nothing, f"figure-{make_slug(name)}", plot)
        if wide is not None:
            for kind in ("png", "pdf"):  # for pages, and for LaTeX
                gallery.write_figure(wide, folder / f"figure-{make_slug(name)}.{kind}")
            title, text = _find_caption(r, name)
            about = {"name": f"figure-{make_slug(name)}", "title": title, "text": text}
            found.append({**about, "alt": f"{title}. {text}", "drawings": inline.drawings})
    return found


def _find_caption(r: Results, name: str) -> tuple[str, str]:
    if name == "answers":
        title, text = CAPTIONS[name]
        shown = [a.decisive for a in r.answers if a.decisive.values]
        ticks = " Ticks are seeds, the mark is their mean" if any(len(f.values) > 1 for f in shown) else ""
        bar = ", the bar its interval" if any(f.interval is not None for f in shown) else ""
        return title, text + (f"{ticks}{bar}." if ticks else " A mark is the one seed.")
    if name in CAPTIONS:
        return CAPTIONS[name]
    m = next(m for m in r.study.maps if f"map-{m.name}" == name)
    held = ", ".join(f"{axis} {label}" for axis, label in m.where.items())
    text = (
        f"{m.metric} and verdicts over {m.x} and {m.y}{f', with {held}' if held else ''}. A red × counts runs that are not "
        "finite; verdicts are counted by seed."
    )
    cells = select_map_cells(m, r.study.cells)
    used = r.shared_values(cells, m.metric)
    if any(len(r.values(cell, m.metric)) > len(own) for cell, own in zip(cells, used, strict=True)):
        seeds = format_count(max(map(len, used)), "seed")
        text += f" Means are over the {seeds} that all cells have; verdicts are of all runs."
    return f"Map: {m.name}", text


def _render_template(template: str, about: dict[str, Any]) -> str:
    return (
        make_environment(Path(__file__).parent, html=template.endswith(".html"))
        .get_template(template)
        .render(**about, **({} if template.endswith(".html") else {"table": format_markdown}))
    )


def format_markdown(data: Table | Sequence[tuple[str, str]]) -> str:
    """A table in Markdown; of pairs, one of settings and values."""
    table = data if isinstance(data, Table) else Table(("setting", "value"), data, text=(1,))
    sides = ["---" if i == 0 or i in table.text else "---:" for i in range(len(table.columns))]
    return "\n".join(f"| {' | '.join(map(_escape, row))} |" for row in (table.columns, sides, *table.rows)) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([|*_<])", r"\\\1", " ".join(text.split()))
