"""`render` writes the page; everything it shows is inside the one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedfault.report import summary, tables, timing, verdict
from fedfault.report.captions import alt, caption
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.storage import write_atomically


def render(folder: Path | str, dpi: float = 150) -> Path:
    """Write `report.html`, one self-contained page, and `plots/*.png` into the run folder; returns the page's path.

    Raises UserError if the folder is not a run folder or a file is corrupt; then nothing is written.
    """
    run = read_run(folder)
    figures = _figures(run, dpi) if run.records else []
    page = run.folder / "report.html"
    write_atomically(page, _page(run, figures))
    return page


def _figures(run: RunData, dpi: float) -> list[dict[str, Any]]:
    """The figures that have something to show, as parts of the page; each also becomes `plots/NAME.png`."""
    from fedfault.report import gallery
    from fedfault.report.inline import inline

    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    more: dict[str, dict[str, Any]] = {
        "split": {"sentences": summary.split(run), "table": summary.skew(run.heterogeneity), "note": CHANCE},
        "clock": {"sentences": timing.sentences(run), "table": timing.tiers(run), "note": TIERS},
        "fairness": {"table": tables.fairness(run), "note": ""},
    }
    found = []
    for name, plot in gallery.FIGURES.items():
        wide, drawings = inline(run, name, plot)
        if wide is not None:
            gallery.write(wide, folder / f"{name}.png", dpi)
            about = {"name": name, "drawings": drawings, "alt": alt(run, name)}
            found.append({**about, **caption(run, name)._asdict(), **more.get(name, {})})
    return found


CHANCE = (
    "By chance: the mean over random deals of the same documents to clients of the same sizes; z counts its standard "
    "deviations."
)
TIERS = "How often clients of each tier were drawn and what became of them; mean rank of those that had work."


def _page(run: RunData, figures: list[dict[str, Any]]) -> str:
    import jinja2

    from fedfault.report.theme import DARK, LIGHT

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        run=run,
        subtitle=_subtitle(run),
        verdict=verdict.verdict(run),
        findings=verdict.findings(run),
        status=summary.status(run),
        remarks=summary.remarks(run),
        sentences=summary.headline(run),
        tiles=summary.tiles(run),
        figures=figures,
        glyphs={
            id: path for figure in figures for drawing in figure["drawings"] for id, path in drawing.glyphs.items()
        },
        scores=tables.scores(run),
        clients=tables.clients(run),
        setup=tables.flat(run.config),
        provenance=tables.provenance(run),
        command=tables.command(run),
        version=f" {run.manifest['fedfault']}" if "fedfault" in run.manifest else "",
        light=LIGHT.variables,
        dark=DARK.variables,
    )


def _subtitle(run: RunData) -> str:
    """Algorithm, model, data and split in one line."""
    algorithm = run.setting("federation", "algorithm", "name") or run.setting("federation", "algorithm")
    model, data = run.setting("model", "name"), run.setting("data", "dataset", "name") or run.setting("data", "dataset")
    method = run.setting("data", "partition", "name")
    aggregation = run.setting("federation", "aggregation", "name")
    algorithm = f"{algorithm} with {aggregation}" if algorithm and aggregation else algorithm
    whose = [f"data {data}" if data else None, f"split {method}" if method else None]
    if run.manifest.get("data_elsewhere"):  # the configuration's is for validation
        whose = ["the clients' own data"]
    parts = [algorithm, f"model {model}" if model else None, *whose]
    parts += [f"seed {run.config['seed']}" if "seed" in run.config else None]
    return " · ".join(str(p) for p in parts if p)
