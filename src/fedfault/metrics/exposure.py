"""The probe of what models remember word by word: how exposed secrets are that were planted in clients' texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfault.measures.exposure import find_exposure
from fedfault.registry import register
from fedfault.types.task import FinishedRound, Measurements, Probe, SecretLosses, fold_for_uploads


@register("probe", order=11, cite=("carlini2019",))
def exposure() -> Probe:
    """Exposure in bits of made-up secrets in the server's model and in every upload, where `data.secret_copies` plants some.

    Every client's texts hold a sentence with eight random digits, and 255 sentences with other digits are nowhere. Exposure
    is 8 - log2 of the rank that the loss of a secret has among these (Carlini et al., USENIX Security 2019): 8 bits where
    the model finds it likelier than all of them, 1.4 on average where it does not know it.

    exposure        mean over the secrets of the clients of the round, in the server's model
    exposure_null   the same of as many secrets of the same law that nobody has: what chance gives
    exposure        of each client's own secret in its upload
    """

    def measure(m: FinishedRound) -> Measurements:
        clients = list(m.clients)
        server = m.task.secret_losses([m.after.adapter.flat], [clients])
        if server is None:
            return Measurements()
        with fold_for_uploads(m) as models:
            uploads = m.task.secret_losses(models, [[k] for k in clients]) or []
        found = {"exposure": _rank(server[0].planted, server[0]), "exposure_null": _rank(server[0].decoys, server[0])}
        probes = {name: float(np.mean(each)) for name, each in found.items() if np.isfinite(each).all()}
        return Measurements(probes, {"exposure": [_rank(own.planted, own)[0] for own in uploads]})

    return Probe(measure, sparse=True)


def _rank(secrets: np.ndarray, beside: SecretLosses) -> Sequence[float]:
    """The exposure of each secret (k,); NaN where a loss is no number."""
    good = np.isfinite(beside.others).all()
    return [find_exposure(s, beside.others) if good and np.isfinite(s) else float("nan") for s in secrets.tolist()]
