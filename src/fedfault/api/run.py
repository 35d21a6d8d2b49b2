"""`Run`: a run folder as an object, with its tables, its verdict and its trained model."""

from __future__ import annotations

import base64
import html
import logging
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfault.api.frames import describe_stop, tabulate_clients, tabulate_findings, tabulate_rounds
from fedfault.arguments import name_again, take_path, take_whole
from fedfault.errors import UserError, suggest
from fedfault.report.verdict import Verdict, read_verdict
from fedfault.runs.manifest import check_run
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from peft import PeftModel

_logger = logging.getLogger("fedfault.api")


class Run:
    """A run by its folder: finished, stopped or still under way. Everything is read when it is asked for.

    Raises `UserError` for a folder that holds no run, and, when asked, for damaged files and for what is not there yet.
    """

    def __init__(self, folder: Path | str) -> None:
        self._named = take_path(folder, "run folder")
        self._whole = self._named.absolute()
        check_run(self.folder)

    @property
    def folder(self) -> Path:
        """The folder as it was named, or its whole path where the working folder has changed since."""
        return name_again(self._named, self._whole)

    @cached_property
    def data(self) -> RunData:
        """The run as it was recorded when this was first asked for; `reload` reads it again.

        What a reader should know of the files, such as records that were changed, is logged as a warning of `fedfault.api`.
        """
        return warn_of_files(read_run(self._whole))

    def reload(self) -> Run:
        """Return the run as it is now, which may have more rounds."""
        return Run(self.folder)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.data.name

    @property
    def status(self) -> str:
        """`begun`, `running`, `trained`, `stopped` by an alarm, `finished`, or `incomplete` without a manifest."""
        return check_run(self.folder)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration as plain values."""
        return self.data.config

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What made the run: versions, commit, command, fingerprints of model and data."""
        return self.data.manifest

    @property
    def rounds(self) -> pd.DataFrame:
        """A row a round: `loss`, `loss/SET`, metrics of labels, `tokens`, `bytes_up`, `bytes_down`, `seconds`, probes."""
        return tabulate_rounds(self.data)

    @property
    def clients(self) -> pd.DataFrame:
        """A row for every round and client that took part in it, by both numbers."""
        return tabulate_clients(self.data)

    @property
    def findings(self) -> pd.DataFrame:
        """A row for every finding of a detector; none where no detector found anything."""
        return tabulate_findings(self.data)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the run came to, as in metrics.json: `initial`, `final` and `best` scores, cost, fairness, verdict."""
        if "final" not in self.data.metrics:  # `diagnose` adds a verdict to any run
            raise describe_stop(self.folder, self.data, "metrics")
        return self.data.metrics

    @property
    def verdict(self) -> Verdict:
        """The state of the run in a word and a sentence, and how sure that is."""
        found = read_verdict(self.data)
        if found is None:
            raise describe_stop(self.folder, self.data, "verdict")
        return found

    def report(self) -> Path:
        """Write report.html and the plots again, and return the page."""
        from fedfault.report.render import render_report

        return render_report(self.folder)

    def plot(self, name: str = "loss_by_topic", file: Path | str | None = None, *, dpi: float = 150) -> Figure:
        """Return a figure of the report, and write it to a file if one is named: .pdf or .svg for a paper, or .png.

        dpi: of a PNG. Raises `UserError` for another name or ending, where there is no such folder, and for a `dpi` of which
        there is no picture.
        """
        from fedfault.report import gallery

        if str(name) not in gallery.FIGURES:
            raise UserError(f"no figure {name!r}{suggest(name, gallery.FIGURES)} (known: {', '.join(gallery.FIGURES)})")
        target = None if file is None else take_path(file, "file")
        if target is not None:
            gallery.check_place(target)
        figure = gallery.FIGURES[name](self.data)
        if figure is None:
            raise UserError(f"{self.folder} has nothing to show in the figure {name!r}")
        if target is not None:
            gallery.write_figure(figure, target, dpi)
        return figure

    def adapter(self, round: int | None = None) -> PeftModel:
        """Return the server's adapter as a PEFT model on its base: of the end, or after a round that has a checkpoint."""
        from fedfault.api.models import load_adapter

        if round is None:
            return load_adapter(self.data, self._find_adapter("adapter"))
        round = take_whole(round, "round")
        from fedfault.session.checkpoints import export_round

        with tempfile.TemporaryDirectory() as scratch:
            export_round(self.folder, round, Path(scratch))
            return load_adapter(self.data, Path(scratch))

    def model(self, client: int | None = None) -> Any:
        """Return the model that a client uses at the end, its own where clients have models of their own; else the server's.

        It is the base with the run's adapter, or with the layers that a `partial` run has trained. Of a run that learns
        labels it gives hidden states, and `head` is what makes labels of them.
        """
        from fedfault.api.models import load_adapter, load_trained, locate_personal

        folder = self._find_adapter("adapter" if client is None else locate_personal(self.data, client))
        load = load_trained if self.data.setting("model", "trainable") == "partial" else load_adapter
        return load(self.data, folder)

    def head(self, client: int | None = None) -> dict[str, Any]:
        """Return the head of a run that learns labels, as `model` chooses it: scores are `z @ weight.T + bias`.

        z is the hidden state that `pooling` names: `mean` over the tokens, `first`, `last` or the backbone's own `pooler`;
        `labels` are the names of the classes. The model card has a whole program. Raises `UserError` for other runs.
        """
        from fedfault.api.models import load_head, locate_personal

        place = "adapter" if client is None else locate_personal(self.data, client)
        return load_head(self.data, self._find_adapter(place))

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the adapter of a finished run, with its model card, to the Hugging Face Hub; returns its address.

        The repository is made where it is not there yet, `private` unless you say otherwise. token: one that may write; by
        default that of `hf auth login`. Raises `UserError` where the Hub takes nothing, with what to do.
        """
        from fedfault.api.hub import upload_adapter

        return upload_adapter(self._find_adapter("adapter"), self.name, repo_id, private=private, token=token)

    def _find_adapter(self, place: str) -> Path:
        folder = self.folder / place
        if not folder.is_dir():
            raise describe_stop(self.folder, self.data, "adapter")
        return folder

    def _repr_html_(self) -> str:
        """The verdict and the loss picture, for notebooks."""
        said = read_verdict(self.data)
        head = f"{self.status}, {self.data.rounds_done} rounds" if said is None else said.title
        lines = [f"<b>{html.escape(self.name)}</b>: {html.escape(head)}"]
        lines += [html.escape(note) for note in self.data.notes]
        lines += [] if said is None else [html.escape(said.sentence), f"<small>{html.escape(said.sure)}</small>"]
        return "<br>".join(lines) + self._draw_losses()

    def _draw_losses(self) -> str:
        from fedfault.report import gallery
        from fedfault.report.draw import render_png

        figure = gallery.FIGURES["loss_by_topic"](self.data) if self.data.records else None
        if figure is None:
            return ""
        picture = base64.b64encode(render_png(figure, 100)).decode()
        return f'<br><img alt="loss by topic" style="max-width:100%" src="data:image/png;base64,{picture}">'

    def __repr__(self) -> str:
        """The folder, how far the run got and, if there is one, its verdict; then what to know of its files."""
        said = read_verdict(self.data)
        head = f"Run({str(self.folder)!r}): {self.status}, {self.data.rounds_done} rounds"
        return "\n".join([head if said is None else f"{head}, {said.state}. {said.sentence}", *self.data.notes])


def warn_of_files(run: RunData) -> RunData:
    """Log what a reader should know of the files of a run, and return the run."""
    for note in run.notes:
        _logger.warning("%s: %s", run.folder, note)
    return run
