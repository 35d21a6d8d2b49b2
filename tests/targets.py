"""What reads bytes that anybody may have written: each takes them whole, and an exception that it raises is a bug.

Seeds of each are in tests/seeds; `tests/fuzz.py` looks for more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedfault.config.files import dump
from fedfault.config.loading import load
from fedfault.corpora.text import text
from fedfault.errors import UserError

SEEDS = Path(__file__).parent / "seeds"


def read_configuration(data: bytes) -> None:
    """A configuration is refused in words, or loads as an experiment whose file loads as the same one."""
    with tempfile.TemporaryDirectory() as folder:
        file, again = Path(folder, "a.yaml"), Path(folder, "b.yaml")
        file.write_bytes(data)
        try:
            loaded = load(file)
        except UserError:
            return
        again.write_text(dump(loaded.resolved), encoding="utf-8")
        assert load(again).experiment == loaded.experiment


def read_corpus(data: bytes) -> None:
    """A table is refused in words, or becomes documents that have text; its first byte says which ending it has."""
    if not data:
        return
    ending = ("csv", "tsv", "jsonl", "parquet", "txt")[data[0] % 5]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"a.{ending}")
        file.write_bytes(data[1:])
        try:
            corpus = text(path=str(file), topic_column=None if ending == "txt" else "topic")
        except UserError:
            return
        for document in (*corpus.train, *corpus.validation):
            assert document.text.strip()
            assert document.topic
            document.text.encode()


def read_payload(data: bytes) -> None:
    """The bytes of an update are refused in words, or are as many finite numbers as there must be."""
    from flwr.app import Array

    from fedfault.flower.payload import Refused, read_numbers

    for shape, dtype in (((6,), "float32"), ((), "float64")):
        try:
            found = read_numbers("x", Array(dtype, shape, "numpy.ndarray", data), shape, dtype)
        except Refused:
            continue
        assert found.shape == shape
        assert np.isfinite(found).all()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "configuration": read_configuration,
    "corpus": read_corpus,
    "payload": read_payload,
}
