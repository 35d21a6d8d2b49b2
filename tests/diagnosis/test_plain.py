"""Advice for runs of other programs: nothing in it is a setting or a command that only fedfault's own runs have."""

from __future__ import annotations

import pytest

from fedfault.detectors.divergence import LOOK
from fedfault.diagnosis.detection import build_detectors
from fedfault.diagnosis.plain import ADVICE, SETTINGS, say_plainly

EVERY = sorted({*LOOK, *(text for detector in build_detectors().values() for text in detector.advice)})


@pytest.mark.parametrize("advice", EVERY)
def test_no_advice_names_a_setting_or_a_command_of_fedfault(advice):
    said = say_plainly(advice)
    assert "fedfault" not in said
    assert "=" not in said
    assert not any("." in word.rstrip(".:,)") for word in said.replace("al.,", "").split())
    own = "fedfault" in advice or any("." in word for word in advice.split())
    assert (said != advice) == own


def test_the_table_has_no_words_that_no_detector_needs():
    used = {word for text in EVERY for word in text.split()}
    assert used >= SETTINGS.keys()
    assert set(EVERY) >= ADVICE.keys()


@pytest.mark.parametrize(
    ("advice", "said"),
    [
        ("training.lr lower", "a lower learning rate of the clients"),
        ("training.local_steps fewer", "fewer local steps"),
        ("federation.participation_rate higher", "a higher share of the clients in each round"),
        ("federation.algorithm.server_lr or its momentum lower", "a lower learning rate of the server or its momentum"),
        ("a smaller training.lr", "a smaller learning rate of the clients"),  # of a plug-in
        ("federation.algorithm=of_a_plugin", "federation.algorithm=of_a_plugin"),
        ("look at that client's data", "look at that client's data"),
    ],
)
def test_changes_of_settings_are_said_in_words(advice, said):
    assert say_plainly(advice) == said
