"""What was measured, as plain values without torch: rounds, clients, scores, bits per byte, findings, detectors, states."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from fedfault.errors import UserError

# The states that a verdict can say, from good to bad; see `diagnosis.verdict`
STATES = HEALTHY, NO_ALARM, UNJUDGED, UNLEARNED, DEGRADED, FAILED = (
    "healthy",
    "no alarm (not calibrated)",
    "not judged",
    "did not learn",
    "degraded",
    "failed",
)

RIGHT = ("exact_match", "rouge_l", "choice")  # how right answers are
ANSWERS = (*RIGHT, "one_answer")  # all metrics of answers, beside which a loss has its perplexity


@dataclass(frozen=True)
class Score:
    """Mean loss over target tokens, in nats, and how many tokens it is a mean over.

    Of labelled examples every one is a target and a block: the loss is in nats, or for scores the squared error.
    """

    loss: float
    tokens: int
    se: float | None = None  # standard error of the change of `loss` since round 0, paired by block; None: not known
    blocks: int | None = None  # how many blocks that is made of
    metrics: Mapping[str, float] = field(default_factory=dict)  # of labels (accuracy, f1, pearson, spearman) or ANSWERS

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite when it overflows, NaN when the loss is."""
        return math.inf if self.loss > 700 else math.exp(self.loss)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss / ln 2 * tokens / bytes: a loss in nats per token as bits per byte of text, comparable between tokenizers.

    >>> round(bits_per_byte(math.log(256), 1.0), 9)  # a uniform guess at every byte
    8.0

    Infinite where the tokens stand for no text at all.
    """
    return loss / math.log(2) / bytes_per_token if bytes_per_token else math.inf


# done: in time, or there was no deadline; late: waited for; partial: stopped at the deadline, what it had done counts;
# dropped: nothing of it arrived in time; excluded: the scheduler left it out
Fate = Literal["done", "late", "partial", "dropped", "excluded"]


@dataclass(frozen=True)
class ClientRecord:
    """The record of one client's work in one round."""

    client: int
    weight: float  # its share in the average; shares of a round sum to one
    steps: int
    tokens: int
    loss: float  # training loss, nats per token
    grad_norm: float
    update_norm: float  # Frobenius norm of its weight change, factors multiplied out
    bytes_up: int
    bytes_down: int
    rank: int | None = None  # its LoRA rank in this round; None: not written down
    probes: Mapping[str, float] = field(default_factory=dict)  # what probes say of it


@dataclass(frozen=True)
class Turn:
    """The course of a round on the simulated clock for one of the clients that were drawn, whether it trained or not."""

    client: int
    tier: str
    rank: int  # 0 if it was left out
    fate: Fate
    down: float = 0.0  # seconds of download,
    compute: float = 0.0  # of local training as far as it got, and
    up: float = 0.0  # of upload
    needed: float = 0.0  # seconds that all of its work would take
    share: float = 0.0  # of its local steps that were done and counted
    bytes_down: int = 0
    memory_mb: float = 0.0  # that training with this rank takes on the client, by the model of memory

    @property
    def seconds(self) -> float:
        """All that it spent."""
        return self.down + self.compute + self.up


@dataclass(frozen=True)
class RoundRecord:
    """Plain numbers of one round: JSON-able, no tensors. Round 0 is the model before training.

    Score names: `validation` (the mixture), `topic/NAME`, `client/ID`, `general`. What was not measured is absent.
    """

    round: int
    clients: tuple[ClientRecord, ...] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)
    # Of clients by clients, in order
    matrices: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    turns: tuple[Turn, ...] = ()  # of all clients drawn, where hardware is simulated
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall time: train, aggregate, evaluate, probe/NAME
    events: tuple[str, ...] = ()  # what a reader should know, in sentences

    @property
    def tokens(self) -> int:
        """Target tokens trained on, all clients."""
        return sum(c.tokens for c in self.clients)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, a number that is not finite as None; `from_json` inverts it."""
        plain: dict[str, Any] = replace_not_finite(dataclasses.asdict(self))
        for score in plain["scores"].values():
            if not score["metrics"]:
                del score["metrics"]
        return plain

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> RoundRecord:
        """Read what `to_json` wrote. Raises `TypeError` for values of other types, and for counts below zero."""
        found = cls(
            **{
                **line,
                "clients": tuple(_read_client(c) for c in line["clients"]),
                "events": tuple(line["events"]),
                "turns": tuple(Turn(**turn) for turn in line.get("turns", ())),
                "scores": {name: _read_score(s) for name, s in line["scores"].items()},
                "probes": _restore_nan(line["probes"]),
                "matrices": {
                    name: tuple(tuple(_restore_nan(row)) for row in m) for name, m in line.get("matrices", {}).items()
                },
                "seconds": _restore_nan(line.get("seconds", {})),
            }
        )
        _check_types(found, cls)
        return found


Records = Sequence[RoundRecord]  # of one run, in order


def counts_nobody(record: RoundRecord) -> bool:
    """Whether every client of the round has weight 0, so that the model is meant to stay as it is."""
    return bool(record.clients) and all(c.weight == 0 for c in record.clients)


def add_client_names(sentence: str, names: Sequence[str]) -> str:
    """Add its name to every client that a sentence calls by its number; names: (N,), or none where clients have none.

    >>> add_client_names("client 1 is left behind", ["Eve", "Bob"])
    'client 1 (Bob) is left behind'
    >>> add_client_names("the anchor of clients 0, 1 moved", ["Eve", "Bob"])
    'the anchor of clients 0 (Eve), 1 (Bob) moved'
    """

    def add(number: re.Match[str]) -> str:
        k = int(number[0])
        return f"{k} ({names[k]})" if k < len(names) else number[0]

    return (
        re.sub(r"\b[Cc]lients? \d+(, \d+)*\b", lambda found: re.sub(r"\d+", add, found[0]), sentence)
        if names
        else sentence
    )


def replace_not_finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: replace_not_finite(v) for k, v in value.items()}
    return [replace_not_finite(v) for v in value] if isinstance(value, tuple | list) else value


def _check_types(value: Any, kind: Any, place: str = "") -> None:
    """Raise `TypeError`, which names the place, unless a value read from a file is of the type that a field declares.

    Whole numbers are counts and indices, none of them below zero; they stand for floats too, and booleans for neither.
    """
    if kind in _PLAIN:
        _expect(type(value) in _PLAIN[kind] and not (kind is int and value < 0), value, kind, place)
        return
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        for name, own in _list_types(kind).items():
            _check_types(getattr(value, name), own, f"{place}.{name}" if place else name)
    elif origin is tuple:
        for item in _expect(isinstance(value, tuple), value, kind, place):
            _check_types(item, inner[0], place)
    elif origin is Mapping:
        for name, item in _expect(isinstance(value, Mapping), value, kind, place).items():
            _check_types(item, inner[1], f"{place}.{name}")
    elif origin is Literal:
        _expect(value in inner, value, kind, place)
    elif value is not None:  # of a union with None
        _check_types(value, inner[0], place)


_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}


@cache
def _list_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(fits: bool, value: Any, kind: Any, place: str) -> Any:
    if not fits:
        raise TypeError(f"{place} is {value!r:.60}, not {getattr(kind, '__name__', kind)}")
    return value


def _restore_nan(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {k: math.nan if v is None else v for k, v in values.items()}
    return [math.nan if v is None else v for v in values]


def _read_client(line: Mapping[str, Any]) -> ClientRecord:
    numbers = _restore_nan({name: value for name, value in line.items() if name != "rank"})
    return ClientRecord(**{**line, **numbers, "probes": _restore_nan(line.get("probes", {}))})


def _read_score(line: Mapping[str, Any]) -> Score:
    loss, metrics = _restore_nan({"loss": line["loss"]}), _restore_nan(line.get("metrics", {}))
    return Score(**loss, tokens=line["tokens"], se=line.get("se"), blocks=line.get("blocks"), metrics=metrics)


@dataclass(frozen=True)
class Finding:
    """The message of a detector whose state gets worse: when, what happened, how it is known, what to try."""

    detector: str
    round: int
    level: Literal["suspect", "alarm"]
    sentence: str  # what happened, in plain words
    statistic: float
    threshold: float | None  # None: no statistic was needed, such as for a loss that is not a number
    controls: int  # IID control runs behind the threshold; 0: it follows from theory or convention
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: tuple[str, ...] = ()  # what to try, first things first

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` inverts it."""
        plain: dict[str, Any] = replace_not_finite(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Finding:
        """Read what `to_json` wrote. Raises `TypeError` for values of other types."""
        numbers = _restore_nan({"statistic": line["statistic"]})
        found = cls(**{**line, **numbers, "evidence": _restore_nan(line["evidence"]), "advice": tuple(line["advice"])})
        _check_types(found, cls)
        return found


class Reading(NamedTuple):
    """The numbers that a detector reads off the records after one round."""

    round: int
    statistic: float  # larger is worse; infinite: no threshold is needed
    effect: float  # the same in a unit that a reader knows
    evidence: Mapping[str, float]


@dataclass(frozen=True)
class Multiply:
    """Multiply a number of the configuration; a whole number is rounded, and 1 at least.

    >>> print(Multiply("training.lr", 0.5))
    training.lr times 0.5
    """

    setting: str  # dotted key
    factor: float
    unset: int | None = None  # what the setting means where it is null; None: there is nothing to multiply

    def __str__(self) -> str:
        return f"{self.setting} times {self.factor:g}"


@dataclass(frozen=True)
class Replace:
    """Give a setting another value: in the place of the old one only, or without an old one in the place of any other.

    >>> print(Replace("federation.algorithm", "scaffold", old="fedavg"))
    federation.algorithm=scaffold instead of fedavg
    """

    setting: str  # dotted key; of a component, its name
    new: str
    old: str | None = None

    def __str__(self) -> str:
        return f"{self.setting}={self.new}" + (f" instead of {self.old}" if self.old else "")


Remedy = Multiply | Replace  # one change of settings that a run can make by itself


def multiply_work(factor: float) -> tuple[Multiply, Multiply]:
    """More or less local work: the steps of a round, or its epochs in a run that does not count steps."""
    return Multiply("training.local_steps", factor), Multiply("training.local_epochs", factor, unset=1)


def _only_degrades(last: Reading) -> bool:
    return False


def _learn_nothing(controls: Sequence[Records]) -> dict[str, float]:
    return {}


def _advise_nothing(reading: Reading) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Detector:
    """A pure function of the records, with all that is needed to judge what it reads, to explain it and to act on it.

    follow: (records, scale) -> for every record in turn its reading, or None where the statistic is not defined there; a
        generator, so that a run that goes on is read once and not once a round
    explain: (reading) -> what happened, in plain words
    reads: what has to be measured for it, as `is_recorded` names it; empty: it says nothing of it
    advice: what a reader can try, first things first: settings, or a sentence
    advise: (reading) -> what to try before that, where the reading itself says so
    remedies: what a run that goes back to its best round at this alarm changes by itself: the first that is a change
    wants_clusters: whether the alarm says that clients differ too much for one model, so that clusters are an answer
    min_effect: the smallest effect that may alarm, however sure it is
    min_std: the standard deviation of the statistic between healthy runs is taken to be no smaller
    default_threshold: by theory or convention, for runs without controls; None: the detector is silent without them
    default_scale: what the statistic is measured against then
    learn_scale: (records of control runs) -> numbers that the statistic is measured against; empty without controls
    calibrated: whether controls set the threshold where there are some
    of_partition: whether only honest controls of the run's own partition may, and IID ones do not
    is_failure: (last reading) -> whether an alarm that holds to the end makes the run failed, not just degraded
    leads_to: detectors whose alarms follow from what this one sees, so that this one is the cause where both alarm
    """

    follow: Callable[[Iterable[RoundRecord], Mapping[str, float]], Iterator[Reading | None]]
    explain: Callable[[Reading], str]
    advice: tuple[str, ...]
    min_effect: float
    min_std: float
    default_threshold: float | None
    default_scale: Mapping[str, float] = field(default_factory=dict)
    learn_scale: Callable[[Sequence[Records]], dict[str, float]] = _learn_nothing
    remedies: tuple[Remedy, ...] = ()
    wants_clusters: bool = False
    calibrated: bool = True
    of_partition: bool = False
    is_failure: Callable[[Reading], bool] = _only_degrades
    advise: Callable[[Reading], tuple[str, ...]] = _advise_nothing
    leads_to: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def start(self, scale: Mapping[str, float]) -> Callable[[RoundRecord], Reading | None]:
        """Start to follow a run: returns a function that takes every record once, in order, and answers with its reading.

        Raises `UserError` there if `follow` does not answer every record.
        """
        waiting = deque[RoundRecord]()
        answers = self.follow(_hand_out(waiting), scale)
        nothing = object()

        def read_next(record: RoundRecord) -> Reading | None:
            waiting.append(record)
            found: Any = next(answers, nothing) if isinstance(answers, Iterator) else nothing
            if found is nothing or waiting:
                raise UserError(
                    f"a detector does not answer round {record.round}: {self.follow.__qualname__} should be a generator "
                    "that yields a Reading or None for every record, in order"
                )
            answer: Reading | None = found
            return answer

        return read_next

    def read(self, records: Records, scale: Mapping[str, float]) -> list[Reading]:
        """Read a whole history: a reading for every round in which the statistic is defined."""
        read_next = self.start(scale)
        return [found for r in records if (found := read_next(r)) is not None]


def _hand_out(waiting: deque[RoundRecord]) -> Iterator[RoundRecord]:
    """Hand out records one by one as far as they are there."""
    while waiting:
        yield waiting.popleft()


def is_recorded(what: str, records: Records) -> bool:
    """Tell whether the records have a measurement anywhere that a detector names in `reads`.

    what: `score/validation` or another evaluation set, `score/client` for that of any client, `score/client with se` where
    its standard error is needed, or `with` the name of a metric; `client/PROBE` for a probe of clients, `matrix/NAME` for a
    matrix, else the name of a probe.

    >>> is_recorded("score/validation", [RoundRecord(0, scores={"validation": Score(4.0, 1)})])
    True
    """
    kind, _, name = what.partition("/")
    if kind == "score":
        wanted, _, more = name.partition(" with ")
        scores = [s for r in records for n, s in r.scores.items() if n == wanted or n.startswith(f"{wanted}/")]
        return any(not more or more in s.metrics or (more == "se" and s.se is not None) for s in scores)
    if kind == "client":
        return any(name in c.probes for r in records for c in r.clients)
    if kind == "matrix":
        return any(name in r.matrices for r in records)
    return any(what in r.probes for r in records)


def get_validation_losses(records: Records) -> tuple[list[int], list[float]]:
    """The rounds in which the mixture was evaluated, and its loss there in nats per token."""
    scored = [(r.round, r.scores["validation"].loss) for r in records if "validation" in r.scores]
    return [t for t, _ in scored], [loss for _, loss in scored]
