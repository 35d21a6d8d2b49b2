"""Central differential privacy with Flower's own strategies around fedfault's clients, and the epsilon that it costs.

    pip install "fedfault[flower]" "flwr[dp]"
    python deploy/central_dp.py quickstart federation.num_rounds=5

The server clips every client's change of the adapter to one norm, averages with equal weights and adds Gaussian noise; who
sees the models cannot tell whether a client took part, within (epsilon, delta). The clients are simulated in this process;
in a deployment the body of `main` goes into a ServerApp's main, with its grid.
"""

from __future__ import annotations

import sys

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedfault.config import load
from fedfault.flower.client import app
from fedfault.flower.local import LocalGrid
from fedfault.flower.payload import from_arrays
from fedfault.setup.experiment import prepare

NOISE = 1.0  # standard deviations of the noise, in units of the clipping norm
CLIP = 1.0  # of a client's change of the whole adapter
DELTA = 1e-2  # of a federation this small; 1 / (number of clients) is no protection, so take much less with many


def train(grid: Grid, words: list[str]) -> tuple[ArrayRecord | None, RdpAccountant]:
    """Train with central differential privacy at the level of clients: the last adapter, and what was spent."""
    exp = load(words[0], [*words[1:], "federation.weighting=uniform", "federation.participation_rate=1.0"]).experiment
    p, N = prepare(exp), exp.federation.total_clients
    x = p.federation.task.init(exp.seed)
    about = PrivacyConfig(DELTA, N, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    accountant = RdpAccountant(about)
    everyone = FedAvg(min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0)
    private = DifferentialPrivacyServerSideFixedClipping(everyone, NOISE, CLIP, N, accountant=accountant)

    def report(t: int, arrays: ArrayRecord) -> MetricRecord:
        score = p.federation.task.evaluate(from_arrays(arrays, x, None, {"x": True})["x"])["validation"]  # type: ignore[arg-type]
        spent = f"epsilon {accountant.get_privacy_spent().epsilon:.2f} at delta {DELTA:g}" if t else "nothing spent"
        print(f"round {t}: perplexity {score.perplexity:.1f}, {spent}", flush=True)
        return MetricRecord({"loss": score.loss})

    experiment = ConfigRecord({"experiment": exp.model_dump_json()})
    start = ArrayRecord({"x": Array(x.flat.cpu().numpy())})
    done = private.start(grid, start, num_rounds=exp.federation.num_rounds, train_config=experiment, evaluate_fn=report)
    return done.arrays, accountant


if __name__ == "__main__":
    words = sys.argv[1:] or ["quickstart"]
    clients = load(words[0], words[1:]).experiment.federation.total_clients
    train(LocalGrid(app, LocalGrid.partitions(clients)), words)
