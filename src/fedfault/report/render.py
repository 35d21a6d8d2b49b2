"""`render` writes the page; everything it shows is inside the one file."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedfault.report import summary
from fedfault.report.data import RunData, read

if TYPE_CHECKING:
    from fedfault.report.draw import Plot

__all__ = ["RunData", "read", "render"]


class Caption(NamedTuple):
    """Heading of a figure, how to read it, and what to say when there is nothing to draw."""

    title: str
    text: str
    missing: str


CAPTIONS = {
    "loss_by_topic": Caption(
        "Loss by topic",
        "Thick line: validation loss of the mixture. Thin lines: each topic. The cells below show the clients that "
        "trained in a round, by number, in the colour of the topic they mostly hold; a marker on a line says that its "
        "topic was among them. "
        "A loss that jumps when its topic was absent, while the mixture falls, is one topic's gain at another's cost.",
        "No validation or topic scores were recorded.",
    ),
    "clients": Caption(
        "Clients",
        "Loss of the global model on the documents that each client kept back. A fan that opens means that the model "
        "serves some clients at the cost of others. Best and worst are not the same client in every round.",
        "Clients were not scored on their own held-out documents.",
    ),
    "general": Caption(
        "General English",
        "Loss on general text minus its value before training: above zero, the model forgets. When the text was "
        "sampled from the untrained model itself, the rise estimates KL(base || model) in nats per token.",
        "Forgetting cannot be shown: general English was not measured before training.",
    ),
    "divergence": Caption(
        "Disagreement between clients",
        "First panel: mean distance of the clients' updates from their mean, relative to its length; 0 is full "
        "agreement. Second panel: their mean cosine to it; 1 is the same direction, 0 is unrelated.",
        "No update divergence was recorded.",
    ),
    "participation": Caption(
        "Participation",
        "A filled cell is a client that trained in that round; its colour is the training loss. "
        "Clients that mostly hold the same topic are next to each other.",
        "No client has trained yet.",
    ),
    "split": Caption(
        "Who holds what",
        "Colour: the share of the client's documents that belongs to the topic; numbers count documents. "
        "Bars: target tokens, by which clients are weighted unless the setup says otherwise.",
        "The run folder does not say how documents were split.",
    ),
    "traffic": Caption(
        "Cost",
        "Bytes as they would be serialised, clients to server (up) and server to clients (down), and wall time of each "
        "round on this machine, which simulates all clients.",
        "Neither traffic nor time was recorded.",
    ),
}


def render(folder: Path | str, dpi: float = 150) -> Path:
    """Write `report.html`, one self-contained page, and `plots/*.png` into the run folder; returns the page's path.

    Raises UserError if the folder is not a run folder or a file is corrupt; then nothing is written.
    """
    from fedfault import plots

    run = read(folder)
    figures = []
    if run.records:
        plots.save_all(run, run.folder / "plots", dpi)
        figures = [_figure(run, name, plot) for name, plot in plots.FIGURES.items()]
    page = run.folder / "report.html"
    part = page.with_name(f".report.html.{os.getpid()}.part")
    part.write_text(_page(run, figures), encoding="utf-8")
    os.replace(part, page)
    return page


def _figure(run: RunData, name: str, plot: Plot) -> dict[str, Any]:
    """A figure for wide and narrow pages, in both themes, as data URIs; no images when there is nothing to show."""
    from fedfault.report.draw import DARK, LIGHT, svg

    images = {}
    for theme in (LIGHT, DARK):
        for narrow in (False, True):
            figure = plot(run, theme, narrow)
            if figure is not None:
                code = base64.b64encode(svg(figure)).decode()
                width, height = (round(96 * inches) for inches in figure.get_size_inches())
                place = f"{theme.name}_{'narrow' if narrow else 'wide'}"
                images[place] = {"src": f"data:image/svg+xml;base64,{code}", "width": width, "height": height}
    caption = CAPTIONS[name]
    more = {"sentences": summary.split(run), "table": summary.skew(run.heterogeneity)} if name == "split" else {}
    return {"name": name, "images": images, "alt": _alt(run, name), **caption._asdict(), **more}


def _alt(run: RunData, name: str) -> str:
    """What a reader who does not see the figure should know; the tables hold the numbers."""
    clients, topics = summary.many(run.num_clients, "client"), summary.many(len(run.topics), "topic")
    about = {
        "loss_by_topic": f"Line chart of loss per round for the mixture and {topics}. "
        + " ".join(summary.headline(run)[:2]),
        "clients": "Line chart of the best, median and worst held-out loss of the clients per round.",
        "general": "Line chart of the change of loss on general English per round, ending at "
        f"{summary.number(summary.forgetting(run), '+.3f')} nats per token.",
        "divergence": "Two line charts per round: distance of client updates from their mean, and cosine to it.",
        "participation": f"Grid of {clients} by {summary.many(run.rounds_done, 'round')}: "
        "who trained, and with which training loss.",
        "split": f"Grid of {clients} by {topics}: documents held, with a bar for the tokens of each client.",
        "traffic": "Line chart of bytes moved since the start, and stacked bars of seconds per round.",
    }
    return about[name]


def _page(run: RunData, figures: list[dict[str, Any]]) -> str:
    import jinja2

    from fedfault.report.draw import DARK, LIGHT

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
        status=summary.status(run),
        remarks=summary.remarks(run),
        sentences=summary.headline(run),
        tiles=summary.tiles(run),
        figures=figures,
        scores=summary.scores(run),
        clients=summary.clients(run),
        setup=summary.flat(run.config),
        provenance=summary.provenance(run),
        command=summary.command(run),
        version=f" {run.manifest['fedfault']}" if "fedfault" in run.manifest else "",
        light=LIGHT,
        dark=DARK,
    )


def _subtitle(run: RunData) -> str:
    """Algorithm, model, data and split in one line."""
    algorithm = run.setting("federation", "algorithm", "name") or run.setting("federation", "algorithm")
    model, data = run.setting("model", "name"), run.setting("data", "dataset", "name") or run.setting("data", "dataset")
    method = run.setting("data", "partition", "method")
    aggregation = run.setting("federation", "aggregation", "method")
    algorithm = f"{algorithm} with {aggregation}" if algorithm and aggregation else algorithm
    parts = [algorithm, f"model {model}" if model else None, f"data {data}" if data else None]
    parts += [f"split {method}" if method else None, f"seed {run.config['seed']}" if "seed" in run.config else None]
    return " · ".join(str(p) for p in parts if p)
