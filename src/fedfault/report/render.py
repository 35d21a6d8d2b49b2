"""`render_report` writes the page of a run; everything that it shows is inside the one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfault.errors import UserError, quote
from fedfault.report import summary, tables, timing, verdict
from fedfault.report.captions import describe_figure, write_caption
from fedfault.report.contributions import tabulate_contributions
from fedfault.report.glossary import Explained, list_words
from fedfault.report.page import check_own_page, collect_shared, embed_values, make_environment
from fedfault.report.personal import describe_personal, tabulate_personal
from fedfault.report.status import Activity, describe_activity, find_activity
from fedfault.runs.manifest import OVER, holds_run
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.storage import delete_scratch_of, write_atomically

if TYPE_CHECKING:
    from fedfault.report.inline import Inline


def render_report(folder: Path | str, dpi: float = 150, out: Path | None = None) -> Path:
    """Write `report.html`, one self-contained page, and `plots/*.png` into the run folder, or into `out`; returns the page.

    Raises UserError if the folder is not a run folder or a file is corrupt, and if `out` holds other files of these names or
    another run; then nothing is written.
    """
    run = read_run(folder)
    place = run.folder if out is None else out
    if place.resolve() != run.folder.resolve():
        _check_place(place)
    place.mkdir(parents=True, exist_ok=True)
    figures = _render_figures(run, place / "plots", dpi) if run.records else []
    page = place / "report.html"
    delete_scratch_of(page)
    write_atomically(page, _render_page(run, figures, None if run.status in OVER else find_activity(run)))
    return page


def _check_place(folder: Path) -> None:
    """Raise `UserError` where a report would replace that of another run or of a study, or what is no report."""
    from fedfault.report.gallery import FIGURES

    if holds_run(folder) or (folder / "study.json").is_file():
        raise UserError(f"{folder} holds a run or a study, with a report of its own; give another folder to --out")
    page = folder / "report.html"
    check_own_page(page)
    plots = (folder / "plots" / f"{name}.png" for name in FIGURES)
    if not page.exists() and (plot := next((p for p in plots if p.exists()), None)):
        raise UserError(f"{plot} exists, and no report beside it that it could belong to; give another folder to --out")


def render_live(folder: Path, figures: list[dict[str, Any]], activity: Activity, refresh: int) -> None:
    """Write `report.html` of a run that is not over, with figures that are drawn already.

    refresh: seconds after which a page of a run that is at work loads itself again.
    """
    run = read_run(folder)
    write_atomically(folder / "report.html", _render_page(run, figures, activity, refresh))


def render_picture(folder: Path) -> list[dict[str, Any]]:
    """Draw the one figure of a run that a page shows while it is at work."""
    from fedfault.report.gallery import FIGURES
    from fedfault.report.inline import draw_inline

    run = read_run(folder)
    inline = draw_inline(run, LIVE, FIGURES[LIVE])[1]
    if not inline.drawings:
        return []
    about = _describe(run, LIVE, inline)
    drawn = f"This picture is of round {run.rounds_done}; it is drawn less often than the words are written. "
    return [{**about, "text": drawn + about["text"]}]


def _render_figures(run: RunData, folder: Path, dpi: float) -> list[dict[str, Any]]:
    """Render the figures that have something to show as parts of the page, and write each as NAME.png into `folder` too."""
    from fedfault.report import gallery
    from fedfault.report.inline import draw_inline

    folder.mkdir(exist_ok=True)
    more: dict[str, dict[str, Any]] = {
        "split": {
            "sentences": summary.describe_split(run),
            "table": summary.tabulate_skew(run),
            "note": CHANCE,
        },
        "clock": {"sentences": timing.describe_clock(run), "table": timing.tabulate_tiers(run), "note": TIERS},
        "fairness": {"table": tables.tabulate_fairness(run), "note": ""},
        "personal": {"sentences": describe_personal(run), "table": tabulate_personal(run), "note": PERSONAL},
        "contributions": {"table": tabulate_contributions(run), "note": CONTRIBUTIONS},
    }
    found = []
    for name, plot in gallery.FIGURES.items():
        wide, inline = draw_inline(run, name, plot)
        if wide is not None:
            gallery.write_figure(wide, folder / f"{name}.png", dpi)
            found.append({**_describe(run, name, inline), **more.get(name, {})})
    return sorted(found, key=lambda one: FIRST.index(one["name"]) if one["first"] else len(FIRST))


def _describe(run: RunData, name: str, inline: Inline) -> dict[str, Any]:
    """Collect what the template needs to show a figure."""
    about = {
        "name": name,
        "drawings": inline.drawings,
        "panels": inline.values,
        "alt": describe_figure(run, name),
        "first": name in FIRST,
    }
    return {**about, **write_caption(run, name)._asdict()}


LIVE = "loss_by_topic"
# Figures that are not for experts alone
FIRST = (
    "loss_by_topic", "labels", "split", "clients", "fairness", "personal", "general", "privacy", "leakage",
    "contributions",
)  # fmt: skip

CHANCE = (
    "By chance: the mean over random deals of the same documents to clients of the same sizes; z counts its standard "
    "deviations."
)
CONTRIBUTIONS = (
    "Sums over the measured rounds that a client took part in; below zero its updates raised the loss. ± is "
    "one standard error; without it all coalitions of clients were scored."
)
PERSONAL = (
    "Loss with the first model minus that with the second, below zero: the first is better for the client. The interval is "
    "by Student's t over the clients of this run; other splits and seeds may give others."
)
TIERS = "How often clients of each tier were drawn and what became of them; mean rank of those that had work."


def _render_page(
    run: RunData, figures: list[dict[str, Any]], activity: Activity | None, refresh: int | None = None
) -> str:
    """Fill in the template; activity: of a run that is not over; refresh: see `render_live`."""
    from fedfault.report.theme import DARK, LIGHT
    from fedfault.report.values import collect_values

    progress = summary.describe_progress(run)
    judged = None if activity else verdict.read_verdict(run)
    findings = verdict.list_findings(run)
    shown = {one["name"] for one in figures}
    words = Explained(list_words(run, shown, judged=judged is not None or bool(findings[0])))
    sure = words.mark(judged.sure) if judged else ""
    sentences = [words.mark(sentence) for sentence in summary.list_sentences(run) if sentence != progress]
    explained = [
        {**one, "text": words.mark(one["text"]), "sentences": [words.mark(s) for s in one.get("sentences", ())]}
        for one in figures
    ]
    return (
        make_environment()
        .get_template("template.html")
        .render(
            run=run,
            progress=progress,
            subtitle=_describe_setup(run),
            verdict=judged,
            sure=sure,
            words=words,
            activity=describe_activity(run, activity, time.strftime("%H:%M:%S")) if activity else None,
            refresh=refresh if activity == "running" else None,
            findings=findings,
            status=summary.list_warnings(run, told=activity is not None),
            remarks=summary.list_remarks(run),
            sentences=sentences,
            commands=[f"fedfault watch {quote(run.folder)}"]
            if activity == "running"
            else summary.suggest_commands(run),
            tiles=summary.make_tiles(run),
            figures=explained,
            shared=collect_shared(figures),
            scores=tables.tabulate_scores(run),
            answers=tables.tabulate_answers(run),
            answered=tables.describe_answers(run),
            benchmarks=tables.tabulate_benchmarks(run),
            clients=tables.tabulate_clients(run),
            setup=tables.list_settings(run),
            provenance=tables.list_provenance(run),
            command=tables.find_command(run),
            values=embed_values(collect_values(run), figures),
            version=f" {run.manifest['fedfault']}" if "fedfault" in run.manifest else "",
            light=LIGHT.variables,
            dark=DARK.variables,
        )
    )


def _describe_setup(run: RunData) -> str:
    """Name algorithm, model, data and split in one line."""
    algorithm = run.setting("federation", "algorithm", "name") or run.setting("federation", "algorithm")
    model, data = run.setting("model", "name"), run.setting("data", "dataset", "name") or run.setting("data", "dataset")
    method = run.setting("data", "partition", "name")
    aggregation = run.setting("federation", "aggregation", "name")
    algorithm = f"{algorithm} with {aggregation}" if algorithm and aggregation else algorithm
    whose = [f"data {data}" if data else None, f"split {method}" if method else None]
    if run.manifest.get("data_elsewhere"):  # the configuration's is for validation
        whose = ["the clients' own data"]
    own = [run.setting("federation", "asynchronous", "name"), run.setting("privacy", "unit")]
    hostile = ", ".join(str(attack["name"]) for attack in run.config.get("attacks") or ())
    kinds = [f"asynchronous ({own[0]})" if own[0] else None, f"private by {own[1]}" if own[1] else None]
    kinds += [f"attacks {hostile}" if hostile else None]
    parts = [algorithm, *kinds, f"model {model}" if model else None, *whose]
    parts += [f"seed {run.config['seed']}" if "seed" in run.config else None]
    return " · ".join(str(p) for p in parts if p)
