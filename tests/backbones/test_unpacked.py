"""Transformers' search for packed rows: left out in a block of this thread, and there again for everybody else."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

from fedfault.backbones.unpacked import LOOKS, without_packed_rows


def test_two_threads_that_leave_in_another_order_than_they_came_leave_the_search_as_it_was(monkeypatch):
    masks = SimpleNamespace(**{LOOKS: lambda position_ids: "packed"})
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", masks)
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with without_packed_rows():
            inside.set()
            leave.wait(5)

    other = threading.Thread(target=work)
    with without_packed_rows():
        other.start()
        inside.wait(5)
        assert getattr(masks, LOOKS)(None) is None
    assert getattr(masks, LOOKS)(None) == "packed"  # while the other one is in its block
    leave.set()
    other.join()
    assert getattr(masks, LOOKS)(None) == "packed"
