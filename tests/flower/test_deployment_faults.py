"""Nodes that may not take part in a deployment, or leave it: minutes in all, most of them waiting."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from deployment import BIN, finished, records, server, up
from fedfault.backbones.load import load_backbone as backbone
from fedfault.flower.keys import make_keys
from tiny import tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not (BIN / "flower-superlink").is_file(), reason="flower-superlink is not beside this python"),
]


@pytest.mark.parametrize("deployed", [4], indirect=True)
def test_who_may_not_take_part_is_refused_with_the_reason_on_both_sides(deployed):
    """Client 0 is there twice, client 2 has no data, client 3 another model; one has a wrong key, one a wrong authority."""
    d, other = deployed, deployed.folder / "other"
    make_keys(other, ["localhost"], ["second", "stranger"])
    for name in ("second", "stranger"):
        shutil.copy(other / name, d.folder / "keys")
    shutil.copy(d.folder / "keys" / "n1", other)
    for text in (d.folder / "site2" / "data").iterdir():
        text.unlink()
    own = yaml.safe_load((d.folder / "site3" / "site.yaml").read_text())
    (d.folder / "site3" / "site.yaml").write_text(yaml.safe_dump({**own, "model": {"name": another_model(d.folder)}}))
    up(d)
    assert d.flwr("supernode", "register", str(other / "second.pub"), "loop").returncode == 0
    d.supernode(0, name="second", key=d.folder / "keys" / "second")
    d.supernode(1, name="stranger", key=d.folder / "keys" / "stranger")
    d.supernode(1, name="wrong-ca", key=other / "n1")
    d.wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in d.log("wrong-ca"), "the refusal of the wrong certificate")
    d.wait_for(lambda: "Failed to initialize the connection" in d.log("stranger"), "the refusal of the key")
    assert "No SuperNode found with the given public key" in d.log("superlink")
    d.run(server(d, federation={"total_clients": 4, "num_rounds": 1}, flower={"join_seconds": 75.0}))
    d.wait_for(lambda: finished(d), "the run of the one that is left")
    log = d.log("run")
    assert re.search(r"node \d+ is refused: nodes \d+, \d+ all say that they are client 0; only one may", log)
    assert re.search(r"node \d+ is refused: .*site2/data", log)
    assert re.search(r"node \d+ is refused: (model|layout)", log)
    assert "all say that they are client 0" in d.log("node0")
    assert "all say that they are client 0" in d.log("second")
    for k in (2, 3):
        assert "fedfault: refused" in d.log(f"node{k}")
    assert [[c["client"] for c in r["clients"]] for r in records(d)] == [[], [1]]


def another_model(folder: Path) -> str:
    """A model that is not the server's, with its tokenizer."""
    tiny_llama().save_pretrained(folder / "model")
    backbone("micro", precision="fp32", device="cpu").tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def test_a_node_that_is_killed_in_a_round_is_left_out_and_comes_back(deployed):
    d = deployed
    up(d)
    d.run(server(d, federation={"algorithm": "scaffold", "num_rounds": 5}))
    d.wait_for(lambda: len(records(d)) >= 2, "round 1")
    d.kill("node1")
    d.wait_for(lambda: any(r["events"] for r in records(d)), "the round without client 1")
    d.supernode(1)
    d.wait_for(lambda: finished(d), "the run")
    took_part = [1 in [c["client"] for c in r["clients"]] for r in records(d)]
    assert took_part[1]
    assert False in took_part[2:]
    assert took_part[-1]
    events = [e for r in records(d) for e in r["events"]]
    assert all(re.match(r"client 1 (\(node \d+\) is left out: |is not connected)", e) for e in events)
