"""`Study`: the folder of a study as an object, with its cells, its answers and its tables for a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfault.api.run import Run
from fedfault.arguments import name_again, take_path
from fedfault.errors import UserError
from fedfault.report.words import Table
from fedfault.stats import mean_interval
from fedfault.studies.page import format_markdown, write_page
from fedfault.studies.paper import format_table
from fedfault.studies.results import COLUMNS, Results, format_answers, read_results, tabulate_answers, tabulate_cells

if TYPE_CHECKING:
    import pandas as pd


class Study:
    """A study by its folder, with the runs that are there. failures: by the name of a run, why it failed in this call."""

    failures: dict[str, str]

    def __init__(self, folder: Path | str, failures: Mapping[str, str] | None = None) -> None:
        self._named = take_path(folder, "study folder")
        self._whole = self._named.absolute()
        self.failures = dict(failures or {})
        self.results  # noqa: B018 - a folder that is no study is refused here

    @property
    def folder(self) -> Path:
        """The folder as it was named, or its whole path where the working folder has changed since."""
        return name_again(self._named, self._whole)

    @cached_property
    def results(self) -> Results:
        """The study and its runs as they were recorded when this was first asked for."""
        return read_results(self._whole)

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that are there, by name."""
        return {name: Run(run.folder) for name, run in self.results.runs.items()}

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell: what was chosen on each axis, `runs` that are over, and the mean of each metric over its seeds.

        METRIC_low and METRIC_high are its 95 % interval by Student's t, absent for fewer than two seeds; with
        `seeds: auto` it misses somewhat more often than in 5 %. Losses are in nats per token.
        """
        import pandas as pd

        rows = [
            {**cell.choices, "runs": len(self.results.of(cell)), **self._measure(cell)}
            for cell in self.results.study.cells
        ]
        return pd.DataFrame(rows)

    def _measure(self, cell: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric in COLUMNS:
            if values := self.results.values(cell, metric):
                found[metric] = float(np.mean(values)) if all(map(math.isfinite, values)) else math.inf
                if (around := mean_interval(values)) is not None:
                    found[f"{metric}_low"], found[f"{metric}_high"] = around
        return found

    @property
    def answers(self) -> pd.DataFrame:
        """A row a hypothesis: its `verdict`, the decisive `difference` from `low` to `high`, what matters (`by`), and p."""
        import pandas as pd

        rows = []
        for a in self.results.answers:
            low, high = a.decisive.interval or (None, None)
            about = {"hypothesis": a.hypothesis.name, "verdict": a.verdict, "claim": a.hypothesis.claim}
            numbers = {"difference": a.decisive.mean, "low": low, "high": high, "by": a.hypothesis.by}
            rows.append({**about, "metric": a.hypothesis.metric, **numbers, "p": a.p, "p_holm": a.p_holm})
        columns = ["hypothesis", "verdict", "claim", "metric", "difference", "low", "high", "by", "p", "p_holm"]
        return pd.DataFrame(rows, columns=columns)

    def table(self, what: str = "cells", *, latex: bool = False) -> str:
        """Return the table of `cells` or of `answers` as the report has it, in Markdown or as a longtable of LaTeX."""
        made = {"cells": tabulate_cells, "answers": tabulate_answers}
        if str(what) not in made:
            raise UserError(f"no table {what!r}; there are cells and answers")
        found: Table | None = made[what](self.results)
        if found is None:
            raise UserError(f"{self.folder} states no hypotheses, so that there are no answers; table() has the cells")
        return format_table(found) if latex else format_markdown(found)

    def report(self) -> Path:
        """Write report.html, report.md and report.tex again, and return the page."""
        return write_page(self.folder)[1]

    def _repr_html_(self) -> str:
        parts = [self.answers._repr_html_()] if self.results.answers else []
        return "".join(map(str, [*parts, self.cells._repr_html_()]))

    def __repr__(self) -> str:
        """The answers as the command line prints them."""
        return format_answers(self.results)
