"""The ledger's byte example: 4 layers, targets q and v, d = k = 128, r = 8, no head: 16,384 numbers, 65,536 bytes."""

from __future__ import annotations

import torch

from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.wire import pack

LAYOUT = Layout.of([Site(f"{i}.{m}", "lora", (8, 128, 128)) for i in range(4) for m in "qv"])


def test_fedavg_weighs_what_the_specification_says():
    x = Adapter(LAYOUT, torch.zeros(LAYOUT.size))
    assert LAYOUT.size == 16_384
    assert len(pack({"x": x})) == 65_536
    cohort = {"x": Adapter(LAYOUT, torch.zeros(3, LAYOUT.size)), "n": torch.ones(3)}
    assert len(pack(cohort, 1)) == 65_536


def test_a_scalar_weighs_eight_bytes_and_two_adapters_weigh_two():
    x = Adapter(LAYOUT, torch.zeros(2, LAYOUT.size))
    assert len(pack({"x": x, "steps": torch.tensor([3, 4])}, 0)) == 65_536 + 8
    assert len(pack({"x": x, "c": x}, 0)) == 2 * 65_536


def test_the_payload_is_the_client_s_own_row():
    flat = torch.arange(2 * LAYOUT.size, dtype=torch.float32).view(2, -1)
    assert pack({"x": Adapter(LAYOUT, flat)}, 1) == flat[1].numpy().tobytes()
