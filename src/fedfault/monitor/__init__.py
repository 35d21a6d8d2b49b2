"""Detectors for other people's runs: a loop of one's own, Flower, a Trainer, files. Needs no torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedfault.arguments import take_list
from fedfault.errors import UserError
from fedfault.storage import expand_home

if TYPE_CHECKING:
    from fedfault.monitor.measured import Round
    from fedfault.records import Finding, RoundRecord

Numbers = Any  # an array, a tensor on the CPU or (nested) sequences of numbers
Losses = Any  # one number, or the losses of the examples one by one
_logger = logging.getLogger("fedfault.monitor")


class Monitor:
    """Watches a run that another program makes: `log` every round, `finish` at the end.

    >>> import tempfile
    >>> place = tempfile.TemporaryDirectory()
    >>> with Monitor("mine", results_dir=place.name) as monitor:
    ...     for round, loss in enumerate([4.0, 3.0, 3.4, 3.5]):
    ...         for finding in monitor.log(round, loss=loss):
    ...             print(finding.round, finding.level, finding.sentence)
    2 suspect the validation loss is 0.40 nats above its best value and does not come back
    3 alarm the validation loss is 0.50 nats above its best value and does not come back
    >>> monitor.verdict["state"]
    'failed'
    >>> place.cleanup()

    The folder RESULTS_DIR/NAME is a run folder: `fedfault report`, `diagnose`, `compare` and `runs` read it, also while the
    run goes on. Thresholds are conventions until `calibrate` has learned them from IID runs that were logged the same way.
    """

    folder: Path
    verdict: Mapping[str, Any]  # as metrics.json keeps it: state, sentence, sure, ...

    def __init__(
        self,
        name: str,
        *,
        results_dir: Path | str = "results",
        calibration: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
        plugins: Sequence[str] = (),
        overwrite: bool = False,
        say: Callable[[str], object] = _logger.warning,
    ) -> None:
        """Make the run folder.

        calibration: the file that `calibrate` wrote. settings: those of the run, as the report shows and comparisons compare
        them; plain values. plugins: files with detectors of your own. overwrite: a monitored run of that name is replaced.
        say: where notes go, by default the logger `fedfault.monitor`. Raises `UserError` for a folder that is there, and for
        a calibration of other runs.
        """
        from fedfault.monitor.folder import MonitoredFolder, describe_run
        from fedfault.registry import activate

        plugins = take_list(plugins)
        activate(plugins)
        config = describe_run(name, settings or {}, calibration, plugins)
        self._round: int | None = None  # the last one
        self._memory: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._config, self._watch, self._say = config, _start_watch(config), say
        self._seen = self._watch.follow()
        self._first: (
            list[RoundRecord] | None
        ) = []  # until it is told which detectors they leave without anything to read
        self._folder = MonitoredFolder(expand_home(results_dir, "results_dir") / name, config, overwrite=overwrite)
        self.folder, self.verdict = self._folder.path, {}

    def log(
        self,
        round: int,
        *,
        loss: Losses | None = None,
        general_loss: Losses | None = None,
        client_losses: Mapping[int, Losses] | None = None,
        updates: Numbers | None = None,
        products: Numbers | None = None,
        server_update: Numbers | None = None,
        gradients: tuple[Numbers, Numbers] | None = None,
        clients: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        train_losses: Sequence[float] | None = None,
        steps: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        probes: Mapping[str, float] | None = None,
    ) -> list[Finding]:
        """Record a round, and return what the detectors find in it; round 0 is the model before training.

        All is optional. A loss is a number, or the losses of the held-out examples one by one, in the same order every
        round: then its change since the first round has a standard error.

        loss: of the server's model on held-out data of the mixture, in nats per token (or per example); general_loss: on
        text that is not the federation's; client_losses: on the held-out data of clients, by client.
        updates: what every client has changed, (K, P) without frozen parameters, or products: the inner products (K, K) of
        these; server_update: what the server has changed, (P,), or its norm. gradients: two estimates (K, P) of each
        client's gradient where the round began, on two disjoint halves of some of its examples.
        clients: who these K are, by number, else 0 to K - 1; weights: their shares in the average, else equal;
        train_losses, steps, tokens: (K,) of each in this round. probes: other numbers by the names of docs/metrics.md.

        Rounds count upwards; one that is left out has nothing measured, and steps are no rounds. A client whose update or
        gradient is not finite is left out of what is measured, and an event of the round names it; with a server's update
        that is not finite no loss counts, and the run has failed. Threads may share a monitor. Raises `UserError`, and
        records nothing, for arrays that do not fit, what is no number and a round that was logged.
        """
        from fedfault.monitor.measured import Round

        given = Round(
            loss, general_loss, {} if client_losses is None else client_losses, updates, products, server_update, gradients,
            clients, weights, train_losses, steps, tokens, {} if probes is None else probes,
        )  # fmt: skip
        return self._log(round, given)

    def _log(self, round: int, given: Round) -> list[Finding]:
        """Record a round of which more may be known than `log` takes, such as events."""
        from fedfault.monitor.measured import measure_round

        if given.updates is not None and given.products is not None:
            raise UserError("updates and products are two ways to say the same: give one of them")
        if self._folder.finished:
            raise UserError(f"{self.folder} is finished; a new run needs a new Monitor")
        with self._lock:
            record, memory = measure_round(round, given, self._memory, self._round)
            for event in record.events:
                self._say(f"{self.folder.name}: round {record.round}: {event}")
            found = self._add(record)
            self._memory = memory
        return found

    def _add(self, record: RoundRecord) -> list[Finding]:
        from fedfault.monitor.folder import fill_rounds

        new = fill_rounds(self._round, record)
        self._folder.append(new)
        found = [finding for one in new for finding in self._seen.add(one)]
        self._round = record.round
        self.verdict = self._watch.judge(self._seen)
        self._folder.write_findings(self._seen.findings, self.verdict)
        if self._first is not None:
            self._first += new
            if record.round > 0:
                self._tell_missing(self._first)
                self._first = None
        return found

    def _tell_missing(self, records: Sequence[RoundRecord]) -> None:
        """Say once which detectors have nothing to read, and what each would need."""
        from fedfault.monitor.missing import explain_missing

        if missing := explain_missing(records, self._watch.calibration):
            self._say(f"{self.folder.name}: detectors that are switched off: {missing}")

    def finish(self) -> Mapping[str, Any]:
        """End the run and return its verdict: `state`, `since`, `sentence`, `sure` and what else metrics.json has.

        Raises `UserError` where no round was logged. A second call changes nothing.
        """
        if not self._folder.finished:
            if self._round is None:
                raise UserError(
                    f"{self.folder}: no round was logged, so there is nothing to judge; call `log` every round"
                )
            self._config["monitor"]["rounds"] = self._round
            records, findings = self._folder.read_records(), self._seen.findings
            self._watch = _start_watch(self._config)
            self.verdict = self._watch.judge(self._watch.follow(records))
            self._folder.finish(self._config, records, findings, self.verdict)
        return self.verdict

    def __enter__(self) -> Monitor:
        """Return the monitor, which is finished at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the run; one that an error ended stays unfinished, with all rounds that were logged."""
        if kind is None:
            self.finish()

    @staticmethod
    def calibrate(runs: Sequence[Path | str], out: Path | str) -> Path:
        """Learn the thresholds of all detectors from runs with IID data that were logged the same way; returns the file.

        runs: their folders; 3 at least, and 19 for a false-alarm rate of 5 %. Raises `UserError` where they differ in length
        or in settings other than the seed, and where they fail or learn nothing themselves.
        """
        from fedfault.monitor.controls import learn_from

        return learn_from([Path(run) for run in take_list(runs)], Path(out))


def _start_watch(config: Mapping[str, Any]) -> Any:
    from fedfault.diagnosis.watch import Watch

    return Watch(config)
