"""`flower` without what it needs."""

from __future__ import annotations

import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "missing"),
    [(("run", "quickstart"), "ray"), (("keys", "k", "--host", "h", "--site", "s"), "cryptography")],
)
def test_what_needs_flower_says_how_to_get_it(fedfault, monkeypatch, tmp_path, words, missing):
    for module in ("ray", "cryptography"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fedfault.flower.keys", raising=False)
    monkeypatch.chdir(tmp_path)
    status, out, err = fedfault("flower", *words)
    assert (status, out) == (2, "")
    assert err == f'error: {missing} is not installed; pip install "fedfault[flower]"\n'
    assert not list(tmp_path.iterdir())
