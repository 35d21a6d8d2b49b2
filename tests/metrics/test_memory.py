"""Peak memory in megabytes, in the units of each platform."""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from fedfault.registry import build


def taken(on_cuda: bool = False) -> dict[str, float]:
    finished = SimpleNamespace(
        after=SimpleNamespace(adapter=SimpleNamespace(flat=SimpleNamespace(is_cuda=on_cuda, device="cuda:1")))
    )
    return dict(build("probe", "memory").measure(finished).probes)


def test_the_peak_never_falls_and_is_that_of_a_process_with_torch():
    before = taken()["peak_memory_mb"]
    block = torch.ones(2**20)
    assert taken()["peak_memory_mb"] >= before
    del block
    assert 50 < before < 1e6


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_resident_set_is_counted_in_kilobytes_or_on_a_mac_in_bytes(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3_000_000))
    assert taken() == {"peak_memory_mb": 3.0 * unit}


def test_on_cuda_it_is_what_tensors_took(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:1": 7_000_000}.__getitem__)
    assert taken(on_cuda=True) == {"peak_memory_mb": 7.0}


def test_where_the_platform_does_not_say_there_is_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert taken() == {}
