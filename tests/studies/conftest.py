"""Files of studies."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a study file: `write(grid={...})`."""

    def to_file(name="trial", **study):
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(study))
        return file

    return to_file
