"""`Watched`: a strategy of Flower's Message API with the detectors around it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

from fedfault.diagnosis.watch import describe_finding
from fedfault.errors import UserError, join_names
from fedfault.monitor import Monitor
from fedfault.monitor.adapters import name_part
from fedfault.monitor.measured import Round
from fedfault.monitor.server import sends_less, solve_average

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.common.logger import log
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result, Strategy
except ImportError as e:
    raise UserError(f'{e.name} is not installed; pip install "fedfault[flower]"') from e

import numpy as np

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
LESS = (
    "all clients sent less than half of what they got: updates in the place of arrays? A strategy averages arrays, and what "
    "is said of updates holds for these"
)
EXAMPLES = "num-examples"  # the metric by which Flower's strategies weigh clients, unless they are told another


class Watched(Strategy):  # type: ignore[misc]  # flwr has no types
    """A strategy that does what the one inside does, and is watched: `Watched(FedAvg())` in the place of `FedAvg()`.

    Every round the monitor is told how the clients' arrays differ from those that were sent, what the server made of them,
    and the losses: of `evaluate_fn` where `start` has one, also if only of every n-th round, else the mean over the clients
    that evaluated, by the strategy's `weighted_by_key`. Findings go into Flower's log and, with the verdict, into the run
    folder RESULTS_DIR/NAME.

    A hook of the strategy inside that calls another of its own hooks calls that one unwatched, which changes no number.
    """

    def __init__(
        self,
        strategy: Strategy,
        name: str = "flower",
        *,
        loss: str | None = None,
        results_dir: Path | str = "results",
        calibration: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Make the run folder; loss: the name of the loss among the metrics, by default the one that ends in `loss`.

        The other arguments are those of `Monitor`. Raises `UserError` as it does.
        """
        own = {"strategy": type(strategy).__name__, **(settings or {})}
        options: dict[str, Any] = {"results_dir": results_dir, "calibration": calibration, "overwrite": overwrite}
        self.strategy, self.monitor = strategy, Monitor(name, settings=own, say=_warn, **options)
        self._loss, self._known, self._round = loss, dict[int, int](), 0
        self._central = False  # whether losses are those of an `evaluate_fn`
        self._told: set[str] = set()  # notes that are in the log
        self._sent: list[np.ndarray] = []
        self._parts: list[str] = []  # lora_A, lora_B or the rest, of each array that is sent
        self._measured: dict[str, Any] = {}  # of the round that goes on, as `Monitor.log` takes it

    def __getattr__(self, name: str) -> Any:
        """Look up whatever else the strategy inside has."""
        return getattr(self.strategy, name)

    def summary(self) -> None:
        """Log what the strategy inside says of itself."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent."""
        self._log_round()
        self._round, self._sent, self._parts = server_round, _read_arrays(arrays), _name_parts(arrays)
        return self.strategy.configure_train(server_round, arrays, config, grid)  # type: ignore[no-any-return]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Measure the updates of clients and server."""
        got = list(replies)
        # Before the strategy inside, which may take the arrays out of the replies or clip them where they lie
        answers = [m for m in got if m.has_content()]
        sent = [_read_arrays(next(iter(m.content.array_records.values()), {})) for m in answers]
        self._measured |= self._measure_clients(answers, sent)
        made, metrics = self.strategy.aggregate_train(server_round, got)
        if made is not None and self._sent:
            self._measured |= self._measure_server(_read_arrays(made), sent)
        return made, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on what the strategy inside orders."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)  # type: ignore[no-any-return]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Measure the clients' losses."""
        got = list(replies)
        made = self.strategy.aggregate_evaluate(server_round, got)
        losses: dict[int, float] = {}
        told: dict[int, dict[str, Any]] = {}
        for message in (m for m in got if m.has_content()):
            metrics = _read_metrics(message)
            if (loss := self._find_loss(metrics)) is not None:
                client = self._number(message.metadata.src_node_id)
                losses[client], told[client] = loss, metrics
        if losses:
            self._measured["client_losses"] = losses
            if not self._central:
                sizes = _read_sizes([*told.values()], _find_key(self.strategy))
                self._measured["loss"] = float(np.average(list(losses.values()), weights=sizes))
        return made

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run the strategy to its end, and log the verdict."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn else None
            if metrics is not None and (loss := self._find_loss(dict(metrics))) is not None:
                self._measured["loss"] = loss
            elif metrics is not None:
                self._tell(
                    f"evaluate_fn returned {join_names(metrics)}, none of which is taken for the loss: name it by loss=, or "
                    "leave evaluate_fn away, and the mean over the clients counts"
                )
            self._round = server_round
            self._log_round()
            return metrics

        self._central = evaluate_fn is not None
        # The function of the strategy's own class, with the hooks of this one
        result = type(self.strategy).start(
            self, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn and evaluate
        )
        self._log_round()
        try:
            verdict = self.monitor.finish()
        except (UserError, OSError) as error:  # what was trained is not lost with it
            _warn(f"no verdict: {error}")
            return result
        log(WARNING, "fedfault: %s. %s %s", verdict["state"], verdict["sentence"], verdict["sure"])
        log(WARNING, "fedfault: `fedfault report %s` draws the run", self.monitor.folder)
        return result

    def _log_round(self) -> None:
        """Tell the monitor what was measured since the last call, and Flower's log what it found."""
        measured, self._measured = self._measured, {}
        if not measured:
            return
        try:
            found = self.monitor._log(self._round, Round(**measured))
        except (UserError, OSError) as error:  # the run that is watched goes on
            _warn(f"round {self._round} is not recorded: {error}")
            return
        for finding in found:
            _warn(describe_finding(finding))

    def _measure_clients(self, replies: list[Message], sent: Sequence[list[np.ndarray]]) -> dict[str, Any]:
        """Inner products of the updates, shares and training losses of the clients that answered with these arrays.

        Where the arrays of one do not fit those that were sent, none are measured, and an event names it.
        """
        if not any(m.content.array_records for m in replies):
            return {}
        nodes = [m.metadata.src_node_id for m in replies]
        found: dict[str, Any] = {"clients": [self._number(node) for node in nodes]}
        odd = [node for node, arrays in zip(nodes, sent, strict=True) if not _fits(arrays, self._sent)]
        if odd:
            named = join_names(f"client {self._number(node)} (node {node})" for node in odd)
            found["events"] = [f"updates not measured, as arrays have other shapes than those that were sent: {named}"]
        else:
            found["products"] = self._multiply_updates(sent)
        metrics = [_read_metrics(m) for m in replies]
        if (sizes := _read_sizes(metrics, _find_key(self.strategy))) is not None:
            found["weights"] = sizes
        losses = [self._find_loss(metric) for metric in metrics]
        return found | ({"train_losses": losses} if None not in losses else {})

    def _multiply_updates(self, sent: Sequence[list[np.ndarray]]) -> np.ndarray:
        """The inner products (K, K) of what clients have changed, one array after another: never all models side by side."""
        products = np.zeros((len(sent), len(sent)))
        for i, start in enumerate(self._sent):
            rows = np.stack([arrays[i].ravel() for arrays in sent]) - start.ravel()
            products += rows @ rows.T
        return products

    def _measure_server(self, made: list[np.ndarray], sent: Sequence[list[np.ndarray]]) -> dict[str, Any]:
        """What the server has changed, and by what weights it has averaged each part of what clients sent."""
        if not _fits(made, self._sent):
            return {}
        update = np.concatenate([(a - b).ravel() for a, b in zip(made, self._sent, strict=True)])
        if not sent or not all(_fits(arrays, self._sent) for arrays in sent):
            return {"server_update": update}
        products: dict[str, np.ndarray] = {}
        sizes: Counter[str] = Counter()
        for i, start in enumerate(self._sent):
            rows = np.stack([*(arrays[i].ravel() for arrays in (*sent, made)), start.ravel()])
            rows[:-1] -= rows[-1]
            products[self._parts[i]] = products.get(self._parts[i], 0.0) + rows @ rows.T
            sizes[self._parts[i]] += start.size
        if sends_less(products.values(), len(sent)):
            self._tell(LESS)
        solved = {part: solve_average(one, len(sent), sizes[part]) for part, one in products.items()}
        return {"server_update": update, "averages": {part: one for part, one in solved.items() if one is not None}}

    def _find_loss(self, metrics: Mapping[str, Any]) -> float | None:
        """The loss among metrics; None where there is none, where several could be meant, and for a list, which is told."""
        names = [self._loss] if self._loss else [name for name in metrics if name.lower().endswith("loss")]
        if len(names) != 1 or names[0] not in metrics:
            return None
        if not isinstance(value := metrics[names[0]], list):
            return float(value)
        self._tell(
            f"{names[0]} is a list, and a loss is one number, so that it is left out; send one, or name another metric by "
            "loss="
        )
        return None

    def _tell(self, note: str) -> None:
        """Put a note into Flower's log, once."""
        if note not in self._told:
            self._told.add(note)
            _warn(note)

    def _number(self, node: int) -> int:
        """The number by which the run folder calls a node: 0 for the first that answered, and so on."""
        return self._known.setdefault(node, len(self._known))


def _warn(text: str) -> None:
    log(WARNING, "fedfault: %s", text)


def _name_parts(record: Mapping[str, Array]) -> list[str]:
    """The part of the model that each array of `_read_arrays` belongs to."""
    numbers = [name for name in sorted(record) if np.issubdtype(record[name].numpy().dtype, np.number)]
    return [name_part(name) for name in numbers]


def _read_arrays(record: Mapping[str, Array]) -> list[np.ndarray]:
    """The arrays of a record by the order of their names, as float64; those that hold no numbers are left out."""
    arrays = [record[name].numpy() for name in sorted(record)]
    return [a.astype(np.float64) for a in arrays if np.issubdtype(a.dtype, np.number)]


def _read_metrics(message: Message) -> dict[str, Any]:
    """All metrics of a message."""
    return {name: value for record in message.content.metric_records.values() for name, value in record.items()}


def _find_key(strategy: Any) -> str:
    """The metric by which a strategy weighs clients; of one around another, such as those of privacy, the inner one's."""
    while not hasattr(strategy, "weighted_by_key") and hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    return str(getattr(strategy, "weighted_by_key", EXAMPLES))


def _read_sizes(metrics: Sequence[Mapping[str, Any]], key: str = EXAMPLES) -> list[float] | None:
    """By how much each of several clients counts; None, for equally, where that is not known of all."""
    sizes = [metric.get(key) for metric in metrics]
    known = [float(size) for size in sizes if isinstance(size, int | float) and 0 <= size < math.inf]
    return known if len(known) == len(sizes) and sum(known) > 0 else None


def _fits(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return [a.shape for a in arrays] == [b.shape for b in others]
