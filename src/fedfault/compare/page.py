"""`compare` reads run folders, prints their table and writes one self-contained page."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedfault
from fedfault.compare.pairs import Comparison
from fedfault.compare.sentences import describe_ends, explain_unpaired, list_notes, list_remarks
from fedfault.compare.tables import tabulate_pairs, tabulate_runs, transpose
from fedfault.errors import UserError
from fedfault.report.page import check_own_page, collect_shared, embed_values, make_environment
from fedfault.report.terminal import format_table
from fedfault.report.words import Table
from fedfault.runs.read import read_run
from fedfault.storage import delete_scratch_of, write_atomically

MOST = 8  # runs: colours and markers that can be told apart
LONGEST = 150  # characters of a file's name; file systems take 255 bytes
BASIS = (
    "Other run minus first run, below zero: the other is better. Every client or topic counts once. The interval, by "
    "Student's t and each at 95 % for itself, is about other clients or topics like these, for this one seed: repeat the "
    "runs with other seeds before reading much into small differences."
)
CAPTIONS = {
    "losses": (
        "Loss over rounds",
        "Validation loss of the mixture; the thick line is the first run.",
        "Line chart of the validation loss per round, a line for each of ",
    ),
    "clients": (
        "Clients",
        "Loss of the final model on the documents that each client kept back. Clients whose marks lie apart are those that "
        "the difference between the runs is about.",
        "Chart of the final held-out loss of every client, a mark for each of ",
    ),
    "differences": (
        "Difference by round",
        "Held-out loss of the clients minus that in the first run, mean over the clients; the band holds the middle 80 % of "
        "them. A mean that is below zero while the band reaches above it was bought by some of the clients.",
        "Line chart of the mean difference of held-out loss per round, beside the first of ",
    ),
}


RINGS = " A red ring is the first alarm of a detector."
FORKS = " A dashed vertical line is where a run forks from another one."
UNPAIRED = " Only runs whose clients hold the same texts are shown."


def compare(folders: Sequence[Path], out: Path | None = None, argv: Sequence[str] = ()) -> tuple[Comparison, Path]:
    """Compare runs, finished or not, with the first of them; returns what was found and the page that was written.

    The page goes to `out`, or to compare/NAME1-vs-NAME2.html beside the first run. Raises `UserError` for fewer than two
    runs, more than eight, the same one twice, a folder that is no run, an `out` that exists, and where the page would
    replace another file.
    """
    _check_folders(folders, out)
    runs = tuple(read_run(folder) for folder in folders)
    called = [run.name for run in runs]
    names = [n if called.count(n) == 1 else str(run.folder) for n, run in zip(called, runs, strict=True)]
    found = Comparison(runs, tuple(names))
    page = out or runs[0].folder.resolve().parent / "compare" / f"{_make_file_name(called)}.html"
    check_own_page(page)
    html = _render_page(found, shlex.join(["fedfault", *argv]))
    try:
        if out is None:
            page.parent.mkdir(exist_ok=True)
        delete_scratch_of(page)
        write_atomically(page, html)
    except OSError as e:
        raise UserError(f"cannot write {page}: {e.strerror}; choose another file with --out") from e
    return found, page


def _check_folders(folders: Sequence[Path], out: Path | None) -> None:
    if len(folders) < 2:
        raise UserError("a comparison takes two runs at least: `fedfault compare results/a results/b`")
    if len(folders) > MOST:
        raise UserError(
            f"{len(folders)} runs, at most {MOST} in one figure; compare the ones that matter, or each with the same first "
            "run in comparisons of their own"
        )
    whole = [folder.resolve() for folder in folders]
    if twice := next((f for i, f in enumerate(whole) if f in whole[:i]), None):
        raise UserError(f"{twice} is given twice; give each run once")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: the page is one of HTML; give a file whose name ends in .html")
    if out is not None and out.exists():
        raise UserError(f"{out} exists; give another file to --out or remove it")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")


def _make_file_name(names: Sequence[str]) -> str:
    """Make the name `a-vs-b`; a long one ends in a hash."""
    whole = "-vs-".join(name.replace("/", "_") for name in names)
    if len(whole.encode()) <= LONGEST:
        return whole
    return f"{whole.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _render_page(c: Comparison, command: str) -> str:
    from fedfault.report.theme import DARK, LIGHT

    figures = _render_figures(c)
    return (
        make_environment(Path(__file__).parent)
        .get_template("template.html")
        .render(
            title=" · ".join(c.names),
            ends=describe_ends(c),
            notes=list_notes(c),
            unit=_name_units(c),
            overview=_break_keys(transpose(tabulate_runs(c))),
            statistics=tabulate_pairs(c),
            apart=explain_unpaired(c),
            basis=BASIS,
            figures=figures,
            shared=collect_shared(figures),
            values=embed_values({"rounds": [], "scales": [], "clients": [], "own": None}, figures),
            command=command,
            version=fedfault.__version__,
            light=LIGHT.variables,
            dark=DARK.variables,
        )
    )


def _name_units(c: Comparison) -> str:
    """Name the unit of the losses, or where there are several that of each run."""
    units = [run.unit for run in c.runs]
    if len(set(units)) == 1:
        return units[0]
    return ", ".join(f"{unit} ({name})" for unit, name in zip(units, c.names, strict=True))


def _break_keys(table: Table) -> Table:
    """Let the browser break keys such as `federation.algorithm.name` after a dot."""
    return table._replace(rows=[[row[0].replace(".", ".\u200b"), *row[1:]] for row in table.rows])


def _render_figures(c: Comparison) -> list[dict[str, Any]]:
    """Render the figures that have something to show as parts of the page."""
    from fedfault.compare.figures import FIGURES, choose_drawn, make_plot
    from fedfault.report.inline import draw_inline

    drawn, left_out = choose_drawn(c)
    apart = "".join(f" {c.names[i]} is left out: its loss is in {run.unit}." for i, run in left_out)
    names = {"losses": [c.names[i] for i, _ in drawn]}  # where not every run is shown
    marked = (  # what only some comparisons have
        ("losses", RINGS, any(f.level == "alarm" for _, run in drawn for f in run.findings)),
        ("losses", FORKS, any(f.name == "parent" for _, run in drawn for f in run.forks)),
        ("losses", apart, True),
        ("clients", UNPAIRED, any(not pair.clients.losses for pair in c.pairs)),
    )
    found = []
    for name in FIGURES:
        _, inline = draw_inline(c.runs[0], name, make_plot(name, c))
        if inline.drawings:
            title, text, alt = CAPTIONS[name]
            text += "".join(sentence for where, sentence, there in marked if where == name and there)
            about = {"name": name, "title": title, "text": text, "alt": f"{alt}{', '.join(names.get(name, c.names))}."}
            found.append(
                {
                    **about,
                    "drawings": inline.drawings,
                    "panels": inline.values,
                    "sentences": list_remarks(c) if name == "losses" else [],
                }
            )
    return found


def format_comparison(c: Comparison, width: int | None = None) -> str:
    """Write the comparison as text: notes, forks, alarms, the table, paired statistics.

    The table has a run a row, or a run a column where that would not fit into so many characters.
    """
    lines = format_table(tabulate_runs(c))
    if width is not None and max(map(len, lines)) > width:
        lines = format_table(transpose(tabulate_runs(c)), width)
    paired = tabulate_pairs(c)
    more = (
        [
            "",
            f"{paired.columns[0]}:",
            *format_table(paired._replace(columns=("difference", *paired.columns[1:])), width),
        ]
        if paired
        else []
    )
    return "\n".join(
        [
            *describe_ends(c),
            *list_notes(c),
            *list_remarks(c),
            "",
            *lines,
            *more,
            *explain_unpaired(c),
            *([BASIS] if paired else []),
        ]
    )
