"""The list of a folder's runs, on the terminal and as a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import filelock
import pytest
import yaml

from fedfault.compare import listing
from fedfault.errors import UserError
from fedfault.report.terminal import format_table
from handmade import record, update, write


@pytest.fixture
def folder(tmp_path):
    """Three runs of two algorithms, of which the second has lost its process, and one that is damaged."""
    for i, (name, algorithm, end) in enumerate(
        (("good", "fedavg", 3.0), ("cut", "fedprox", 4.5), ("bad", "fedavg", 6.0))
    ):
        place = write(tmp_path / name, [record(0, 5.0), record(1, end)], rounds=1)
        config = yaml.safe_load((place / "config.yaml").read_text())
        config |= {"experiment_name": name, "federation": {**config["federation"], "algorithm": {"name": algorithm}}}
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        os.utime(place / "rounds.jsonl", (1000 + i, 1000 + i))
    (tmp_path / "cut/manifest.json").write_text(json.dumps({"status": "running"}))
    update(tmp_path / "bad/metrics.json", verdict={"state": "failed"})
    broken = write(tmp_path / "broken", [record(0, 5.0)])
    (broken / "rounds.jsonl").write_text("{}\n" * 2)
    (tmp_path / "notes").mkdir()
    return tmp_path


def states(entries):
    return {e.run.name: e.state for e in entries}


def test_every_run_is_listed_with_where_it_stands(folder):
    found = listing.list_runs(folder)
    assert states(found) == {"good": "finished", "cut": "interrupted", "bad": "failed", "broken": "damaged"}
    assert [e.run.name for e in found] == ["broken", "bad", "cut", "good"]  # the newest first
    good = found[-1]
    assert (good.score, round(good.before, 1), round(good.after, 1)) == ("perplexity", 90.0, 33.1)  # exp(4.5), exp(3.5)
    assert "rounds.jsonl is corrupt" in found[0].problem


def test_a_run_whose_process_is_at_work_is_running(folder):
    with filelock.FileLock(folder / "cut/.lock"):
        assert states(listing.list_runs(folder))["cut"] == "running"


@pytest.mark.slow
def test_runs_are_chosen_by_settings_and_state_and_sorted_by_score(folder):
    assert set(states(listing.list_runs(folder, ["federation.algorithm=fedavg"]))) == {"good", "bad"}
    assert set(states(listing.list_runs(folder, ["state=interrupted"]))) == {"cut"}
    assert [e.run.name for e in listing.list_runs(folder, sort="after")] == ["good", "cut", "bad", "broken"]
    assert [e.run.name for e in listing.list_runs(folder, sort="name")] == ["bad", "broken", "cut", "good"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("training.lr=1e-3", "ab"),
        ("training.lr=0.001", "ab"),
        ("training={lr: 0.001, weight_decay: 0.1}", "b"),
        ("metrics.gradients=false", "a"),
        ("metrics.gradients=False", ""),
        ("seed=1", "a"),
        ("seed=true", ""),
        ("model.name=007", "b"),
        ("logging.trackers=[trackio]", "a"),
        ("training.max_grad_norm=null", "ab"),
        ("federation.algorithm.name=fedavg", ""),
        ("federation.asynchronous.name=fedbuff", ""),  # of a section that no run has
        ("state=damaged", ""),
    ],
)
def test_a_filter_compares_values_as_configurations_write_them(tmp_path, word, found):
    for name, own in (
        (
            "a",
            {
                "seed": 1,
                "training": {"lr": 0.001},
                "metrics": {"gradients": False},
                "logging": {"trackers": ["trackio"]},
            },
        ),
        (
            "b",
            {"training": {"lr": 1e-3, "weight_decay": 0.1}, "metrics": {"gradients": True}, "model": {"name": "007"}},
        ),
    ):
        place = write(tmp_path / name, [record(0, 5.0)])
        (place / "config.yaml").write_text(yaml.safe_dump({"experiment_name": name, **own}))
    assert "".join(e.run.name for e in listing.list_runs(tmp_path, [word], "name")) == found


@pytest.mark.parametrize(
    ("wanted", "sort", "told"),
    [
        (["state=faild"], "age", "no run is in such a state; did you mean 'failed'? (known: healthy, no alarm"),
        (["training"], "age", "'training' is no filter; write key=value"),
        (["training.lrr=1"], "age", "no run here has a setting 'training.lrr'"),
        ([], "aftr", "sorted by name, state, rounds, score, before, after, age; did you mean 'after'?"),
    ],
)
def test_what_cannot_be_asked_is_told(folder, wanted, sort, told):
    with pytest.raises(UserError, match=re.escape(told)):
        listing.list_runs(folder, wanted, sort)


def test_a_folder_without_runs_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        listing.list_runs(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        listing.list_runs(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_the_table_has_the_columns_that_fit(folder, width):
    table = listing.tabulate_list(listing.list_runs(folder, ["federation.algorithm=fedavg"]), width)
    assert table.columns[:2] == ("run", "state")
    if width is not None:
        rows = [table.columns, *table.rows]
        assert sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 2 * (len(table.columns) - 1) <= width
    every = listing.tabulate_list(listing.list_runs(folder, sort="name"))
    assert [row[every.columns.index("algorithm")] for row in every.rows] == ["fedavg", "–", "fedprox", "fedavg"]


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_scores_stay_where_names_and_states_are_long(tmp_path, width):
    """Perplexities of exp(5.0) and exp(4.0); a name of 39 characters, a state of 25."""
    long = "topic_isolation_scaffold-seed1-c1c2edb2"
    for name in (long, "base"):
        place = write(tmp_path / name)
        config = yaml.safe_load((place / "config.yaml").read_text())
        (place / "config.yaml").write_text(yaml.safe_dump(config | {"experiment_name": name}))
        (place / "metrics.json").write_text(json.dumps({"verdict": {"state": "no alarm (not calibrated)"}}))
    table = listing.tabulate_list(listing.list_runs(tmp_path, sort="name"), width)
    lines = format_table(table, width)
    assert max(map(len, lines)) <= width
    assert {"run", "state", "score", "before", "after"} <= set(lines[0].split())
    assert [line.split()[-2:] for line in lines if line.startswith(("base", "topic"))] == [["148.4", "54.6"]] * 2
    assert table.rows[1][0].replace("\n", "") == long


def test_files_that_are_odd_are_named_below_the_table(folder, capsys):
    with (folder / "good/rounds.jsonl").open("a") as f:
        f.write('{"round": 2')
    found = listing.list_runs(folder)
    told = "The last line of rounds.jsonl is incomplete and was left out."
    assert {e.run.name: e.to_json()["notes"] for e in found if e.run.notes} == {"good": [told]}
    listing.print_list(found)
    assert f"{folder / 'good'}: {told}" in capsys.readouterr().out.splitlines()
    assert told in listing.write_index(folder, found).read_text()


@pytest.mark.slow
def test_the_page_links_reports_and_names_what_is_damaged(folder):
    (folder / "good/report.html").write_text("")
    page = listing.write_index(folder, listing.list_runs(folder)).read_text()
    assert '<a href="good/report.html">good</a>' in page
    assert "bad/report.html" not in page
    assert "rounds.jsonl is corrupt" in page
    listing.write_index(folder, listing.list_runs(folder))
    (folder / "index.html").write_text("<html>my own</html>")
    with pytest.raises(UserError, match="not a page of fedfault's"):
        listing.write_index(folder, listing.list_runs(folder))


@pytest.mark.long
def test_a_click_on_a_column_sorts_the_page(folder):
    if (browser := shutil.which("chromium")) is None:
        pytest.skip("no chromium here")
    page = listing.write_index(folder, listing.list_runs(folder, ["federation.algorithm=fedavg"]))
    click = "<script>document.querySelectorAll('thead button')[5].click()</script></body>"  # after
    page.write_text(page.read_text().replace("</body>", click))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.findall(r'<th scope="row">(\w+)', shown) == ["good", "bad"]
    assert 'aria-sort="ascending"' in shown


def test_scores_are_written_as_in_the_reports_and_runs_of_one_name_have_their_folder_beside_it(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)  # the perplexity is exp(5.0) before, exp(4.0) after
    table = listing.tabulate_list(listing.list_runs(tmp_path))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert set(rows) == {"trial (one)", "trial (two)"}
    assert (rows["trial (one)"]["before"], rows["trial (one)"]["after"]) == ("148.4", "54.6")


def test_runs_of_one_name_in_folders_of_one_name_have_the_whole_folder_beside_it(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "runs" / "same")
    names = {row[0] for row in listing.tabulate_list(listing.list_runs(tmp_path)).rows}
    assert names == {f"trial ({tmp_path / name / 'runs' / 'same'})" for name in ("a", "b")}
