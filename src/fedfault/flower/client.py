"""The ClientApp: one client's part of a round, by the engine's own code with a cohort of one.

It answers three kinds of messages: `query` (who are you, do we fit together), `train`, and `evaluate` on the client's own
held-out data. What goes wrong is an error reply with the reason, and a line in the node's log; of an exception that is not
meant for others only the type leaves the site.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from fedfault.errors import UserError
from fedfault.flower.local import RAISED
from fedfault.flower.memory import Memory
from fedfault.flower.payload import Refused, from_arrays, to_arrays
from fedfault.flower.site import ClientSite, check_facts, find_site
from fedfault.rounds.clients import init_client_memory, train_clients
from fedfault.rounds.exchange import OWN, Cohort, full_rank
from fedfault.rounds.federation import CohortRequest, CohortResult
from fedfault.rounds.local import Passes, weigh_clients
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State

log = logging.getLogger("flwr")

FindSite = Callable[[str, Mapping[str, Any]], ClientSite]  # (the server's experiment as JSON, the node's configuration)
Answer = Callable[[Message, Context, ClientSite], RecordDict]


def make_client_app(find: FindSite = find_site, mods: Sequence[Mod] = ()) -> ClientApp:
    """Make the ClientApp of the sites that `find` returns; Flower's `mods` wrap training, to clip updates or add noise."""
    made = ClientApp()
    made.query()(_answer_or_refuse(find, answer_query))
    made.train(mods=list(mods))(_answer_or_refuse(find, answer_train))
    made.evaluate()(_answer_or_refuse(find, answer_evaluate))
    return made


def _answer_or_refuse(find: FindSite, answer: Answer) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        try:
            config = message.content.config_records["config"]
            if reason := config.get("refused"):
                raise Refused(str(reason))
            site = find(str(config["experiment"]), context.node_config)
            return Message(answer(message, context, site), reply_to=message)
        except UserError as e:
            log.error("fedfault: refused: %s", e)
            reason = str(e)
        except Exception as e:
            log.exception("fedfault: failed")
            reason = f"{type(e).__name__} at the client; its log says more"
        return Message(Error(code=RAISED, reason=reason), reply_to=message)

    return handle


def answer_query(message: Message, context: Context, site: ClientSite) -> RecordDict:
    """Answer who the client is and how much data it has. Raises `Refused` when it does not fit with the server."""
    config = message.content.config_records["config"]
    check_facts(site.facts, {k: str(config[k]) for k in site.facts if k in config}, "the server")
    fed, k = site.federation, site.client
    if not fed.task.examples(k):
        raise Refused(f"client {k} has no training data")
    sizes = {"examples": fed.task.examples(k), "tokens": fed.task.tokens(k), "read": fed.task.read(k)}
    return RecordDict({"config": ConfigRecord({"client": k, "own": site.own, **sizes, **site.facts})})


def answer_train(message: Message, context: Context, site: ClientSite) -> RecordDict:
    """Do the client's part of a round; plain Flower strategies name no `rank`, `effort`, `run` and `used` round."""
    config: dict[str, Any] = dict(message.content.config_records["config"])
    fed, k, t = site.federation, site.client, int(config["server-round"])
    x0 = fed.task.init(fed.seed)
    rank = int(config.get("rank", full_rank(x0.layout)))
    cohort = Cohort.of([k], State(x0, round=t - 1), fed.aggregation, {k: rank})
    received = from_arrays(message.content.array_records["arrays"], x0, cohort.public_mask(None, 0))
    memory = Memory(context, str(config.get("run", "")), x0, site.memory, k)
    used = int(config.get("used", max(memory.versions, default=0)))
    kept = memory.find_version(used, init_client_memory(fed, x0))
    if cohort.private is not None:
        received["x"] = _restore_private(received.get("x"), kept[OWN], cohort.private)
    asked = CohortRequest(
        round=t,
        cohort=cohort,
        weight=weigh_clients(fed.task, fed.work.weighting, [k]),
        received=cohort.cut_message(received),
        memory={name: replace(a, flat=a.flat[None]) for name, a in kept.items() if name != OWN},
        effort=[float(config.get("effort", 1.0))],
        passes=Passes(1),
    )
    done = train_clients(fed, asked)
    memory.store_version(t, _select_memory(done, kept, fed.algorithm.whole), used)
    arrays = to_arrays(done.up, cohort.public_mask(cohort.trained, 0), row=0)
    reply = ConfigRecord({"client": k, "round": t, "layout": x0.layout.fingerprint})
    return RecordDict({"arrays": arrays, "metrics": _report_metrics(done), "reply": reply})


def answer_evaluate(message: Message, context: Context, site: ClientSite) -> RecordDict:
    """Score the model that was sent on the client's held-out data: loss, and the tokens that it is a mean over."""
    fed, k = site.federation, site.client
    x0 = fed.task.init(fed.seed)
    got = from_arrays(message.content.array_records["arrays"], x0, None, {"x": True})
    scores = fed.task.evaluate(replace(x0, flat=cast(Adapter, got["x"]).flat))
    own = scores.get(f"client/{0 if site.own else k}", scores["validation"])
    return RecordDict({"metrics": MetricRecord({"num-examples": own.tokens, "loss": own.loss})})


def _restore_private(x: Adapter | float | None, own: Adapter, private: Tensor) -> Adapter:
    """Put the numbers that never leave the client back into what the server sent."""
    if not isinstance(x, Adapter):
        raise Refused("no adapter 'x' came from the server")
    return replace(x, flat=own.flat.where(private.to(x.flat.device), x.flat))


def _select_memory(done: CohortResult, before: Mapping[str, Adapter], whole: Collection[str]) -> dict[str, Adapter]:
    """Select what the client keeps between rounds, (P,) each; whole: see `Algorithm`."""
    rows = {
        name: a.flat if name in whole else done.cohort.keep_untrained(a.flat, before[name].flat[None])
        for name, a in done.home.items()
    }
    return {name: replace(before[name], flat=row[0].detach()) for name, row in rows.items()}


def _report_metrics(done: CohortResult) -> MetricRecord:
    """Report the measurements of a client; `num-examples` is its weight, as Flower's strategies call it."""
    local = done.trained
    found = {"num-examples": local.weight, "loss": local.loss, "grad-norm": local.grad_norm}
    counts = {"steps": int(local.num_steps[0]), "tokens": int(local.num_tokens[0])}
    drift = {} if local.drift is None else {"drift": float(local.drift[0])}
    return MetricRecord({**{name: float(v[0]) for name, v in found.items()}, **counts, **drift})


app = make_client_app()
