"""Arithmetic on adapters, beside what the tests of algorithms and aggregations say of it."""

from __future__ import annotations

import torch

from fedfault import algebra
from fedfault.types.adapter import Adapter, Layout, Site

LAYOUT = Layout.of([Site("w", "lora", (2, 3, 4)), Site("bias", "full", (5,))], scaling=0.5)


def test_a_mean_taken_in_parts_is_the_mean(monkeypatch):
    g = torch.Generator().manual_seed(0)
    flat, weight = torch.randn(3, LAYOUT.size, generator=g), torch.tensor([1.0, 2.0, 5.0])
    monkeypatch.setattr(algebra, "WIDE", 12)  # four columns of three clients
    found = algebra.mean(Adapter(LAYOUT, flat), weight).flat
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (flat * weight[:, None]).sum(0) / 8)


def test_one_clients_mean_is_what_it_sent_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(algebra, "WIDE", 1)
    flat = torch.rand(1, LAYOUT.size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(algebra.mean(Adapter(LAYOUT, flat), torch.tensor([7.0])).flat, flat[0])
