"""What every algorithm costs on the wire: the engine's records against the byte table for 16,384 numbers in float32."""

from __future__ import annotations

import pytest
import torch

from fedfault.records import Score
from fedfault.registry import builders
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import federation
from fedfault.types.adapter import Adapter, Layout, Site

WHOLE, SCALAR = 65_536, 8
UP_AND_DOWN = {
    "fedavg": (WHOLE, WHOLE),
    "fedprox": (WHOLE, WHOLE),
    "fedavgm": (WHOLE, WHOLE),
    "fedadagrad": (WHOLE, WHOLE),
    "fedadam": (WHOLE, WHOLE),
    "fedyogi": (WHOLE, WHOLE),
    "fednova": (WHOLE + SCALAR, WHOLE),  # the number of steps
    "scaffold": (131_072, 131_072),
    "scaffold_update_space": (131_072, 131_072),
    "feddyn": (WHOLE, WHOLE + SCALAR),  # the mean weight
    "moon": (WHOLE, WHOLE),
    "clustered": (WHOLE, WHOLE),
    "ifca": (WHOLE + SCALAR, 196_608),  # the choice, one of three
}


class Pulled:
    """Four clients that pull 4 layers, q and v, d = k = 128, rank 8, each towards a number of its own."""

    layout = Layout.of([Site(f"{i}.{name}", "lora", (8, 128, 128)) for i in range(4) for name in "qv"])

    def examples(self, client: int) -> int:
        return 1 + client

    tokens = examples

    def init(self, seed: int) -> Adapter:
        return Adapter(self.layout, torch.zeros(self.layout.size))

    def grad(self, params, step):
        gap = params - step.clients[:, None]
        return gap.pow(2).mean(1), gap, step.real.sum(1)

    def evaluate(self, adapter, personal=None):
        return {"validation": Score(0.0, 1)}

    def fold(self, base) -> None:
        pass

    def checksums(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("name", builders("algorithm"))
def test_the_table(name):
    options = {"ifca": {"num_clusters": 3}, "clustered": {"clusters": [0, 1, 2]}}
    algorithm = (name, options.get(name, {}))
    fed = federation(Pulled(), algorithm, clients=4, cohort_size=2, num_rounds=2, work={"steps": 1})
    *_, (_, record) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in record.clients} == {UP_AND_DOWN[name]}
