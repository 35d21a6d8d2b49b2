"""The table of a run's clients, a row for each round and client: clients.parquet, and `Run.clients` in Python."""

from __future__ import annotations

import math
from typing import Any

from fedfault.records import ClientRecord, RoundRecord, Turn
from fedfault.runs.recorded import RunData

COLUMNS = (  # in this order; those that a run has nothing for are left out, and probes follow
    "round", "client", "name", "topic", "tier", "rank", "fate", "weight", "steps", "tokens", "training_loss",
    "held_out_loss", "grad_norm", "update_norm", "bytes_up", "bytes_down", "download_seconds", "training_seconds",
    "upload_seconds", "needed_seconds", "done_share", "memory_mb",
)  # fmt: skip
PROBE = "probe_"  # what the columns of a client's probes begin with


def tabulate_clients(run: RunData) -> list[dict[str, Any]]:
    """Return a row for each client that was drawn in a round or trained in it, by column; None where a client has nothing.

    The held-out loss is that of the model after the round, where it was measured then.
    """
    rows = [_describe_client(run, r, client, turn) for r in run.records for client, turn in _pair_turns(r)]
    probes = sorted({name for row in rows for name in row if name.startswith(PROBE)})
    there = [name for name in (*COLUMNS, *probes) if any(row.get(name) is not None for row in rows)]
    return [{name: row.get(name) for name in there} for row in rows]


def _pair_turns(record: RoundRecord) -> list[tuple[ClientRecord | None, Turn | None]]:
    """Pair what each client did with how its turn went: first those on the clock, then others that trained."""
    did = {client.client: client for client in record.clients}
    timed = [(did.pop(turn.client, None), turn) for turn in record.turns]
    return [*timed, *((client, None) for client in did.values())]


def _describe_client(
    run: RunData, record: RoundRecord, client: ClientRecord | None, turn: Turn | None
) -> dict[str, Any]:
    """Return the row of a client in a round; one of the two is there."""
    k = client.client if client is not None else turn.client  # type: ignore[union-attr]
    row: dict[str, Any] = {"round": record.round, "client": k, "topic": run.dominant_topic(k)}
    row["name"] = run.client_names[k] if k < len(run.client_names) else None
    held_out = record.scores.get(f"client/{k}")
    row["held_out_loss"] = None if held_out is None else held_out.loss
    if turn is not None:
        row |= {"tier": turn.tier, "rank": turn.rank, "fate": turn.fate, "bytes_down": turn.bytes_down}
        row |= {"download_seconds": turn.down, "training_seconds": turn.compute, "upload_seconds": turn.up}
        row |= {"needed_seconds": turn.needed, "done_share": turn.share, "memory_mb": turn.memory_mb}
    if client is not None:
        row |= {"weight": client.weight, "steps": client.steps, "tokens": client.tokens, "rank": client.rank}
        row |= {"training_loss": client.loss, "grad_norm": client.grad_norm, "update_norm": client.update_norm}
        row |= {"bytes_up": client.bytes_up, "bytes_down": client.bytes_down}
        row |= {f"{PROBE}{name}": value for name, value in client.probes.items() if math.isfinite(value)}
    return row
