"""Thresholds of detectors from IID control runs: an alarm means that a run differs from runs that are known to be healthy.

The false-alarm rate is that of a whole run and of all detectors together. Each control gives every detector one number,
the largest value that would have raised an alarm; standardised with the mean and the standard deviation of the OTHER
controls, the largest over the detectors is S. A threshold lies as many standard deviations above the mean as the k-th
smallest S, k = ceil((m + 1)(1 - alpha)): if runs and controls are exchangeable, at most a share alpha of healthy runs
raises any alarm. That takes m >= 1 / alpha - 1 controls, 19 for 5 %; with fewer, the t quantile of a new S is used.

Reference: Westfall and Young, Resampling-Based Multiple Testing (1993); Vovk et al., Algorithmic Learning in a Random World
(2005) for the order statistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedfault.config.changes import flatten_settings
from fedfault.config.schema import Experiment
from fedfault.config.shorthand import name_components
from fedfault.errors import UserError
from fedfault.records import Detector, Records

ALPHA = 0.05  # share of healthy runs that may raise an alarm
LAST = 3  # readings that an alarm looks back on
NEEDED = 2  # of them above the threshold
PACKAGED = Path(__file__).parent / "calibrations"
MUST_AGREE = ("model.name", "model.max_length", "data.dataset.name", "federation.num_rounds")
MAY_DIFFER = (  # what controls are for: they say how a healthy run looks; or what cannot matter
    "experiment_name", "seed", "device", "logging.", "detectors.", "metrics.", "data.partition.", "federation.on_failure",
    "plugins",
)  # fmt: skip


@dataclass(frozen=True)
class Threshold:
    """The threshold of a detector's statistic, and where it comes from."""

    value: float
    controls: int  # runs behind it; 0 for a threshold of theory
    scale: Mapping[str, float] = field(default_factory=dict)  # what the statistic is measured against
    seen: tuple[float, ...] = ()  # the statistic of every control


@dataclass(frozen=True)
class Calibration:
    """Thresholds and where they come from."""

    name: str
    thresholds: Mapping[str, Threshold]
    controls: int
    alpha: float
    exact: bool  # the order statistic exists: the false-alarm rate holds without assumptions on the law
    config: Mapping[str, Any]  # of the controls, as resolved
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        from fedfault.storage import write_atomically

        write_atomically(file, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read what `save` wrote. Raises `UserError` for anything else."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            thresholds = {
                name: Threshold(**{**t, "seen": tuple(t["seen"])}) for name, t in found.pop("thresholds").items()
            }
            return cls(thresholds=thresholds, config=name_components(found.pop("config")), **found)
        except OSError as e:
            raise UserError(
                f"detectors.calibration={file}: {e.strerror}; give packaged, none or a file of `fedfault calibrate`"
            ) from e
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise UserError(
                f"detectors.calibration={file} is not a calibration ({e}); make one with `fedfault calibrate`"
            ) from e


def summarise_run(detector: Detector, scale: Mapping[str, float], records: Records) -> float | None:
    """The one number of a run that is calibrated: the largest value that two of three readings in a row reached.

    A threshold below it would have raised an alarm, one above it would not. None where there are fewer than two readings.
    """
    values = [r.statistic for r in detector.read(records, scale)]
    reached = [sorted(values[max(0, i - LAST + 1) : i + 1])[-NEEDED] for i in range(NEEDED - 1, len(values))]
    return max(reached, default=None)


def learn_thresholds(
    controls: Sequence[Records], known: Mapping[str, Detector], alpha: float = ALPHA
) -> tuple[dict[str, Threshold], bool]:
    """Thresholds of the known detectors from the records of control runs, and whether their false-alarm rate is exact.

    A detector that reads nothing finite in one of the controls stays without a threshold. Raises `UserError` for fewer than
    three controls.
    """
    m = len(controls)
    if m < 3:
        raise UserError(f"{m} control runs; a calibration needs 3 at least, and 19 for a false-alarm rate of 5 %")
    scales, seen = {}, {}
    for name, detector in known.items():
        scale = detector.learn_scale(controls)
        values = [summarise_run(detector, scale, records) for records in controls]
        if detector.calibrated and all(v is not None and math.isfinite(v) for v in values):
            scales[name], seen[name] = scale, np.array(values)
    exact = m >= 1 / alpha - 1 - 1e-9
    if not seen:
        return {}, exact
    z = np.array([_standardise(values, known[name].min_std) for name, values in seen.items()])  # (D, m)
    S = np.sort(z.max(axis=0))
    if exact:
        cut = float(S[math.ceil((m + 1) * (1 - alpha)) - 1])
    else:
        from scipy.stats import t

        cut = float(S.mean() + t.ppf(1 - alpha, m - 1) * S.std(ddof=1) * math.sqrt(1 + 1 / m))
    thresholds = {
        name: Threshold(float(v.mean() + cut * _widen_std(v, known[name].min_std)), m, scales[name], tuple(v.tolist()))
        for name, v in seen.items()
    }
    return thresholds, exact


def _widen_std(values: np.ndarray, least: float) -> float:
    """The standard deviation of values (m,), with `least` added in quadrature, so that it is never zero."""
    return math.hypot(float(values.std(ddof=1)), least)


def _standardise(values: np.ndarray, least: float) -> np.ndarray:
    """Every value in standard deviations from the mean of the others, (m,)."""
    rest = [np.delete(values, i) for i in range(len(values))]
    return np.array([(v - r.mean()) / _widen_std(r, least) for v, r in zip(values, rest, strict=True)])


def choose_calibration(wanted: str, config: Mapping[str, Any]) -> tuple[Calibration | None, list[str]]:
    """The calibration for a run of this resolved configuration, and the settings in which its controls differ.

    wanted: `none`, `packaged` (the one that differs least; None where none is of the same model, data and length), or a
    file. Raises `UserError` for a file of another model, data set or number of rounds.
    """
    if wanted == "none":
        return None, []
    if wanted != "packaged":
        found = Calibration.load(Path(wanted).expanduser())
        wrong, differs = compare_settings(found.config, config)
        if wrong:
            raise UserError(f"detectors.calibration={wanted} is for other runs: it differs in {', '.join(wrong)}")
        return found, differs
    fitting = []
    for file in sorted(PACKAGED.glob("*.json")):
        found = Calibration.load(file)
        wrong, differs = compare_settings(found.config, config)
        if not wrong:
            fitting.append((found, differs))
    return min(fitting, key=lambda f: (len(f[1]), f[0].name), default=(None, []))


def compare_settings(controls: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Find settings that have to agree and do not, and others that differ: `key=value of the run (value of the controls)`.

    A setting that one of them lacks has its default: controls may be older than a setting.
    """
    usual = flatten_settings(Experiment().model_dump())
    ours, theirs = ({**usual, **flatten_settings(values)} for values in (run, controls))
    unequal = [
        (key, f"{key}={ours.get(key)} ({theirs.get(key)})")
        for key in dict.fromkeys([*theirs, *ours])
        if ours.get(key) != theirs.get(key) and not key.startswith(MAY_DIFFER)
    ]
    return [text for key, text in unequal if key in MUST_AGREE], [
        text for key, text in unequal if key not in MUST_AGREE
    ]
