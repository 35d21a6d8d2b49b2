"""Commands and options that are none: what was meant."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runn"], "error: no command 'runn'; did you mean 'run'? (known: run, "),
        (["flower", "ru"], "error: no command 'ru'; did you mean 'run'? (known: run, keys)"),
        (
            ["run", "--lr", "1e-3"],
            "error: no option '--lr'; settings are written key=value, this one as training.lr=VALUE",
        ),
        (["run", "quickstart", "--overwite"], "error: no option '--overwite'; did you mean '--overwrite'?"),
        (["study", "--job", "2"], "error: no option '--job'; did you mean '--jobs'?"),
        (["--lr"], "error: no option '--lr'; settings are written key=value, this one as training.lr=VALUE"),
    ],
)
def test_a_word_that_no_command_knows_is_told_once_what_is_meant(fedfault, words, told):
    status, out, err = fedfault(*words)
    assert (status, out) == (2, "")
    assert err.startswith(told)
    assert err.lower().count("did you mean") <= 1
