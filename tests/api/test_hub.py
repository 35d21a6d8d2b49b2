"""An adapter on its way to the Hub, against the stand-in on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import loopback_hub

UPLOAD = """
import json, sys
from pathlib import Path
from fedfault.api.hub import upload_adapter
from fedfault.errors import UserError
told = []
for repo, token in json.loads(sys.argv[2]):
    try:
        told.append(upload_adapter(Path(sys.argv[1]), "mine", repo, private=True, token=token))
    except UserError as e:
        told.append(str(e))
print(json.dumps(told))
"""


@pytest.mark.slow
def test_an_adapter_is_uploaded_and_what_the_hub_refuses_is_told(tmp_path):
    """In a process of its own, as the Hub's library reads its settings when it is imported."""
    files = {"README.md": "---\nlicense: mit\n---\nA card.\n", "adapter_config.json": "{}", "clients/0/README.md": "x"}
    for name, text in files.items():
        path = tmp_path / "adapter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    root = tmp_path / "hub"
    (root / "models").mkdir(parents=True)
    with loopback_hub.serve(root) as (address, _):
        known = {
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
        }
        asked = json.dumps([["me/mine", "secret"], ["me/mine", None], ["not a name", "secret"]])
        command = [sys.executable, "-c", UPLOAD, str(tmp_path / "adapter"), asked]
        env = {**os.environ, **known}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        there, refused, no_name = json.loads(done.stdout)
    assert there == f"{address}/me/mine"
    made = root / "models" / "me" / "mine"
    assert {p.relative_to(made).as_posix(): p.read_text() for p in made.rglob("*") if p.is_file()} == files
    assert refused.startswith("the Hub has not taken me/mine (status 401: ")
    assert refused.endswith("; log in with `hf auth login`, or give a token that may write there")
    assert no_name.startswith("'not a name' is no name of a repository: write ORG/NAME (")
    offline = subprocess.run(command, env={**env, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True)
    assert json.loads(offline.stdout)[0].startswith("cannot reach the Hub to upload ")
