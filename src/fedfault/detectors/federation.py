"""What clients send does not arrive."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedfault.records import Detector, Reading, Records
from fedfault.registry import register

MOVED = 1e-3  # of the mean update


@register("detector")
def no_federation() -> Detector:
    """Clients train and send, but the server's model stands still: what they learn is lost on the way.

    Statistic: -log10(|update of the server| / |mean update of the clients|); at 3 the server moves by less than a
    thousandth. Exact equality needs no threshold.
    """

    def read(records: Records, scale: Mapping[str, float]) -> list[Reading]:
        found = []
        for r in records:
            server, clients = (r.probes.get(name) for name in ("server_norm", "update_norm"))
            if server is None or not clients:
                continue
            share = server / clients
            evidence = {"server_update": server, "client_update": clients}
            found.append(Reading(r.round, -math.log10(share) if share > 0 else math.inf, 1.0, evidence))
        return found

    return Detector(
        read,
        lambda r: (
            f"the clients' mean update has norm {r.evidence['client_update']:.2g}, but the server's model moves by "
            f"{r.evidence['server_update']:.2g}: what clients learn is lost"
        ),
        advice=("look at the server step of the algorithm and at the aggregation",),
        min_effect=0.0,
        min_std=0.1,
        default_threshold=-math.log10(MOVED),
        calibrated=False,
        is_failure=lambda last: True,
    )
