"""A task that passes everything on must pass on what the protocol asks: a method left out would answer None in silence."""

from __future__ import annotations

from fedfault.tasks.delegating import DelegatingTask
from fedfault.types.task import Task, Trainable


def test_every_question_of_the_protocol_is_passed_on():
    asked = {name for protocol in (Trainable, Task) for name in vars(protocol) if not name.startswith("_")}
    assert {"grad", "layout", "checksums"} <= asked
    assert asked <= set(vars(DelegatingTask))
