"""`list`, `contract` and `report` as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfault import registry
from fedfault.compare import listing
from handmade import write


@pytest.mark.slow
def test_a_plug_in_is_listed_described_and_checked(fedfault, tmp_path):
    source = str(Path(__file__).parents[1] / "newcomers" / "sign_step.py")
    with registry.keep_plugins():
        status, out, _ = fedfault("list", "algorithm", "--plugin", source)
        assert (status, f"every coordinate: x <- x + server_lr sign(sum_k p_k y_k - x). [{source}]" in out) == (0, True)
        status, out, _ = fedfault("list", "sign_step", "--plugin", source)
        assert (status, out.splitlines()[0]) == (0, f"algorithm sign_step [{source}]")
        (tmp_path / "bad.py").write_text("def (")
        for words in (["run"], ["check"], ["list"], ["study", "quick"], ["calibrate"], ["flower", "run"], ["mitigate"]):
            status, out, err = fedfault(*words, "--plugin", str(tmp_path / "bad.py"))
            assert (status, out, "bad.py:1: syntax error: invalid syntax; correct the plug-in" in err) == (2, "", True)
        assert fedfault("contract", str(tmp_path / "bad.py"))[0] == 2


@pytest.mark.slow
def test_list_shows_components_with_their_docs_and_options(fedfault):
    status, out, _ = fedfault("list")
    assert status == 0
    for part in ("fedavg", "topic_isolation", "registers", "smollm2-135m", "McMahan"):
        assert part in out
    assert "topic_skew" not in fedfault("list", "algorithm")[1]
    assert "convention: per_client, per_topic, balanced = per_client" in fedfault("list", "topic_skew")[1]
    assert "federation.algorithm=scaffold instead of fedavg" in fedfault("list", "client_drift")[1]
    status, _, err = fedfault("list", "fedavgg")
    assert status == 2
    assert "did you mean 'fedavg'" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report.html", ["report"]),
        ("plots", ["report"]),
        ("rounds.jsonl", ["report"]),
        ("rounds.jsonl", ["diagnose"]),
        ("split.json", ["report"]),
    ],
)
def test_a_folder_where_a_file_should_be_or_a_file_for_a_folder_is_named(fedfault, tmp_path, name, words):
    run = write(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).touch() if name == "plots" else (run / name).mkdir()
    status, out, err = fedfault(*words, str(run))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {run / name}: ")
    assert "move it away" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--frozen", "lora_A"], ["--pattern", "{round}/{client}"], ["--overwrite"]])
def test_what_is_about_files_is_refused_beside_a_run(fedfault, tmp_path, option):
    status, _, err = fedfault("diagnose", str(tmp_path), *option)
    assert status == 2
    assert "the other options are for --adapters and --csv without one" in " ".join(err.split())


@pytest.mark.slow
def test_a_list_that_no_run_fits_into_says_so_and_writes_no_page(fedfault, tmp_path):
    write(tmp_path / "a b" / "run")
    folder = str(tmp_path / "a b")
    status, out, err = fedfault("runs", folder, "state=failed", "seed=5")
    assert (status, out) == (2, "")
    assert f"no run in {folder} matches state=failed and seed=5; `fedfault runs '{folder}'` lists" in err
    assert not (tmp_path / "a b" / "index.html").exists()
    assert fedfault("runs", folder, "state=failed", "--json")[:2] == (0, "[]\n")


@pytest.mark.slow
def test_a_list_in_a_folder_that_may_not_be_written_is_printed_without_a_page(fedfault, tmp_path, monkeypatch):
    write(tmp_path / "run")

    def refuse(folder, found):
        raise PermissionError(13, "Permission denied", str(folder / "index.html"))

    monkeypatch.setattr(listing, "write_index", refuse)
    status, out, _ = fedfault("runs", str(tmp_path))
    assert status == 0
    assert "trial" in out
    assert f"no page: {tmp_path / 'index.html'}: permission denied" in out
