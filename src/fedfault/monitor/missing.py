"""Which detectors have nothing to read in a monitored run, and what each would need. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from fedfault.diagnosis.calibration import Calibration
from fedfault.diagnosis.detection import build_detectors, choose_threshold
from fedfault.errors import join_names
from fedfault.records import Records, is_recorded

FILES = "the adapters of clients, see `fedfault diagnose --adapters`"
AVERAGE = ("average_total", "average_split", "average_step")
ARGUMENTS = {  # what a detector reads -> what to give to `Monitor.log`; other names are those of probes
    "score/validation": "loss=",
    "score/general": "general_loss=",
    "score/client with se": "client_losses= with each client's losses example by example",
    "update_norm": "updates= or products=",
    "server_norm": "server_update=",
    "drift_between": "gradients=",
    "drift_within": "gradients=",
    "client/gradient_norm": "gradients=",
    **dict.fromkeys(("kept_apart", "spread_growth", "chained", "chained_p", "frozen_moved", "scale_ratio"), FILES),
    **dict.fromkeys(AVERAGE, "updates= and server_update= with all their numbers"),
}
OPTIONS = {  # what a detector reads -> what to give to `fedfault diagnose`
    "score/validation": "--csv with `loss`",
    "score/general": "--csv with `general_loss`",
    "update_norm": "--adapters from the first round on",
    "server_norm": "the server's adapters",
    **dict.fromkeys(("kept_apart", "spread_growth"), "--adapters of two rounds with the same clients"),
    **dict.fromkeys(("chained", "chained_p"), "--adapters of three clients"),
    **dict.fromkeys(("frozen_moved", "scale_ratio"), "--adapters"),
    **dict.fromkeys(AVERAGE, "the server's adapters before and after a round"),
}
ELSE = "what only a Monitor in the loop can be told"


def explain_missing(
    records: Records, calibration: Calibration | None, known: Mapping[str, str] = ARGUMENTS, other: str = ""
) -> str:
    """Name the detectors that are switched off, with what they would need; empty where there are none.

    known: what a detector reads -> what gives it; other: what gives anything else, by default the probe of that name.
    """
    silent: dict[str, list[str]] = {}
    for name, detector in build_detectors().items():
        missing = [what for what in detector.reads if not is_recorded(what, records)]
        needs = list(dict.fromkeys(known.get(what, other or f"the probe {what}") for what in missing))
        if not missing and choose_threshold(name, detector, calibration) is None:
            needs = ["calibration="]
        if needs:
            silent.setdefault(" and ".join(needs), []).append(name)
    return "; ".join(f"{join_names(names)} (needs {needs})" for needs, names in silent.items())
