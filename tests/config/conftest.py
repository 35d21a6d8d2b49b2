from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfault import registry


def fedavg(): ...
def fedprox(*, mu: float = 0.01): ...
def iid(): ...
def topic_skew(*, alpha: float = 0.5, convention: str = "topic"): ...
def topic_isolation(*, leak: float = 0.0): ...
def fedit(): ...
def registers(): ...
def ag_news(): ...
def text(): ...
def uniform(): ...
def fixed(*, rank: int | None = None, ranks: list[int] | None = None): ...
def lite(*, r_bar: float = 8.0, ema_alpha: float = 0.3, deadline_penalty: float = 0.5): ...


KNOWN = {
    "algorithm": [fedavg, fedprox],
    "aggregation": [fedit],
    "partition": [iid, topic_skew, topic_isolation],
    "corpus": [ag_news, registers, text],
    "scheduler": [fixed, lite],
    "selection": [uniform],
}


@pytest.fixture(autouse=True)
def components(monkeypatch):
    """A few components with the real names, so that nothing heavy is imported."""
    monkeypatch.setattr(registry, "load_builders", lambda kind: {f.__name__: f for f in KNOWN[kind]})


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes a file into an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def file(text: Any, name: str = "x.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file
