"""Small simulated fleets for the tests: times that can be worked out by hand."""

from __future__ import annotations

import numpy as np

from fedfault.hardware.clock import Fleet, Line, Tier
from fedfault.hardware.plan import Hardware
from fedfault.registry import build


def hardware(*tiers: Tier, scheduler: str = "fixed", options: dict | None = None, **changes) -> Hardware:
    """Clients with 10 steps and 100 tokens a round; a token takes 0.01 s, and a tenth of that more for each rank."""
    N = sum(tier.count for tier in tiers)
    given = {
        "steps": np.full(N, 10),
        "tokens": np.full(N, 100.0),
        "token_seconds": Line(0.01, 0.001),
        "memory_mb": Line(10.0, 1.0),
        "r_min": 1,
        "r_max": 8,
        **changes,
    }
    return Hardware(fleet=Fleet.of(tiers, N), scheduler=build("scheduler", scheduler, **(options or {})), **given)
