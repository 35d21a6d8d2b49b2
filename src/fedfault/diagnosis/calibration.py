"""Thresholds of detectors from IID control runs: an alarm means that a run differs from runs that are known to be healthy.

The false-alarm rate is that of a whole run and of all detectors together. Each control gives every detector one number,
the largest value that would have raised an alarm. It is left out in turn: read against the scale, and standardised with the
mean and the standard deviation, of the OTHER controls, as a new run will be by all of them. The largest over the detectors
is S. A threshold lies as many standard deviations above the mean as the k-th smallest S, k = ceil((m + 1)(1 - alpha)).

Were S of a new run exchangeable with that of the controls, at most a share alpha of healthy runs would raise any alarm. It
nearly is: a control is judged by m - 1 others, a new run by m. So the rate is about alpha, and simulations say how near it
is for 19, 39 and 99 controls (docs/metrics.md). It takes m >= 1 / alpha - 1 controls, 19 for 5 %; with fewer, the t quantile
of a new S is used.

Reference: Westfall and Young, Resampling-Based Multiple Testing (1993); Barber et al., Predictive inference with the
jackknife+, Ann. Statist. 49 (2021).
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
from fedfault.config.shorthand import CHOOSERS, name_components
from fedfault.errors import UserError
from fedfault.records import Detector, Records
from fedfault.registry import read_declarations
from fedfault.storage import cache_dir, expand_home, write_atomically

AUTO = "auto"  # detectors.calibration: the one that fits, made on this machine if there is none
BROKEN = 0.1  # share of controls that may fail or learn nothing; with more they do not say what healthy is
ALPHA = 0.05  # share of healthy runs that may raise an alarm
LAST = 3  # readings that an alarm looks back on
NEEDED = 2  # of them above the threshold
PACKAGED = Path(__file__).parent / "calibrations"
MUST_AGREE = (  # a healthy run looks otherwise where these are others; beginnings of keys
    "model.name", "model.max_length", "data.dataset.", "data.path", "data.task_type", "data.text_columns",
    "data.topic_column", "data.max_samples", "data.held_out", "federation.num_rounds", "federation.centralised",
    "federation.total_clients", "federation.algorithm.name", "federation.aggregation.name", "federation.scheduler.",
    "training.loss_on", "model.chat_template", "model.trainable", "model.lora.r_", "model.lora.target_modules",
    "evaluation.every", "evaluation.max_blocks", "evaluation.general", "monitor.source",
)  # fmt: skip
SCHEDULE = (  # and `auto` makes new controls where these are others
    "federation.clients_per_round", "federation.participation_rate", "training.local_", "training.batch_size",
    "model.lora.", "federation.selection.", "federation.asynchronous", "federation.algorithm.unbiased", "tiers",
    "deadline.",
)  # fmt: skip
PARTITION = "data.partition."
MAY_DIFFER = (  # what controls are for: they say how a healthy run looks; or what cannot matter
    "experiment_name", "seed", "device", "logging.", "detectors.", "metrics.", PARTITION, "federation.on_failure",
    "plugins", "attacks", "personalise", "privacy.secret", "monitor.settings.seed",
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
    exact: bool  # the order statistic exists: the false-alarm rate is about alpha whatever the law
    config: Mapping[str, Any]  # of the controls, as resolved
    provenance: Mapping[str, Any] = field(default_factory=dict)
    same_partition: bool = False  # whether controls are honest runs of the partition; else their clients are IID

    def save(self, file: Path) -> None:
        """Write it as JSON, in the place of another calibration and of nothing else."""
        check_replaceable(file)
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
                f"detectors.calibration={file}: {e.strerror}; give packaged, auto, none or a file of `fedfault calibrate`"
            ) from e
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise UserError(
                f"detectors.calibration={file} is not a calibration ({e}); make one with `fedfault calibrate`"
            ) from e


def check_replaceable(file: Path) -> None:
    """Raise `UserError` where thresholds would replace a file that is no calibration."""
    try:
        if file.exists():
            Calibration.load(file)
    except UserError as e:
        raise UserError(
            f"{file} exists and is not a calibration that could be replaced; name another file for the thresholds or "
            "remove it"
        ) from e


def find_reached(detector: Detector, scale: Mapping[str, float], records: Records) -> float | None:
    """The one number of a run that is calibrated: the largest value that two of three readings in a row reached.

    A threshold below it would have raised an alarm, one above it would not. None where there are fewer than two readings.
    """
    values = [r.statistic for r in detector.read(records, scale)]
    reached = [sorted(values[max(0, i - LAST + 1) : i + 1])[-NEEDED] for i in range(NEEDED - 1, len(values))]
    return max(reached, default=None)


def learn_thresholds(
    controls: Sequence[Records],
    known: Mapping[str, Detector],
    alpha: float = ALPHA,
    *,
    same_partition: bool = False,
) -> tuple[dict[str, Threshold], bool]:
    """Thresholds of the known detectors from the records of control runs, and whether they are an order statistic.

    A detector that reads nothing finite in one of the controls stays without a threshold, and so does one that is
    `of_partition` where the controls are not of the same partition. Raises `UserError` for fewer than three controls.
    """
    m = len(controls)
    if m < 3:
        raise UserError(f"{m} control runs; a calibration needs 3 at least, and 19 for a false-alarm rate of 5 %")
    scales, seen, z = {}, {}, []
    for name, detector in known.items():
        scale = detector.learn_scale(controls)
        fits = detector.calibrated and (same_partition or not detector.of_partition)
        values = _summarise_all(detector, scale, controls) if fits else None
        left_out = None if values is None else _leave_out(detector, scale, controls, values)
        if values is not None and left_out is not None:
            scales[name], seen[name] = scale, values
            z.append(left_out)
    exact = m >= 1 / alpha - 1 - 1e-9
    if not seen:
        return {}, exact
    S = np.sort(np.max(z, axis=0))  # (m,)
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


def _summarise_all(detector: Detector, scale: Mapping[str, float], controls: Sequence[Records]) -> np.ndarray | None:
    """The number of every control, (m,); None where one has none, or one that is not finite."""
    values = [find_reached(detector, scale, records) for records in controls]
    return np.array(values) if all(v is not None and math.isfinite(v) for v in values) else None


def _leave_out(
    detector: Detector, scale: Mapping[str, float], controls: Sequence[Records], values: np.ndarray
) -> np.ndarray | None:
    """Every control in standard deviations from the mean of the others, by their scale, (m,); None where one has none.

    values: (m,), by the scale of all controls.
    """
    z = np.empty(len(values))
    for i in range(len(values)):
        own = detector.learn_scale([*controls[:i], *controls[i + 1 :]])
        read = values if own == scale else _summarise_all(detector, own, controls)
        if read is None:
            return None
        rest = np.delete(read, i)
        z[i] = (read[i] - rest.mean()) / _widen_std(rest, detector.min_std)
    return z


def choose_calibration(
    wanted: str, config: Mapping[str, Any], corpus: str = "", model: str = ""
) -> tuple[Calibration | None, list[str]]:
    """The calibration for a run of this resolved configuration, and the settings in which its controls differ.

    wanted: `none`; `packaged` (the one that differs least; None where none is of the same model, data, algorithm and
    rounds); `auto`, the same of those that are packaged and those in the cache, with the same cohorts and local work too; or
    a file. `corpus` and `model` are the fingerprints of the run's data and backbone, empty before they are read. Raises
    `UserError` for a file of other data, another algorithm and so on.
    """
    if wanted == "none":
        return None, []
    if wanted not in ("packaged", AUTO):
        found = Calibration.load(expand_home(wanted, "detectors.calibration"))
        wrong, differs = compare_controls(found, config, corpus, model)
        if wrong:
            raise UserError(
                f"detectors.calibration={wanted} is for other runs: it differs in {', '.join(wrong)}; "
                f"detectors.calibration={AUTO} makes one for these"
            )
        return found, differs
    files = sorted(PACKAGED.glob("*.json")) + (sorted(kept_calibrations().glob("*.json")) if wanted == AUTO else [])
    fitting = []
    for file in files:
        found = Calibration.load(file)
        wrong, differs = compare_controls(found, config, corpus, model)
        wrong += [text for text in differs if wanted == AUTO and text.startswith(SCHEDULE)]
        if not wrong:
            fitting.append((found, differs))
    return min(fitting, key=lambda f: (len(f[1]), f[0].name), default=(None, []))


def find_obstacles(config: Mapping[str, Any], corpus: str = "") -> tuple[str, list[str]]:
    """The packaged calibration that fits a run best, by name, and the settings that keep it from serving that run."""
    found = [Calibration.load(file) for file in sorted(PACKAGED.glob("*.json"))]
    return min(((c.name, compare_controls(c, config, corpus)[0]) for c in found), key=lambda pair: len(pair[1]))


def kept_calibrations() -> Path:
    """The folder of calibrations that were made on this machine."""
    return cache_dir() / "calibrations"


def compare_controls(
    found: Calibration, config: Mapping[str, Any], corpus: str = "", model: str = ""
) -> tuple[list[str], list[str]]:
    """Find as `compare_settings` does how controls differ from a run; the user's own data are told by their fingerprint.

    So is a model in a folder, whose content may change. What has a name of its own (`registers`) is the same data by that
    name, although another version may read a little else.
    """
    wrong, differs = compare_settings(found.config, config, same_partition=found.same_partition)
    before = str(found.provenance.get("model", ""))
    name = str((config.get("model") or {}).get("name", ""))
    if "" not in (before, model) and before != model and expand_home(name, "model.name").is_dir():
        wrong = [*wrong, f"the model in {name} (fingerprints {model} and {before})"]
    theirs = str(found.provenance.get("corpus", ""))
    if not (config.get("data") or {}).get("path") or not theirs:
        return wrong, differs
    wrong = [text for text in wrong if not text.startswith("data.path=")]
    return wrong + ([f"the data (fingerprints {corpus} and {theirs})"] if corpus not in ("", theirs) else []), differs


def compare_settings(
    controls: Mapping[str, Any], run: Mapping[str, Any], *, same_partition: bool = False
) -> tuple[list[str], list[str]]:
    """Find settings that have to agree and do not, and others that differ: `key=value of the run (value of the controls)`.

    A setting that one of them lacks has its default: controls may be older than a setting. same_partition: whether the
    controls are of one partition, which then has to agree.
    """
    may_differ = tuple(key for key in MAY_DIFFER if not (same_partition and key == PARTITION))
    must_agree = (*MUST_AGREE, PARTITION) if same_partition else MUST_AGREE
    usual = flatten_settings(Experiment().model_dump())
    ours, theirs = (
        {**usual, **_list_default_options(own), **own} for own in (flatten_settings(run), flatten_settings(controls))
    )
    unequal = [
        (key, f"{key}={ours.get(key)} ({theirs.get(key)})")
        for key in dict.fromkeys([*theirs, *ours])
        if ours.get(key) != theirs.get(key) and not key.startswith(may_differ)
    ]
    return [text for key, text in unequal if key.startswith(must_agree)], [
        text for key, text in unequal if not key.startswith(must_agree)
    ]


def _list_default_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the options of all components that these settings name, by dotted key."""
    found: dict[str, Any] = {}
    for key, kind in CHOOSERS.items():
        place = ".".join(key)
        declared = read_declarations(kind).get(str(settings.get(f"{place}.name")))
        found |= {f"{place}.{option}": value for option, value in (declared.defaults if declared else {}).items()}
    return found
