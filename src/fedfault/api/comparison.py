"""`Comparison`: runs beside one another, their differences with intervals as a table, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedfault.api.run import Run, warn_of_files
from fedfault.compare.page import format_comparison
from fedfault.compare.pairs import Comparison as Compared
from fedfault.compare.tables import tabulate_runs

if TYPE_CHECKING:
    import pandas as pd


class Comparison:
    """Two runs or more; the others are compared with the first. page: the file that shows it all."""

    page: Path
    runs: list[Run]

    def __init__(self, found: Compared, page: Path) -> None:
        self.found, self.page = found, page
        self.runs = [Run(warn_of_files(run).folder) for run in found.runs]

    @property
    def table(self) -> pd.DataFrame:
        """A row a run, as texts: the settings that differ, then how it ended."""
        import pandas as pd

        found = tabulate_runs(self.found)
        return pd.DataFrame(found.rows, columns=list(found.columns)).set_index("run")

    @property
    def differences(self) -> pd.DataFrame:
        """A row for each other run and unit of pairing (`clients`, `topics`): final loss minus that of the first run.

        `mean` with its 95 % interval from `low` to `high`, absent where there is none; `n` units; `why_not` in place of
        numbers where the two are not paired.
        """
        import pandas as pd

        rows = []
        for name, pair in zip(self.found.names[1:], self.found.pairs, strict=True):
            for over, paired in (("clients", pair.clients), ("topics", pair.topics)):
                low, high = paired.interval or (None, None)
                mean = paired.mean if paired.losses else None
                rows.append((name, over, mean, low, high, len(paired.losses), paired.why_not))
        columns = ["run", "over", "mean", "low", "high", "n", "why_not"]
        return pd.DataFrame(rows, columns=columns).astype({"mean": float, "low": float, "high": float})

    def _repr_html_(self) -> str:
        return str(self.table._repr_html_()) + str(self.differences._repr_html_())

    def __repr__(self) -> str:
        """The comparison as the command line prints it."""
        return format_comparison(self.found)
