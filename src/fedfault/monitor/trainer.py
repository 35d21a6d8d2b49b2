"""`ClientCallback`: detectors for a loop of one's own over clients that a Trainer of transformers or TRL trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.arguments import take_list
from fedfault.errors import UserError, join_names
from fedfault.monitor import Monitor
from fedfault.records import Finding

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as e:
    raise UserError(f"{e.name} is not installed; pip install transformers") from e

import numpy as np

EACH = ("weights", "tokens", "train_losses", "steps")  # what there is one of for each client


class ClientCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Measures what each client of a round trains; `log` ends the round and tells the monitor.

        watch = ClientCallback(ff.Monitor("mine"))
        for round in range(1, rounds + 1):
            for k in clients:                                    # the server's adapter is loaded into the model
                watch.client = k
                Trainer(model, args, train_dataset=data[k], callbacks=[watch]).train()
            ...                                                  # the mean of the adapters is loaded into the model
            watch.log(round, model, loss=evaluate(model))

    Updates are those of the parameters that require gradients. The server's update is measured from where the first client
    of the round started. Without `client` the clients of a round are numbered in the order in which they train.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.client: int | None = None  # who trains next
        self._began: np.ndarray | None = None  # (P,), where the first client of the round started
        self._start: np.ndarray | None = None  # where the client at work started
        self._rows: dict[int, np.ndarray] = {}  # updates of the round, by client, in the order of training
        self._losses: dict[int, float] = {}
        self._steps: dict[int, int] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where a client starts. Raises `UserError` for one that has trained in this round."""
        self.client = len(self._rows) if self.client is None else self.client
        if self.client in self._rows:
            raise UserError(
                f"client {self.client} trains twice in a round: set `client` before it trains, and call `log` after a round"
            )
        start = _read_trainable(kwargs["model"])
        self._began = start if self._began is None else self._began
        _measure_change(f"the model of client {self.client}", start, self._began)
        self._start = start

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what the client has changed, its mean training loss and its steps."""
        if self.client is None or self._start is None:
            return
        end = _read_trainable(kwargs["model"])
        if end.shape != self._start.shape:
            raise UserError("the trainable parameters of the model are not the same before and after training")
        self._rows[self.client] = end - self._start
        told = [line["loss"] for line in state.log_history if "loss" in line]
        whole = [line["train_loss"] for line in state.log_history if "train_loss" in line]
        self._losses[self.client] = float((whole or [sum(told) / len(told) if told else math.nan])[-1])
        self._steps[self.client] = int(state.global_step)
        self.client = self._start = None

    def log(self, round: int, model: Any = None, **measured: Any) -> list[Finding]:
        """End a round, and return what the detectors find in it; measured: losses and whatever else `Monitor.log` takes.

        model: as the server has it after the round; without it the server's update is not known. Round 0, before training,
        has losses only. What there is of each client, such as `weights`, is in the order in which they trained, or a mapping
        by client. Raises `UserError` as `Monitor.log` does, and for a model of other parameters than the clients'.
        """
        who = list(self._rows)
        if who:
            if (named := take_list(measured.get("clients", who))) != who:
                raise UserError(
                    f"clients={named}, but trained have {who} in this order: leave `clients` away, and give what there is "
                    f"of each in this order or by client, as in weights={{{who[0]}: 1.0, ...}}"
                )
            measured |= {name: _order(name, measured[name], who) for name in EACH if name in measured}
            measured = {
                "updates": np.stack([self._rows[k] for k in who]),
                "clients": who,
                "train_losses": [self._losses[k] for k in who],
                "steps": [self._steps[k] for k in who],
                **measured,
            }
            if model is not None:
                measured["server_update"] = _measure_change(
                    "the model that `log` was given", _read_trainable(model), self._began
                )
        found = self.monitor.log(round, **measured)
        self._began, self._rows, self._losses, self._steps = None, {}, {}, {}
        return found


def _read_trainable(model: Any) -> np.ndarray:
    """The parameters that require gradients as one row (P,). Raises `UserError` where none does."""
    rows = [p.detach().float().cpu().numpy().ravel() for p in model.parameters() if p.requires_grad]
    if not rows:
        raise UserError("no parameter of the model requires gradients, so there is nothing to watch")
    found: np.ndarray = np.concatenate(rows).astype(np.float64)
    return found


def _measure_change(said: str, end: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    """What has changed since the first client of the round started, (P,). Raises `UserError` for other parameters."""
    if start is None or end.shape != start.shape:
        raise UserError(
            f"{said} has {end.size:,} trainable parameters, and the one that the first client of the round started from has "
            f"{0 if start is None else start.size:,}: give the model that the clients train"
        )
    found: np.ndarray = end - start
    return found


def _order(name: str, given: Any, who: Sequence[int]) -> Any:
    """What is given by client, in the order of `who`; anything else as it is. Raises `UserError` for a client without it."""
    if not isinstance(given, Mapping):
        return given
    if missing := [k for k in who if k not in given]:
        raise UserError(f"{name} has no number for client {join_names(missing)}, and trained have {list(who)}; add it")
    return [given[k] for k in who]
