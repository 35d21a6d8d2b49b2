"""What hostile clients send in the place of what they trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedfault.algebra import to_float64
from fedfault.rounds.federation import CohortResult
from fedfault.seeds import torch_rng
from fedfault.types.attack import Changes, Hostile


def forge_updates(attacks: Sequence[Hostile], done: CohortResult, round: int, seed: int) -> CohortResult:
    """What arrives at the server: of hostile clients what they forge, of the others what they sent, to the bit.

    Attacks of the same clients follow one another. Records, probes and detectors see what arrives, as a server does.
    """
    clients = done.cohort.clients
    present = [(a, torch.tensor(found)) for a in attacks if (found := a.find_rows(clients, round))]
    if not present:
        return done
    x, honest = to_float64(done.start), torch.ones(len(clients), dtype=torch.bool)
    for _, rows in present:
        honest[rows] = False
    sent: torch.Tensor = done.up["x"].flat
    honest = honest.to(x.device)
    changes = to_float64(sent) - x
    seen = changes[honest & changes.isfinite().all(1)]
    for hostile, rows in present:
        if hostile.attack.forge is not None:
            about = Changes(seen, changes[rows], torch_rng(seed, "attack", hostile.name, round))
            changes[rows] = hostile.attack.forge(about)
    arrived = replace(done.up["x"], flat=sent.where(honest.to(sent.device)[:, None], (x + changes).to(sent)))
    return replace(done, up={**done.up, "x": arrived}, trained=replace(done.trained, adapter=arrived))


def announce_attacks(attacks: Sequence[Hostile], round: int) -> tuple[str, ...]:
    """Say in the round in which attacks begin who makes them; nothing in any other one."""
    begun = [a for a in attacks if a.from_round == round]
    told = "; ".join(f"{a.name} by {', '.join(map(str, sorted(a.clients)))}" for a in begun)
    return (f"hostile clients: {told}",) if told else ()
