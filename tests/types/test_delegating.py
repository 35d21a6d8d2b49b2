"""A task that passes everything on must pass on what the protocol asks: a method left out would answer None in silence."""

from __future__ import annotations

import pytest

from fedfault.types.delegating import DelegatingTask, DelegatingTrainable
from fedfault.types.task import Task, Trainable


@pytest.mark.parametrize(("protocol", "one"), [(Trainable, DelegatingTrainable), (Task, DelegatingTask)])
def test_every_question_of_the_protocol_is_passed_on(protocol, one):
    asked = {name for name in vars(protocol) if not name.startswith("_")}
    assert {"grad", "checksums"} & asked
    assert asked <= set(vars(one))
