"""The runs of a folder as a list: where each stands, how it ended, in which settings it differs. For terminal and page."""

from __future__ import annotations

import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedfault
from fedfault.compare.tables import choose_score, find_differing, format_setting
from fedfault.config.files import parse_setting, spell_key
from fedfault.config.schema import Experiment
from fedfault.errors import UserError, suggest
from fedfault.records import STATES, UNJUDGED, replace_not_finite
from fedfault.report.status import find_activity
from fedfault.report.terminal import break_name, echo, find_width, format_table, measure_cell
from fedfault.report.verdict import CLASSES
from fedfault.report.words import NOTHING, Table, format_number, format_perplexity, format_seconds, name_metric
from fedfault.runs.manifest import holds_run
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.storage import delete_scratch_of, write_atomically

PAGE = "index.html"
OTHER_STATES = ("running", "interrupted", "stopped", "finished", "damaged")  # of runs without a verdict
COLUMNS = ("state", "rounds", "score", "before", "after", "age")
MOST = 6  # settings that have a column
NARROW = 14  # characters that a part of a long name has at least, before scores go for want of room
FIRST = (  # settings that are shown before others
    "federation.algorithm.name", "federation.aggregation.name", "data.partition.name", "training.lr", "model.name",
    "data.dataset.name", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of the list."""

    run: RunData
    state: str  # of its verdict; before that running, interrupted, stopped or not judged; damaged
    score: str  # the name of what `before` and `after` are: a metric of labels, or perplexity
    before: float | None
    after: float | None
    changed: float  # seconds since the epoch, when a round was last recorded
    problem: str = ""  # why the folder cannot be read

    def to_json(self) -> dict[str, Any]:
        """Everything that the list shows as plain values."""
        return {
            "name": self.run.name,
            "folder": str(self.run.folder),
            "state": self.state,
            "rounds": self.run.rounds_done,
            "rounds_planned": self.run.rounds_planned,
            "score": self.score,
            "before": replace_not_finite(self.before),
            "after": replace_not_finite(self.after),
            "changed": self.changed,
            "problem": self.problem or None,
            "notes": list(self.run.notes),
            "settings": dict(self.run.config),
        }


def list_runs(folder: Path, wanted: Sequence[str] = (), sort: str = "age") -> list[Entry]:
    """List the runs in a folder, in its folders, and in those of its studies.

    wanted: `key=value`, a setting that a run must have, or its `state`; sort: `name` or one of `COLUMNS`. The newest, and
    the best score, come first. Raises `UserError` for a folder without runs, and for what is no setting, state or column.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds runs, such as results")
    places = [p for p in (folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/runs/*/"))) if holds_run(p)]
    if not places:
        raise UserError(f"{folder} holds no run; `fedfault run` makes one in results")
    if sort not in ("name", *COLUMNS):
        raise UserError(f"--sort {sort}: a list is sorted by name, {', '.join(COLUMNS)}{suggest(sort, COLUMNS)}")
    entries = [_read_entry(place) for place in places]
    filters = [_parse_filter(word, entries) for word in wanted]
    return sorted((e for e in entries if all(fits(e) for fits in filters)), key=lambda e: _rank(e, sort))


def _read_entry(folder: Path) -> Entry:
    try:
        run = read_run(folder)
    except UserError as e:
        return Entry(RunData(folder, ()), "damaged", NOTHING, None, None, folder.stat().st_mtime, str(e))
    metric = choose_score(run)
    if run.labelled:
        _, values = run.metric("validation", metric)
    else:
        values = [r.scores["validation"].perplexity for r in run.records if "validation" in r.scores]
    records = folder / "rounds.jsonl"
    changed = (records if records.is_file() else folder).stat().st_mtime
    before, after = (values[0], values[-1]) if values else (None, None)
    return Entry(run, _find_state(run), metric, before, after, changed)


def _find_state(run: RunData) -> str:
    """The state of the verdict; of a run without one, what became of it."""
    said = (run.metrics.get("verdict") or {}).get("state") or run.manifest.get("status") or UNJUDGED
    return find_activity(run) or str(said)


def _format_score(score: str, value: float | None) -> str:
    """Write a score as the run's own report does."""
    if score == "perplexity" and value is not None and math.isfinite(value) and value > 0:
        return format_perplexity(math.log(value))
    return format_number(value)


def _tell_apart(runs: Sequence[RunData]) -> dict[Path, str]:
    """Return the name of every run by its folder; runs of one name have their folder beside it, whole where they must."""
    times = Counter(run.name for run in runs)
    folders = Counter((run.name, run.folder.name) for run in runs)

    def name(run: RunData) -> str:
        if times[run.name] == 1:
            return run.name
        return f"{run.name} ({run.folder.name if folders[run.name, run.folder.name] == 1 else run.folder})"

    return {run.folder: name(run) for run in runs}


def _parse_filter(word: str, entries: Sequence[Entry]) -> Callable[[Entry], bool]:
    """Return the test that `key=value` asks of a run; `federation.algorithm=fedprox` is about the component's name."""
    key, equals, text = word.partition("=")
    if not equals:
        raise UserError(
            f"{word!r} is no filter; write key=value, such as state=degraded or federation.algorithm=scaffold"
        )
    if key == "state":
        known = dict.fromkeys((*STATES, *OTHER_STATES, *(e.state for e in entries)))
        if text not in known:
            raise UserError(f"{word!r}: no run is in such a state{suggest(text, known)} (known: {', '.join(known)})")
        return lambda entry: entry.state == text
    wanted = {path: entry.value for path, entry in parse_setting(word).items()}
    configs = [Experiment().model_dump(), *(e.run.config for e in entries)]
    if unknown := [path for path in wanted if not any(_knows(config, path) for config in configs)]:
        raise UserError(
            f"{word!r}: no run here has a setting {spell_key(unknown[0])!r}; docs/configuration.md has them all"
        )
    return lambda entry: all(_is_set(entry.run, path, value, text) for path, value in wanted.items())


def _knows(config: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether a configuration has a setting of this path, be it not set, as a section above it may be."""
    value: Any = config
    for key in path:
        if value is None:
            return True
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _is_set(run: RunData, path: Sequence[str], value: object, text: str) -> bool:
    """Whether a setting of a run has a value; one that is text may also be as it was written: `experiment_name=5`."""
    found = run.setting(*path)
    if isinstance(found, Mapping) and "name" in found:
        found = found["name"]
    if isinstance(found, str):
        return found in (value, text)
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def _rank(entry: Entry, sort: str) -> tuple[Any, ...]:
    number = {"before": entry.before, "after": entry.after}.get(sort)
    if sort in ("before", "after"):
        low_is_good = entry.score == "perplexity"
        return (number is None, entry.score, (number or 0.0) * (1 if low_is_good else -1), entry.run.name)
    key: Any = {
        "age": -entry.changed,
        "rounds": -entry.run.rounds_done,
        "state": entry.state,
        "score": entry.score,
        "name": entry.run.name,
    }[sort]
    return (key, entry.run.name)


def tabulate_list(entries: Sequence[Entry], width: int | None = None) -> Table:
    """Tabulate the list: a run a row, with settings in which these runs differ in the last columns.

    width: characters that there are for a row; None: as many as the names, all columns and `MOST` settings need. Where
    there is no room settings go, then age and rounds; then names and states take several lines, so that scores stay.
    """
    found = find_differing([e.run for e in entries])
    names = _tell_apart([e.run for e in entries])
    keys = [*(k for k in FIRST if k in found), *(k for k in found if k not in FIRST)]
    rows = [
        [
            names[e.run.folder],
            e.state,
            f"{e.run.rounds_done}/{e.run.rounds_planned or NOTHING}",
            name_metric(e.score),
            _format_score(e.score, e.before),
            _format_score(e.score, e.after),
            format_seconds(max(0.0, time.time() - e.changed)),
        ]
        for e in entries
    ]
    columns = [list(column) for column in zip(("run", *COLUMNS), *rows, strict=True)]
    for key in keys[:MOST]:
        columns.append([_shorten(key), *(format_setting(e.run, key) for e in entries)])
    if width is not None:
        _fit(columns, width)
    shown = [i for i, column in enumerate(columns) if column]
    head, *body = zip(*(columns[i] for i in shown), strict=True)
    return Table(head, body, text=[n for n, i in enumerate(shown) if i in (1, 3) or i > len(COLUMNS)])


def _fit(columns: list[list[str]], width: int) -> None:
    """Empty columns, and break the names of runs, until rows of `width` characters hold what is left."""

    def find_room() -> int:
        """The characters that the names may have beside all other columns."""
        return width - sum(max(map(measure_cell, column)) + 2 for column in columns[1:] if column)

    longest = max(map(len, columns[0]))
    spare = [*range(len(columns) - 1, len(COLUMNS), -1), *(1 + COLUMNS.index(name) for name in ("age", "rounds"))]
    while find_room() < longest and spare:
        columns[spare.pop(0)].clear()
    if find_room() < min(longest, NARROW):
        for text in (1, 1 + COLUMNS.index("score")):
            columns[text] = _halve(columns[text])
    for name in ("score", "before"):
        if find_room() < min(longest, NARROW):
            columns[1 + COLUMNS.index(name)].clear()
    columns[0] = [break_name(name, max(find_room(), NARROW)) for name in columns[0]]


def _halve(cells: Sequence[str]) -> list[str]:
    """Break cells between words, to a column so narrow that none of them has more than two lines."""
    for width in range(1, max(map(len, cells)) + 1):
        broken = [textwrap.wrap(cell, width, break_long_words=False) for cell in cells]
        if all(len(lines) <= 2 for lines in broken) and max(len(line) for lines in broken for line in lines) <= width:
            return ["\n".join(lines) for lines in broken]
    return list(cells)


def _shorten(key: str) -> str:
    """The last word of a setting that says what it is.

    >>> _shorten("federation.algorithm.name"), _shorten("training.lr")
    ('algorithm', 'lr')
    """
    return key.removesuffix(".name").rpartition(".")[2]


def print_list(entries: Sequence[Entry]) -> None:
    """Print the list to standard output; on a terminal it has as many settings as fit."""
    width = find_width()
    print("\n".join(format_table(tabulate_list(entries, width), width)))
    for line in list_problems(entries):
        echo(line)


def list_problems(entries: Sequence[Entry]) -> list[str]:
    """List what a reader should know of the files of the runs, a sentence each: damage, and records that were changed."""
    return [f"{e.run.folder}: {text}" for e in entries for text in (e.problem, *e.run.notes) if text]


def write_index(folder: Path, entries: Sequence[Entry]) -> Path:
    """Write index.html into the folder: the list, linked to the reports, and the pages of studies and comparisons.

    Raises `UserError` if there is a file of that name which is not one of these, and `OSError` if it cannot be written.
    """
    from fedfault.report.page import check_own_page, make_environment
    from fedfault.report.theme import DARK, LIGHT

    page = folder / PAGE
    check_own_page(page)
    table = tabulate_list(entries)
    reports = [e.run.folder / "report.html" for e in entries]
    links = [str(r.relative_to(folder)) if r.is_file() else "" for r in reports]
    others = [
        *(
            ("study", p.parent.name, p)
            for p in sorted(folder.glob("*/report.html"))
            if (p.parent / "study.json").is_file()
        ),
        *(("comparison", p.stem, p) for p in sorted(folder.glob("compare/*.html"))),
    ]
    html = (
        make_environment(Path(__file__).parent)
        .get_template("listing.html")
        .render(
            folder=folder.resolve().name,
            table=table,
            links=links,
            classes=[CLASSES.get(e.state, "") for e in entries],
            problems=list_problems(entries),
            others=[(kind, name, str(p.relative_to(folder))) for kind, name, p in others],
            version=fedfault.__version__,
            light=LIGHT.variables,
            dark=DARK.variables,
        )
    )
    delete_scratch_of(page)
    write_atomically(page, html)
    return page
