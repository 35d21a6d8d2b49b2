"""The examples in docstrings print what they say that they print."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import fedfault

SOURCE = Path(fedfault.__file__).parent
FILES = [file.relative_to(SOURCE) for file in sorted(SOURCE.rglob("*.py")) if ">>> " in file.read_text("utf-8")]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_examples_of_a_module_print_what_they_say(file):
    name = ".".join(["fedfault", *file.with_suffix("").parts]).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if str(e.name).startswith("fedfault"):
            raise
        pytest.skip(f"{e.name} is not installed")
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
