"""Run the detectors on a run while it goes on, or on an old one: findings.jsonl and the verdict in metrics.json."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from fedfault.config.changes import flatten_settings
from fedfault.config.files import nest_settings
from fedfault.diagnosis.calibration import choose_calibration, compare_controls
from fedfault.diagnosis.detection import Detection
from fedfault.diagnosis.verdict import judge_detection
from fedfault.errors import explain_os_error
from fedfault.plugins import choose_source
from fedfault.records import Finding, Records
from fedfault.registry import activate
from fedfault.runs.files import write_json, write_lines


class Watch:
    """The detectors of one run, with the calibration that its configuration asks for.

    Raises `UserError` for a calibration that cannot be read or does not fit.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        wanted: str | None = None,
        names: Sequence[str] = (),
        corpus: str = "",
        model: str = "",
    ) -> None:
        """config: as resolved, plain values; wanted: instead of its detectors.calibration.

        names: of the clients; corpus, model: the fingerprints of the data and of the backbone, where they are known.
        """
        self.names, self.corpus, self.model = names, corpus, model
        self.foreign = "monitor" in config  # another program trains
        wanted = wanted or str(config["detectors"]["calibration"])
        self.calibration, self.differs = choose_calibration(wanted, config, corpus, model)

    def go_on_with(self, config: Mapping[str, Any]) -> None:
        """Keep the thresholds of a run that goes on with other settings, and remember in which these differ."""
        if self.calibration is not None:
            wrong, differs = compare_controls(self.calibration, config, self.corpus, self.model)
            self.differs = [*wrong, *differs]

    def follow(self, records: Records = ()) -> Detection:
        """Follow the run from these records on."""
        return Detection(self.calibration, self.names, records, foreign=self.foreign)

    def judge(self, seen: Detection, ended: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The verdict on a run that was followed, see `judge_detection`.

        ended: the round and the reason of an end before the last one.
        """
        found = judge_detection(seen, self.differs)
        if ended is None:
            return found
        why = f"It ended after round {ended['round']}: {ended['reason']}."
        return {**found, "sentence": f"{found['sentence']} {why}", "ended": dict(ended)}


def write_findings(folder: Path, found: Sequence[Finding]) -> None:
    """Write findings.jsonl of a run folder."""
    write_lines(folder / "findings.jsonl", found)


def describe_finding(finding: Finding) -> str:
    """A finding as one line: its round, what happened, why it counts, and what to try first."""
    if finding.threshold is None:
        why = "no threshold needed"
    else:
        origin = f"{finding.controls} controls" if finding.controls else "by theory or convention"
        why = f"{finding.statistic:.3g} > {finding.threshold:.3g}, {origin}"
    name = finding.detector.replace("_", " ")
    return f"round {finding.round}: {finding.level}: {name}: {finding.sentence} ({why}); try: {finding.advice[0]}"


def diagnose_run(folder: Path, wanted: str | None = None, plugins: Sequence[str] = ()) -> tuple[str, bool]:
    """Judge a recorded run again, write findings.jsonl and the verdict in metrics.json; what was found, and if it was kept.

    wanted: instead of the configuration's detectors.calibration; plugins: with detectors beside those of the run's own. A
    folder that cannot be written is left as it is, and a line says so. Needs no torch. Raises `UserError` if the folder is
    not a run, a plug-in is missing or the calibration does not fit.
    """
    from fedfault.runs.read import read_run

    run = read_run(folder)
    activate([*(choose_source(one, folder) for one in run.config.get("plugins", ())), *plugins])
    corpus, model = (str(run.manifest.get(what, {}).get("fingerprint", "")) for what in ("corpus", "model"))
    watch = Watch({"detectors": {"calibration": "packaged"}, **run.config}, wanted, run.client_names, corpus, model)
    if past := run.manifest.get("abandoned"):  # what the run has changed by itself
        made = [{key: new for key, (_, new) in one["changes"].items()} for one in past]
        changed = reduce(operator.or_, made, flatten_settings(run.config))
        watch.go_on_with(nest_settings({tuple(key.split(".")): value for key, value in changed.items()}))
    seen = watch.follow(run.records)
    found = watch.judge(seen, run.manifest.get("ended"))
    told = [f"{run.name}: {note}" for note in run.notes]
    told += [f"{run.name}: {found['state']}. {found['sentence']}", found["sure"], *map(describe_finding, seen.findings)]
    kept = True
    try:
        write_findings(folder, seen.findings)
        write_json(folder / "metrics.json", {**run.metrics, "verdict": found})
    except OSError as e:
        kept = False
        told.append(f"the run keeps its old verdict, as this one cannot be written: {explain_os_error(e)}")
    return "\n".join(told), kept
