"""What clients send does not arrive: `no_federation`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from fedfault.records import Detector, Reading, RoundRecord, counts_nobody
from fedfault.registry import register

MOVED = 1e-3  # of the mean update


@register("detector")
def no_federation() -> Detector:
    """Clients train and send, but the server's model stands still: what they learn is lost on the way.

    The statistic is -log10(|update of the server| / |mean update of the clients|), from the probe `updates`: at 3 the server
    moves by a thousandth. A server that does not move at all needs no threshold. A round in which nobody counts, as one of
    fltrust without the trusted client, says nothing.

    >>> from fedfault.testing.histories import history
    >>> detector = no_federation()
    >>> last = detector.read(history(probes={"server_norm": [None, 0.00005], "update_norm": [None, 0.5]}), {})[-1]
    >>> print(f"{last.statistic:.1f} > {detector.default_threshold}: {detector.explain(last)}")
    4.0 > 3.0: the clients' mean update has norm 0.5, but the server's model moves by 5e-05: what clients learn is lost
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for r in records:
            server, clients = (r.probes.get(name) for name in ("server_norm", "update_norm"))
            if server is None or not clients or counts_nobody(r):
                yield None
                continue
            share = server / clients
            evidence = {"server_update": server, "client_update": clients}
            yield Reading(r.round, -math.log10(share) if share > 0 else math.inf, 1.0, evidence)

    return Detector(
        follow,
        lambda r: (
            f"the clients' mean update has norm {r.evidence['client_update']:.2g}, but the server's model moves by "
            f"{r.evidence['server_update']:.2g}: what clients learn is lost"
        ),
        reads=("server_norm", "update_norm"),
        advice=("look at the server step of the algorithm and at the aggregation",),
        min_effect=0.0,
        min_std=0.1,
        default_threshold=-math.log10(MOVED),
        calibrated=False,
        is_failure=lambda last: True,
        leads_to=("rank_collapse", "slow_convergence", "client_drift"),
    )
