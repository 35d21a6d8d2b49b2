"""Runs of other programs, logged round by round: what is found, what the folder holds, what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fedfault as ff
from fedfault.cli import main
from fedfault.diagnosis.watch import Watch, diagnose_run
from fedfault.monitor import Monitor
from fedfault.monitor.files import diagnose_files
from fedfault.report.verdict import list_findings
from fedfault.runs.read import read_run


def log_run(folder, name, seed=0, broken=False, rounds=8, **options):
    """A run whose loss falls by exp(-t / 3), and rises from round 5 on if it is broken."""
    g = np.random.default_rng(seed)
    found = []
    with Monitor(name, results_dir=folder, settings={"lr": 0.1, "seed": seed}, **options) as monitor:
        for t in range(rounds + 1):
            loss = 2 + 2 * math.exp(-t / 3) + 0.01 * g.normal() + 0.4 * max(0, t - 5) * broken
            rows = g.normal(size=(4, 30)) + 0.5
            measured = {"updates": rows, "server_update": rows.mean(axis=0)} if t else {}
            found += monitor.log(
                t, loss=loss, client_losses={k: loss + g.normal(0, 0.01, 5) for k in (0, 1)}, **measured
            )
    return monitor, found


def test_a_loss_that_rises_is_found_in_the_round_in_which_it_stays_up(tmp_path):
    monitor, found = log_run(tmp_path, "mine", broken=True)
    assert next((f.detector, f.round) for f in found if f.level == "alarm") == ("divergence", 7)
    assert monitor.verdict["state"] == "failed"
    assert json.loads((tmp_path / "mine" / "findings.jsonl").read_text().splitlines()[0])["round"] == found[0].round


@pytest.mark.long
@pytest.mark.slow
def test_the_folder_is_read_by_diagnose_report_compare_and_runs(tmp_path, monkeypatch, capsys):
    log_run(tmp_path, "good")
    monitor, _ = log_run(tmp_path, "bad", broken=True)
    run = ff.open(tmp_path / "bad")
    assert (run.status, run.verdict.state) == ("finished", monitor.verdict["state"])
    assert ff.diagnose(run).data.findings == run.data.findings
    assert list(run.rounds["loss"].dropna().index) == list(range(9))
    assert [one.name for one in ff.runs(tmp_path, "state=failed")] == ["bad"]
    assert "bad − good" in repr(ff.compare([tmp_path / "good", tmp_path / "bad"]))
    page = run.report().read_text(encoding="utf-8")
    assert "Another program trained" in page
    assert "fedfault resume" not in page
    assert "trained on" not in page
    monkeypatch.setattr(sys, "argv", ["fedfault", "resume", str(tmp_path / "bad")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "another program trained" in capsys.readouterr().err


def test_advice_names_no_settings_of_fedfault_in_a_run_of_another_program(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    found = [f for t, loss in enumerate([4.0, 3.0, 3.4, math.nan]) for f in monitor.log(t, loss=loss)]
    monitor.finish()
    words = ("half the learning rate of the clients", "a lower norm to which gradients are clipped")
    assert found
    assert {f.advice[:2] for f in found} == {words}
    assert "try: half the learning rate of the clients" in diagnose_run(monitor.folder)[0]
    assert [f.advice for f in read_run(monitor.folder).findings] == [f.advice for f in found]
    assert list_findings(read_run(monitor.folder))[0][0].advice.startswith("half the learning rate")
    own = Watch({"detectors": {"calibration": "none"}}).follow(read_run(monitor.folder).records).findings
    assert {f.advice[0] for f in own} == {"training.lr at half"}


def test_what_is_logged_is_what_is_recorded(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(0, client_losses={3: [1.0, 2.0, 3.0]})
    rows = [[3.0, 0.0], [0.0, 4.0]]
    kept = {"clients": [3, 5], "weights": [1, 3], "train_losses": [2.0, 1.0], "steps": [7, 8], "tokens": [10, 20]}
    monitor.log(
        2, client_losses={3: [2.0, 3.0, 5.0]}, updates=rows, server_update=[1.5, 2.0], probes={"mine": 2}, **kept
    )
    none, record = read_run(tmp_path / "mine").records[1:]
    assert none.round == 1
    assert not none.scores
    assert [(c.client, c.weight, c.loss, c.steps, c.update_norm) for c in record.clients] == [
        (3, 0.25, 2.0, 7, 3.0),
        (5, 0.75, 1.0, 8, 4.0),
    ]
    assert record.tokens == 30
    score = record.scores["client/3"]
    assert score.loss == pytest.approx(10 / 3)
    assert score.blocks == 3
    assert score.se == pytest.approx(np.std([1, 1, 2], ddof=1) / math.sqrt(3))
    assert record.probes["update_norm"] == pytest.approx(2.5) == record.probes["server_norm"]
    assert record.probes["pairwise_cosine"] == 0
    assert record.probes["mine"] == 2
    assert record.clients[0].probes["cosine"] == pytest.approx(0.6)


def test_inner_products_say_what_the_rows_say(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 40))
    for name, given in (("updates", rows), ("products", rows @ rows.T)):
        with Monitor(name, results_dir=tmp_path, say=lambda text: None) as monitor:
            monitor.log(1, **{name: given})
    one, other = (read_run(tmp_path / name).records[1] for name in ("updates", "products"))
    assert {k: pytest.approx(v) for k, v in one.probes.items()} == other.probes
    assert [c.update_norm for c in one.clients] == pytest.approx([c.update_norm for c in other.clients])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_a_client_that_is_not_finite_is_left_out_by_name_and_hides_nothing(tmp_path, bad):
    told: list[str] = []
    rows = np.random.default_rng(0).normal(size=(3, 20))
    half = [np.ones((3, 20)), np.ones((3, 20))]
    monitor = Monitor("mine", results_dir=tmp_path, say=told.append)
    rows[0, 0] = half[1][2, 3] = bad
    with np.errstate(all="ignore"):
        products = rows @ rows.T
    for t, given in ((1, {"updates": rows}), (2, {"products": products})):
        found = monitor.log(t, clients=[4, 5, 6], server_update=np.zeros(20), gradients=half, **given)
        assert any(f.detector == "no_federation" for f in found) == (t == 1)  # it holds in the second round
    one, other = read_run(monitor.folder).records[1:]
    assert monitor.verdict["state"] == "failed"
    assert one.events == other.events
    assert one.events == (
        "updates not finite, left out of what is measured: client 4",
        "gradients not finite, left out of what is measured: client 6",
    )
    assert "mine: round 1: updates not finite, left out of what is measured: client 4" in told
    assert one.probes["update_norm"] == pytest.approx(np.linalg.norm(rows[1:].mean(axis=0)))
    assert one.probes["drift_between"] == 0
    assert [math.isnan(c.update_norm) for c in one.clients] == [True, False, False]
    assert "halves" not in one.matrices


def test_a_client_that_sends_what_another_sent_is_named(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 50))
    rows[3] = rows[1]
    rows[4:] = [[0.0], [math.nan]]  # who does not move, or is left out, is no copy
    monitor = ff.Monitor("mine", results_dir=tmp_path)
    monitor.log(1, updates=rows, clients=[9, 7, 5, 2, 1, 0])
    monitor.log(2, updates=rows[[0, 1, 2]])
    one, two = read_run(tmp_path / "mine").records[1:]
    assert one.events == (
        "updates not finite, left out of what is measured: client 0",
        "clients 7, 2 sent the same update",
    )
    assert two.events == ()


@pytest.mark.parametrize(("apart", "told"), [(0.0, ("all 3 clients sent the same update",)), (1e-3, ())])
def test_clients_that_all_send_the_same_update_are_told(tmp_path, apart, told):
    rows = np.tile(np.random.default_rng(0).normal(size=50), (3, 1))
    rows *= 1 + apart * np.arange(3)[:, None]
    for name, given in (("updates", rows), ("products", rows @ rows.T)):
        monitor = Monitor(name, results_dir=tmp_path, say=lambda text: None)
        monitor.log(1, **{name: given})
        assert read_run(monitor.folder).records[1].events == told


def test_a_server_and_a_probe_that_are_not_finite_are_told(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(1, updates=[[math.nan, 1.0]], server_update=[math.nan, 1.0], probes={"effective_rank": math.inf})
    assert read_run(monitor.folder).records[1].events == (
        "updates not finite, left out of what is measured: client 0",
        "server_update not finite: no loss of such a model counts",
        "probe effective_rank not finite, left out",
    )


def test_inner_products_may_be_rounded(tmp_path):
    rows = np.random.default_rng(0).normal(size=(1, 500)).astype(np.float16)
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    for t, own in enumerate([np.tile(rows, (5, 1)), 1e-30 * rows.repeat(2, axis=0).astype(float), np.zeros((3, 2))], 1):
        monitor.log(t, products=own @ own.T)
    near = [[1.0, 1.0005], [1.0005, 1.0]]
    monitor.log(9, products=near)
    assert read_run(monitor.folder).rounds_done == 9


def test_gradients_switch_drift_and_fairness_on(tmp_path):
    told: list[str] = []
    monitor = Monitor("mine", results_dir=tmp_path, say=told.append)
    g, pull = np.random.default_rng(0), np.array([[2.0], [-2.0], [2.0], [-40.0]])
    found = []
    for t in range(1, 6):
        halves = [pull + 0.1 * g.normal(size=(4, 20)) for _ in range(2)]
        found += monitor.log(t, loss=3.0 + t % 2, gradients=halves)
    assert {"client_drift", "fairness_gap"} <= {f.detector for f in found if f.level == "alarm"}
    assert len(told) == 1
    assert "no_federation (needs server_update= and updates= or products=)" in told[0]
    assert "slow_convergence (needs calibration=)" in told[0]
    assert "client_drift" not in told[0]


def test_clients_that_lose_are_found_where_their_examples_are_given(tmp_path):
    g = np.random.default_rng(1)
    start = {k: g.normal(3, 1, 30) for k in (0, 1)}
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(0, client_losses=start)
    worse = {0: start[0] - 0.5 + g.normal(0, 0.1, 30), 1: start[1] + 0.5 + g.normal(0, 0.1, 30)}
    found = [f for t in (1, 2) for f in monitor.log(t, client_losses=worse)]
    assert [(f.detector, f.level) for f in found] == [("negative_transfer", "suspect"), ("negative_transfer", "alarm")]
    assert found[0].sentence.startswith("client 1 is 0.5")


@pytest.mark.long
@pytest.mark.slow
def test_nineteen_iid_runs_of_the_users_own_set_the_thresholds(tmp_path):
    folders = [log_run(tmp_path, f"iid-{seed}", seed, say=lambda text: None)[0].folder for seed in range(1, 20)]
    file = Monitor.calibrate(folders, tmp_path / "thresholds.json")
    good, _ = log_run(tmp_path, "good", 77, calibration=file)
    assert good.verdict["state"] == "healthy"
    assert good.verdict["controls"] == 19
    bad, _ = log_run(tmp_path, "bad", 78, broken=True, calibration=file)
    assert bad.verdict["causes"] == ["divergence"]
    long, _ = log_run(tmp_path, "long", 79, rounds=12, calibration=file)
    assert "monitor.rounds=12 (8)" in long.verdict["sure"]
    assert ff.diagnose(long.folder).data.metrics["verdict"]["sure"] == long.verdict["sure"]


@pytest.mark.slow
def test_controls_of_unlike_runs_are_refused(tmp_path):
    folders = [log_run(tmp_path, f"iid-{i}", i)[0].folder for i in (1, 2)]
    longer = log_run(tmp_path, "longer", 3, rounds=9)[0].folder
    with pytest.raises(ff.UserError, match="differ in rounds 8 and 9"):
        Monitor.calibrate([*folders, longer], tmp_path / "thresholds.json")
    (tmp_path / "thresholds.txt").touch()
    with pytest.raises(ff.UserError, match=r"thresholds\.txt exists and is not a calibration"):
        Monitor.calibrate(folders, tmp_path / "thresholds.txt")
    with pytest.raises(ff.UserError, match="2 control runs; a calibration needs 3"):
        Monitor.calibrate(folders, tmp_path / "thresholds.json")
    with pytest.raises(ff.UserError, match="named twice"):
        Monitor.calibrate([folders[0]] * 3, tmp_path / "thresholds.json")
    flat = [Monitor(f"flat-{i}", results_dir=tmp_path, say=lambda text: None) for i in range(3)]
    for monitor in flat:
        monitor.log(0, loss=3.0)
        monitor.log(1, loss=3.0)
        monitor.finish()
    with pytest.raises(ff.UserError, match="3 of 3 controls fail or learn nothing"):
        Monitor.calibrate([monitor.folder for monitor in flat], tmp_path / "thresholds.json")


def test_a_single_name_is_one_and_not_its_letters(tmp_path):
    with pytest.raises(ff.UserError, match=r"nowhere\.py"):
        Monitor("mine", results_dir=tmp_path, plugins="nowhere.py")
    with pytest.raises(ff.UserError, match="mine"):
        Monitor.calibrate(str(tmp_path / "mine"), tmp_path / "out.json")


@pytest.mark.slow
def test_a_calibration_of_our_own_runs_does_not_judge_others(tmp_path):
    packaged = ff.__path__[0] + "/diagnosis/calibrations/quickstart.json"
    with pytest.raises(ff.UserError, match="was not made from monitored runs"):
        Monitor("mine", results_dir=tmp_path, calibration=packaged)
    assert not (tmp_path / "mine").exists()
    log_run(tmp_path, "mine")
    assert ff.diagnose(tmp_path / "mine", "packaged").data.metrics["verdict"]["calibration"] is None


WRONG = {
    "updates of unequal shapes": (
        {"updates": [[1.0, 2.0], [1.0]]},
        r"updates\[1\] has 1 numbers and updates\[0\] has 2",
    ),
    "one row": ({"updates": [1.0, 2.0]}, "a row of P numbers is needed"),
    "no products": ({"products": [[1.0, 2.0], [3.0, 1.0]]}, r"a symmetric \(K, K\)"),
    "a cosine of 2": ({"products": [[1.0, 2.0], [2.0, 1.0]]}, "products cannot be inner products of updates"),
    "three opposites": ({"products": 2 * np.eye(3) - 1}, "cannot be inner products"),
    "a length of 0": ({"products": [[0.0, 2.0], [2.0, 0.0]]}, "cannot be inner products"),
    "half a nan": ({"products": [[1.0, math.nan], [math.nan, 1.0]]}, "cannot be inner products"),
    "both": ({"updates": [[1.0]], "products": [[1.0]]}, "give one of them"),
    "text": ({"loss": "low"}, "loss should be numbers"),
    "no losses": ({"loss": []}, "give one number, or the losses of the examples"),
    "other clients": ({"updates": [[1.0, 2.0]] * 2, "clients": [1, 2, 3]}, "clients has 3, updates has 2"),
    "twice": ({"updates": [[1.0, 2.0]] * 2, "clients": [1, 1]}, "none be there twice"),
    "other width": ({"updates": [[1.0, 2.0]] * 3, "server_update": [1.0, 2.0, 3.0]}, "server_update has 3 numbers"),
    "halves": ({"gradients": [[1.0, 2.0]]}, "two arrays"),
    "weights": ({"updates": [[1.0, 2.0]] * 3, "weights": [0, 0, 0]}, "not all 0"),
    "a name": ({"client_losses": {"Eve": 3.0}}, "clients are integers"),
    "a float": ({"client_losses": {1.0: 3.0}}, "key 1.0: clients are integers"),
    "a bool": ({"updates": [[1.0, 2.0]] * 2, "clients": [False, True]}, "an integer from 0 on"),
    "beyond a float": ({"loss": 10**400}, "loss has a whole number beyond what a float holds"),
    "beyond all": ({"probes": {"rank": -(10**9999)}}, r"probes\['rank'\] has a whole number beyond"),
    "a list of losses": ({"client_losses": np.array([3.0, 2.0])}, "client_losses should be a mapping"),
    "a list of probes": ({"probes": [3.0]}, "probes should be a mapping"),
    "one client": ({"clients": 3}, "clients=3: a number is needed for each"),
    "one weight": ({"weights": 0.5}, r"weights has the shape \(\): a number is needed for each"),
    "weights in two rows": ({"weights": [[0.5], [0.5]]}, r"weights has the shape \(2, 1\)"),
    "one loss": ({"train_losses": 3.0}, r"train_losses has the shape \(\)"),
    "one product": ({"products": 3.0}, r"products has the shape \(\)"),
    "steps": ({"steps": [1.5]}, "whole numbers"),
    "probe": ({"probes": {"rank": [1, 2]}}, "should be one number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_and_leaves_the_run_as_it_was(tmp_path, case):
    given, told = WRONG[case]
    monitor = Monitor("mine", results_dir=tmp_path)
    monitor.log(0, loss=3.0)
    with pytest.raises(ff.UserError, match=told):
        monitor.log(1, **given)
    monitor.log(1, loss=2.0)
    assert [r.round for r in read_run(monitor.folder).records] == [0, 1]


def test_integers_of_numpy_are_integers(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(np.int64(1), client_losses={np.int32(2): 3.0}, clients=np.array([2, 5]), weights=[1, 1])
    monitor.log(np.uint8(2), loss=3.0)
    records = read_run(monitor.folder).records
    assert [r.round for r in records] == [0, 1, 2]
    assert list(records[1].scores) == ["client/2"]
    assert [c.client for c in records[1].clients] == [2, 5]


def test_rounds_count_upwards_and_end_with_finish(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    with pytest.raises(ff.UserError, match="no round was logged"):
        monitor.finish()
    monitor.log(3, loss=3.0)
    for round in (3, 1, -1, 1.5, 4.0, True, np.True_, "4", np.float64(4)):
        with pytest.raises(ff.UserError, match="round"):
            monitor.log(round, loss=2.0)
    monitor.log(4, loss=math.nan)
    assert monitor.finish()["state"] == "failed"
    with pytest.raises(ff.UserError, match="a new run needs a new Monitor"):
        monitor.log(5, loss=2.0)


@pytest.mark.slow
def test_nothing_is_lost_a_folder_that_is_there_is_only_replaced_if_asked_and_a_monitored_run(tmp_path):
    log_run(tmp_path, "mine")
    with pytest.raises(ff.UserError, match="overwrite=True"):
        Monitor("mine", results_dir=tmp_path)
    Monitor("mine", results_dir=tmp_path, overwrite=True)
    assert read_run(tmp_path / "mine").records == ()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ff.UserError, match="is no monitored run"):
        Monitor("other", results_dir=tmp_path, overwrite=True)
    with pytest.raises(ff.UserError, match="below results_dir"):
        Monitor("a/b", results_dir=tmp_path)
    with pytest.raises(ff.UserError, match="plain values"):
        Monitor("third", results_dir=tmp_path, settings={"model": object()})


def test_an_error_in_the_users_loop_leaves_a_run_that_is_not_finished(tmp_path):
    def loop():
        with Monitor("mine", results_dir=tmp_path) as monitor:
            monitor.log(0, loss=1 / 1)
            monitor.log(1, loss=1 / 0)

    with pytest.raises(ZeroDivisionError):
        loop()
    run = ff.open(tmp_path / "mine")
    assert (run.status, run.data.rounds_done) == ("running", 0)


@pytest.mark.slow
def test_import_and_use_need_no_torch(tmp_path):
    code = "import time; t = time.perf_counter(); from fedfault.monitor import Monitor; s = time.perf_counter() - t\n"
    code += f"m = Monitor('mine', results_dir={str(tmp_path)!r}); m.log(0, loss=3.0); m.log(1, loss=2.0); m.finish()\n"
    code += "import sys; assert 'torch' not in sys.modules; print(s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2


def test_a_round_that_could_not_be_written_can_be_logged_again(tmp_path, monkeypatch):
    """A part of its line stayed behind, and all later rounds were lost with it."""
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(0, loss=5.0)
    whole = (monitor.folder / "rounds.jsonl").read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        monitor.log(1, loss=4.0, server_update=[1.0, 0.0])
    monkeypatch.undo()
    assert (monitor.folder / "rounds.jsonl").read_bytes() == whole
    monitor.log(1, loss=4.0, server_update=[1.0, 0.0])
    monitor.finish()
    last = read_run(monitor.folder).records[-1]
    assert last.round == 1
    assert "round_cosine" not in last.probes  # the update that was not recorded is none to compare with


def test_a_monitor_whose_folder_another_one_took_says_so(tmp_path):
    first = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    first.log(0, loss=5.0)
    second = Monitor("mine", results_dir=tmp_path, overwrite=True, say=lambda text: None)
    with pytest.raises(ff.UserError, match="another one writes to the folder, or has replaced it"):
        first.log(1, loss=4.0)
    with pytest.raises(ff.UserError, match="another one writes to the folder, or has replaced it"):
        first.finish()
    second.log(0, loss=3.0)
    assert [r.scores["validation"].loss for r in read_run(second.folder).records] == [3.0]


def test_a_monitor_stays_with_its_folder_where_the_program_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = Monitor("mine", say=lambda text: None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monitor.log(0, loss=5.0)
    assert monitor.folder == tmp_path / "results" / "mine"
    assert read_run(monitor.folder).rounds_done == 0


def test_rounds_of_several_threads_are_whole(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    taken = []

    def log(t):
        with contextlib.suppress(ff.UserError):  # of a round that came too late
            monitor.log(t, loss=5 - t / 10)
            taken.append(t)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log, range(24)))
    records = read_run(monitor.folder).records
    assert {r.round for r in records if r.scores} == set(taken)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path, name):
    with pytest.raises(ff.UserError, match="of at most 255 bytes"):
        Monitor(name, results_dir=tmp_path)


def test_a_server_whose_model_is_not_finite_has_failed_whatever_loss_is_told(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    for t in range(6):
        monitor.log(t, loss=5 - t / 2, server_update=[1.0, 2.0] if t < 4 else [math.nan, 1.0])
    assert monitor.finish()["state"] == "failed"
    assert monitor.verdict["since"] == 4
    assert monitor.verdict["sentence"].startswith("Round 4: the server's model is not finite.")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"loss": np.ma.array([4.0, 3.0, 99.0], mask=[0, 0, 1])}, "loss has masked numbers"),
        ({"loss": 4 + 1j}, "loss has complex numbers"),
        (
            {"updates": np.ones((2, 5)), "gradients": (np.ones((2, 6)), np.ones((2, 6)))},
            "gradients has 6 numbers and updates have 5",
        ),
    ],
)
def test_numbers_that_would_be_read_as_others_are_refused(tmp_path, given, why):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    with pytest.raises(ff.UserError, match=why):
        monitor.log(0, **given)


def test_tiny_updates_are_not_said_to_be_the_same(tmp_path):
    monitor = Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    monitor.log(1, updates=np.random.default_rng(0).normal(size=(2, 5)) * 1e-200, weights=[1e308, 1e308])
    last = read_run(monitor.folder).records[-1]
    assert last.events == ("all 2 clients sent updates of norm 0",)
    assert [c.weight for c in last.clients] == [0.5, 0.5]


@pytest.mark.slow
def test_runs_that_were_read_from_other_files_are_controls_of_one_another(tmp_path):
    folders = []
    for i in range(3):
        table = tmp_path / f"iid-{i}.csv"
        losses = [2 + 2 * math.exp(-t / 3) + 0.01 * (i + t) % 3 for t in range(8)]
        table.write_text("round,loss\n" + "".join(f"{t},{loss}\n" for t, loss in enumerate(losses)))
        folders.append(tmp_path / f"run-{i}")
        diagnose_files(None, table, out=folders[-1])
    assert Monitor.calibrate(folders, tmp_path / "thresholds.json").is_file()


SUMS = {
    "mean": ([0.25] * 4, None, None),
    "twice the mean": ([0.5] * 4, None, None),
    "backwards": ([-0.25] * 4, "moves against what clients have learned", None),
    "one": ([0, 0, 1, 0], None, "the server took the model of client 5 alone, twice in turn"),
    "others": ([0.7, 0.1, 0.1, 0.1], None, "client 3 by 0.70 and not by 0.25, client 4 by 0.10"),
}


@pytest.mark.parametrize("name", SUMS)
def test_what_the_server_makes_of_the_updates_is_told_once(tmp_path, name):
    weights, alarm, event = SUMS[name]
    g = np.random.default_rng(0)
    with ff.Monitor("mine", results_dir=tmp_path, say=list) as monitor:
        for t in range(1, 5):
            updates = g.normal(size=(4, 60))
            server = np.array(weights) @ updates
            monitor.log(t, updates=updates, server_update=server, clients=[3, 4, 5, 6], weights=[2, 2, 2, 2])
    run = read_run(tmp_path / "mine")
    assert [f.detector for f in run.findings if f.level == "alarm"] == ([] if alarm is None else ["wrong_average"])
    assert alarm is None or alarm in run.findings[-1].sentence
    events = [e for r in run.records for e in r.events]
    assert events == [] if event is None else (len(events) == 1 and event in events[0])


@pytest.mark.parametrize(
    ("losses", "moved", "told"),
    [
        ([4.1234567, 4.1234567, 3.9876543, 3.9876543], 1.0, 1),
        ([4.1234567, 4.1234567, 3.9876543, 3.9876543], 0.0, 0),
        ([4.12, 4.12, 3.98, 3.98], 1.0, 0),  # rounded
        ([4.1234567, 4.0234567, 3.9876543, 3.9876542], 1.0, 0),
        ([math.nan, math.nan, math.nan, math.nan], 1.0, 0),
    ],
)
def test_a_loss_that_stays_to_the_last_digit_while_the_server_moves_is_asked_about_once(tmp_path, losses, moved, told):
    with ff.Monitor("mine", results_dir=tmp_path, say=list) as monitor:
        for t, loss in enumerate(losses):
            monitor.log(t, loss=loss, **({"server_update": moved} if t else {}))
    events = [(r.round, e) for r in read_run(tmp_path / "mine").records for e in r.events]
    assert len(events) == told
    assert all(round == 1 and "to the last digit" in event for round, event in events)
