"""Folders of adapters that real PEFT has saved in a plain loop, right and wrong, and tables of losses: what is said."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fedfault as ff
from fedfault.cli import main
from fedfault.monitor.adapters import read_collection
from fedfault.monitor.files import diagnose_files
from fedfault.monitor.geometry import multiply_changes
from fedfault.monitor.losses import read_losses
from fedfault.monitor.updates import measure_scale
from fedfault.runs.read import read_run

ROOT = Path(__file__).parents[2]
HEALTHY = ("fedavg", "topics", "ffa", "fedsa", "rolora")
BROKEN = {
    "isolated": "not_averaged",
    "leak": "leaked_factor",
    "unloaded": "leaked_factor",
    "stray": "moved_frozen",
    "rescaled": "wrong_scale",
    "dropped": "no_federation",
    "lr": "divergence",
}


def write_adapter(folder, A, B, config=None, **rest):
    """An adapter of one layer as PEFT names it."""
    folder.mkdir(parents=True, exist_ok=True)
    site = "base_model.model.layers.0.q_proj"
    tensors = {f"{site}.lora_A.weight": A, f"{site}.lora_B.weight": B, **rest}
    save_file({name: np.asarray(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))


def write_run(folder, rounds=4, clients=4, ranks=(2,), seed=0):
    """Clients that start from the mean of what all of their rank have sent."""
    g = np.random.default_rng(seed)
    first = g.normal(size=(max(ranks), 6))
    start = {r: (first[:r], np.zeros((5, r))) for r in ranks}
    for t in range(1, rounds + 1):
        sent = {r: [] for r in ranks}
        for k in range(clients):
            r = ranks[k % len(ranks)]
            A, B = (x + 0.1 * g.normal(size=x.shape) for x in start[r])
            sent[r].append((A, B))
            write_adapter(folder / f"round_{t}" / f"client_{k}", A, B, {"r": r, "lora_alpha": 4})
        start = {r: tuple(np.mean(x, axis=0) for x in zip(*pairs, strict=True)) for r, pairs in sent.items()}
    return folder


def change(file, **changes):
    """The file again, with a function applied to the factor A or B."""
    found = load_file(file)
    save_file({n: changes[n.split(".")[-2]](t) if n.split(".")[-2] in changes else t for n, t in found.items()}, file)


@pytest.fixture(scope="module")
def loops():
    """The plain PEFT loop of benchmarks/monitor.py."""
    return runpy.run_path(str(ROOT / "benchmarks/monitor.py"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [*HEALTHY, *BROKEN])
def test_a_plain_peft_loop_is_judged_by_what_it_leaves(loops, tmp_path, name):
    loops["run_loop"](tmp_path / "run", loops["LOOPS"][name], 5)
    diagnose_files(tmp_path / "run", tmp_path / "run" / "losses.csv", out=tmp_path / "out")
    alarms = {f.detector for f in read_run(tmp_path / "out").findings if f.level == "alarm"}
    assert BROKEN.get(name) in alarms if name in BROKEN else not alarms


def test_the_geometry_is_that_of_the_weight_changes(tmp_path):
    """Client 0 moves from s B A = 0 to 2 * [[3, 0]], client 1 to 2 * [[0, 4]]: norms 6 and 8, a right angle."""
    config = {"r": 1, "lora_alpha": 2}
    for k, (A, B) in enumerate([([[1.0, 0.0]], [[3.0]]), ([[0.0, 2.0]], [[2.0]])]):
        write_adapter(tmp_path / "a" / "round_1" / f"client_{k}", A, B, config)
    write_adapter(tmp_path / "a" / "round_1" / "server", [[3.0, 4.0]], [[0.5]], config)
    diagnose_files(tmp_path / "a", out=tmp_path / "out")
    (record,) = [r for r in read_run(tmp_path / "out").records if r.round == 1]
    assert [c.update_norm for c in record.clients] == pytest.approx([6, 8])
    assert record.probes["pairwise_cosine"] == pytest.approx(0)
    assert record.probes["update_norm"] == pytest.approx(5) == record.probes["server_norm"]
    assert record.probes["scale_ratio"] == 1


def test_a_round_is_measured_from_where_the_server_was(tmp_path):
    config = {"r": 1, "lora_alpha": 1}
    for k in (0, 1):
        write_adapter(tmp_path / "a" / "round_3" / f"client_{k}", [[1.0]], [[5.0 + k]], config)
        write_adapter(tmp_path / "a" / "round_4" / f"client_{k}", [[1.0]], [[7.0 + k]], config)
    write_adapter(tmp_path / "a" / "round_3" / "global", [[2.0]], [[3.0]], config)
    diagnose_files(tmp_path / "a", out=tmp_path / "out")
    records = {r.round: r for r in read_run(tmp_path / "out").records}
    assert [c.update_norm for c in records[4].clients] == pytest.approx([1, 2])
    assert all(math.isnan(c.update_norm) for c in records[3].clients)  # where round 3 began is not known


def test_clients_that_send_what_they_were_given_have_moved_by_nothing(tmp_path):
    g = np.random.default_rng(0)
    server = [(g.normal(size=(4, 16)), g.normal(size=(16, 4))) for _ in range(9)]
    for t in range(9):
        for name, sent in (("server", t), ("client_0", t - 1), ("client_1", t - 1)):
            write_adapter(tmp_path / "a" / f"round_{t}" / name, *server[max(sent, 0)], {"r": 4, "lora_alpha": 4})
    diagnose_files(tmp_path / "a", out=tmp_path / "out")
    for record in read_run(tmp_path / "out").records[1:]:
        assert [c.update_norm for c in record.clients] == [0, 0]


def test_mixed_ranks_are_compared_by_their_products(tmp_path):
    told = diagnose_files(write_run(tmp_path / "a", ranks=(2, 4)), out=tmp_path / "out")
    assert "rank 2 and 4" in told or "rank 2, 4" in told
    assert "lora_A: clients start together" in told
    assert read_run(tmp_path / "out").findings == ()


@pytest.mark.slow
def test_what_is_frozen_by_name_has_to_stand_still(tmp_path):
    told = diagnose_files(write_run(tmp_path / "a"), frozen=["lora_A"])
    assert "alarm: moved frozen" in told
    with pytest.raises(ff.UserError, match=r"no tensor of .* is called so"):
        diagnose_files(tmp_path / "a", frozen=["lora_E"])


@pytest.mark.parametrize(("still", "alarms"), [([1], []), ([1, 2], [2]), ([2, 4], [4]), ([1, 2, 3], [2, 3])])
def test_a_part_is_frozen_that_most_clients_leave_alone_in_two_rounds(tmp_path, still, alarms):
    """Where B is 0 the gradient of A is 0: clients with one step leave A alone in round 1, and one with three moves it."""
    folder = write_run(tmp_path / "a")
    for t in still:
        own = load_file(folder / f"round_{t}/client_0/adapter_model.safetensors")
        A = next(value for name, value in own.items() if "lora_A" in name)
        for k in (1, 2):
            change(folder / f"round_{t}/client_{k}/adapter_model.safetensors", lora_A=lambda _, A=A: A)
    diagnose_files(folder, out=tmp_path / "out")
    records = read_run(tmp_path / "out").records[1:]
    assert [r.round for r in records if r.probes["frozen_moved"] == 1] == alarms


@pytest.mark.slow
def test_a_scaling_that_is_not_the_others_is_told(tmp_path):
    folder = write_run(tmp_path / "a")
    for t in range(1, 5):
        (folder / f"round_{t}" / "client_2" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    assert "changes the weights 2 times as much as it should" in diagnose_files(folder)


@pytest.mark.parametrize(
    ("who", "own", "ratio", "why"),
    [
        (2, {"r": 2, "lora_alpha": 32}, 8, "B A times 16, and times 2 in others of its rank"),
        (0, {"r": 2, "lora_alpha": 32}, 8, "B A times 16, and times 2 in others of its rank"),
        (1, {"r": 16, "lora_alpha": 4}, 1 / 8, "factors of rank 2 where rank 16 is stated"),
    ],
)
def test_the_adapter_that_is_scaled_unlike_most_is_named(tmp_path, who, own, ratio, why):
    folder = write_run(tmp_path / "a")
    for t in range(1, 4):
        (folder / f"round_{t}" / f"client_{who}" / "adapter_config.json").write_text(json.dumps(own))
    told = diagnose_files(folder, out=tmp_path / "out")
    file = folder / f"round_1/client_{who}/adapter_config.json"
    assert f"client {who}: {why}, in 3 of 4 rounds; {file} has lora_alpha {own['lora_alpha']} and r {own['r']}" in told
    assert told.count("in 3 of 4 rounds") == 1
    assert [r.probes["scale_ratio"] for r in read_run(tmp_path / "out").records[1:]] == [ratio] * 3 + [1]


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_a_learning_rate_of_the_server_is_no_wrong_scale(tmp_path, rate):
    """Where B was 0, a rate of 1/2 makes a change that is as short as one without alpha / r = 2."""
    g = np.random.default_rng(0)
    config, A, server = {"r": 2, "lora_alpha": 4, "init_lora_weights": True}, g.normal(size=(2, 6)), np.zeros((5, 2))
    for t in (1, 2, 3):
        sent = [server + g.normal(size=(5, 2)) * 0.01 + 1 for _ in range(3)]
        for k, B in enumerate(sent):
            write_adapter(tmp_path / "a" / f"round_{t}" / f"client_{k}", A, B, config)
        server = server + rate * (np.mean(sent, axis=0) - server)
        write_adapter(tmp_path / "a" / f"round_{t}" / "server", A, server, config)
    found = read_collection(tmp_path / "a")
    assert [measure_scale(found, t) for t in (1, 2, 3)] == [1, 1, 1]
    write_adapter(tmp_path / "a" / "round_3" / "server", A, np.mean(sent, axis=0) / 2, config)  # without alpha / r
    assert measure_scale(read_collection(tmp_path / "a"), 3) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["^layers.0.q_proj", "layers.0.q_proj", "q_proj", r".*\.0\..*", "^layers.1.q_proj", "proj"]
)
def test_patterns_of_ranks_and_alphas_match_layers_as_in_peft(tmp_path, key):
    get_pattern_key = pytest.importorskip("peft.utils.other").get_pattern_key
    own = get_pattern_key([key], "layers.0.q_proj") == key
    config = {"r": 3, "lora_alpha": 6, "rank_pattern": {key: 2}, "alpha_pattern": {key: 8}}
    write_adapter(tmp_path / "round_1" / "client_0", np.ones((2, 4)), np.ones((3, 2)), config)
    (upload,) = read_collection(tmp_path).uploads
    (site,) = upload.sites
    assert own == (key not in ("^layers.1.q_proj", "proj"))
    assert (upload.stated_rank(site), upload.scale(site)) == ((2, 4) if own else (3, 2))


@pytest.mark.slow
def test_layers_that_are_saved_in_full_are_a_part_of_their_own(tmp_path):
    g = np.random.default_rng(0)
    for t in (1, 2, 3):
        for k in range(3):
            A, B = g.normal(size=(2, 4)), g.normal(size=(3, 2))
            write_adapter(tmp_path / "a" / f"round_{t}" / f"client_{k}", A, B, **{"head.weight": np.ones((2, 2))})
    told = diagnose_files(tmp_path / "a")
    assert "saved in full: the same in all adapters, saved and sent for nothing" in told
    assert "no adapter_config.json" in told


def test_clients_that_all_send_the_same_are_told(tmp_path):
    folder = write_run(tmp_path / "a")
    for place in folder.glob("round_*/client_[1-3]"):
        shutil.copytree(place.parent / "client_0", place, dirs_exist_ok=True)
    told = diagnose_files(folder, out=tmp_path / "out")
    assert "all clients of a round sent the same adapter to the bit, in 4 of 4 rounds" in told
    assert "lora_B: where clients start is not known, as no two that had sent different ones came again" in told
    assert "all 4 clients sent the same update" in read_run(tmp_path / "out").records[2].events
    assert "the same adapter" not in diagnose_files(write_run(tmp_path / "b"))


def test_a_client_that_sends_its_neighbours_adapter_is_named_and_no_leak(tmp_path):
    folder = write_run(tmp_path / "a", rounds=6, clients=5)
    for t in range(1, 7):
        shutil.copytree(folder / f"round_{t}/client_2", folder / f"round_{t}/client_3", dirs_exist_ok=True)
    told = diagnose_files(folder, out=tmp_path / "out")
    assert "clients 2, 3 sent the same adapter to the bit, in 6 of 6 rounds" in told
    assert "lora_A: clients start together" in told
    assert read_run(tmp_path / "out").findings == ()
    assert "clients 2, 3 sent the same update" in read_run(tmp_path / "out").records[2].events


def test_a_client_that_sends_what_the_server_had_is_named(tmp_path):
    folder = write_run(tmp_path / "a")
    for t in range(1, 5):
        shutil.copytree(folder / f"round_{t}/client_3", folder / f"round_{t}/server")
        shutil.rmtree(folder / f"round_{t}/client_3")
    assert "the server had" not in diagnose_files(folder)
    for t, k, before in ((2, 1, 1), (4, 1, 2), (4, 2, 3)):
        shutil.copytree(folder / f"round_{before}/server", folder / f"round_{t}/client_{k}", dirs_exist_ok=True)
    told = diagnose_files(folder)
    assert "client 1 sent what the server had before, to the bit, in 2 of 4 rounds: did it train" in told
    assert "client 2 sent what the server had before, to the bit, in 1 of 4 rounds" in told
    assert "the same adapter" not in told


def test_half_precision_is_read_as_it_is(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    from fedfault.monitor.tensors import list_tensors

    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        value = torch.linspace(-3, 3, 7).to(dtype).reshape(7, 1)
        save({"x": value, "y": value * 2}, tmp_path / "x.safetensors")
        found = list_tensors(tmp_path / "x.safetensors")
        assert np.array_equal(found["y"].read(), 2 * value.double().numpy())
        save({"x": value, "y": value / 0}, tmp_path / "x.safetensors")
        found = list_tensors(tmp_path / "x.safetensors")
        assert [found[name].is_finite() for name in "xy"] == [True, False]


@pytest.mark.slow
def test_names_patterns_and_single_files(tmp_path):
    folder = write_run(tmp_path / "a", clients=3)
    for t in range(1, 5):
        for k, site in enumerate(("north", "south", "west")):
            (tmp_path / "b").mkdir(exist_ok=True)
            source = folder / f"round_{t}" / f"client_{k}" / "adapter_model.safetensors"
            shutil.copy(source, tmp_path / "b" / f"r{t:02d}-{site}.safetensors")
    told = diagnose_files(tmp_path / "b", pattern="r{round}-{client}.safetensors")
    assert "clients by number: 0 is north, 1 is south, 2 is west" in told
    with pytest.raises(ff.UserError, match=r"there are 12 files like r01-north\.safetensors: .*--pattern"):
        diagnose_files(tmp_path / "b")
    with pytest.raises(ff.UserError, match=r"should have \{client\} in it once"):
        diagnose_files(tmp_path / "b", pattern="r{round}")


def test_adapters_behind_links_are_read_like_others(tmp_path):
    folder = write_run(tmp_path / "a")
    for place in ("round_4", "round_2/client_1"):
        moved = tmp_path / "disk" / place
        moved.parent.mkdir(parents=True, exist_ok=True)
        (folder / place).rename(moved)
        (folder / place).symlink_to(moved)
    (folder / "latest").symlink_to("round_4")
    (folder / "round_1" / "back").symlink_to(folder)
    sent = [(u.round, u.client) for u in read_collection(folder).uploads]
    assert sent == [(t, str(k)) for t in range(1, 5) for k in range(4)]
    with pytest.raises(ff.UserError, match=r"there are 16 files like .*: say where they lie"):
        read_collection(folder, "r{round}/{client}")


@pytest.mark.parametrize(
    ("there", "twice", "whose"),
    [
        ("round_1/client_2", "round_01/client_2", "client 2"),
        ("round_1/server", "round_01/server", "the server"),
        ("round_1/server", "round_1/global", "the server"),
    ],
)
def test_two_adapters_of_one_client_and_round_are_refused_with_both_places(tmp_path, there, twice, whose):
    folder = write_run(tmp_path / "a")
    if not (folder / there).exists():
        shutil.copytree(folder / "round_1" / "client_0", folder / there)
    shutil.copytree(folder / there, folder / twice)
    with pytest.raises(ff.UserError) as e:
        read_collection(folder)
    assert f"are both of {whose} in round 1; take one" in str(e.value)
    assert all(f"{folder / place} " in str(e.value) for place in (there, twice))


@pytest.mark.parametrize("place", ["round_4", "round_2/client_1", "round_3/server"])
def test_a_link_to_nothing_in_the_place_of_adapters_is_refused(tmp_path, place):
    folder = write_run(tmp_path / "a")
    (folder / "notes").symlink_to("gone")
    read_collection(folder)
    shutil.rmtree(folder / place, ignore_errors=True)
    (folder / place).symlink_to("/gone/disk")
    with pytest.raises(ff.UserError, match=f"a/{place} is a link to /gone/disk, where nothing is; put back"):
        read_collection(folder)


@pytest.mark.parametrize("place", ["round_1/client-3", "Round_3/client_0", "round_2/aggregated", "final"])
def test_adapters_that_fit_no_pattern_are_counted(tmp_path, place):
    folder = write_run(tmp_path / "a", rounds=2)
    (folder / "latest").symlink_to("round_2")
    assert "not read" not in diagnose_files(folder)
    (folder / "latest").unlink()
    shutil.copytree(folder / "round_1/client_0", folder / place)
    told = diagnose_files(folder)
    assert f"adapters that are not read: 1, such as {place}/adapter_model.safetensors; they fit neither 'round_" in told


def test_files_that_fit_no_pattern_are_counted(tmp_path):
    file = write_run(tmp_path / "a", rounds=1) / "round_1/client_0/adapter_model.safetensors"
    (tmp_path / "b").mkdir()
    for name in ("r1-north", "r1-south", "r1_west"):
        shutil.copy(file, tmp_path / "b" / f"{name}.safetensors")
    told = diagnose_files(tmp_path / "b", pattern="r{round}-{client}.safetensors")
    assert "adapters that are not read: 1, such as r1_west.safetensors" in told


@pytest.mark.parametrize(
    ("below", "option"),
    [
        ("client_{k}/checkpoint-{k}{t}", "--pattern 'round_{round}/client_{client}/checkpoint-*'"),
        ("client_{k}/mine", "--pattern 'round_{round}/client_{client}/mine'"),
        ("client_{k}/model.safetensors", "--pattern 'round_{round}/client_{client}/model.safetensors'"),
    ],
)
def test_where_an_adapter_lies_deeper_the_pattern_that_finds_it_is_named(tmp_path, below, option):
    folder = write_run(tmp_path / "a")
    for t in range(1, 5):
        for k in range(4):
            own, place = folder / f"round_{t}/client_{k}", folder / f"round_{t}" / below.format(k=k, t=t)
            own.rename(tmp_path / "moved")
            place.parent.mkdir()
            moved = tmp_path / "moved"
            (moved / "adapter_model.safetensors" if place.suffix else moved).rename(place)
            shutil.rmtree(moved, ignore_errors=True)
    with pytest.raises(ff.UserError) as e:
        read_collection(folder)
    assert str(e.value).endswith(f" is there: say {option}")
    assert len(read_collection(folder, option.split("'")[1]).uploads) == 16


def test_two_checkpoints_of_one_client_and_round_are_refused(tmp_path):
    folder = write_run(tmp_path / "a")
    for step in (4, 8):
        shutil.copytree(folder / "round_1/client_0", folder / f"b/round_1/client_0/checkpoint-{step}")
    with pytest.raises(ff.UserError, match=r"checkpoint-4 and .*checkpoint-8 are both of client 0 in round 1"):
        read_collection(folder / "b", "round_{round}/client_{client}/checkpoint-*")


def test_a_server_that_lies_deeper_is_named_by_its_own_option(tmp_path):
    folder = write_run(tmp_path / "a")
    shutil.copytree(folder / "round_1/client_0", folder / "round_1/server/default")
    with pytest.raises(ff.UserError, match=r"default is there: say --server 'round_\{round\}/server/default'"):
        read_collection(folder)


def break_shape(f):
    change(f / "round_2/client_1/adapter_model.safetensors", lora_B=lambda B: B[:3].copy())


def break_bytes(f):
    file = f / "round_2/client_1/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def move_tensors(f, *places):
    """The file again, with other bytes said of its tensors, of which A has 96 and B 80."""
    file = f / "round_2/client_1/adapter_model.safetensors"
    data = file.read_bytes()
    behind = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:behind])
    for name, place in zip(sorted(head), places, strict=True):
        head[name]["data_offsets"] = place
    written = json.dumps(head).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + data[behind:])


def spoil_values(folder, *places, by=math.nan):
    """Adapters that are there, with numbers that are not finite."""
    for place in places:
        change(folder / place / "adapter_model.safetensors", lora_B=lambda B: B * by)


def break_all(f):
    spoil_values(f, *(f"round_{t}/client_{k}" for t in range(1, 5) for k in range(4)))


def break_layer(f):
    save_file({"layers.1.lora_A.weight": np.ones((1, 1))}, f / "round_2/client_1/adapter_model.safetensors")


WRONG = {
    "shape": (break_shape, r"round_2/client_1/.*lora_B.* has the shape \(3, 2\), and \(5, 2\) in .*ranks may differ"),
    "cut off": (break_bytes, "round_2/client_1/.* is damaged .*copy it again"),
    "bytes before": (
        lambda f: move_tensors(f, [-96, 0], [0, 80]),
        r"is damaged .*lies at -96 to 0; these are whole numbers from 0",
    ),
    "half bytes": (lambda f: move_tensors(f, [0.5, 96.5], [96, 176]), "is damaged .*lies at 0.5 to 96.5"),
    "ends before it begins": (lambda f: move_tensors(f, [96, 0], [96, 176]), "is damaged .*lora_A.* has -96 bytes"),
    "bytes of another": (
        lambda f: move_tensors(f, [0, 96], [90, 170]),
        "is damaged .*lora_B.* begins at .*lora_A.* ends",
    ),
    "bytes behind": (lambda f: move_tensors(f, [0, 96], [98, 178]), "is damaged .*it ends after .* bytes"),
    "no safetensors": (lambda f: (f / "round_2/client_1/adapter_model.safetensors").write_text("x"), "is damaged"),
    "all nan": (break_all, "round_1/client_0/.* not finite, and no adapter of .* is free of such"),
    "a lone factor": (break_layer, "adapters of different layers"),
    "no file": (lambda f: (f / "round_2/client_1/adapter_model.safetensors").unlink(), "has no adapter_model.safetens"),
    "no round": (lambda f: shutil.rmtree(f / "round_3"), "rounds 1, 2, 4: round 3 is missing; put its adapters back"),
    "config": (lambda f: (f / "round_1/client_0/adapter_config.json").write_text("{"), "adapter_config.json"),
    "rank 0": (lambda f: (f / "round_1/client_0/adapter_config.json").write_text('{"r": 0}'), "r is 0, and should be"),
    "no config": (
        lambda f: (f / "round_2/client_1/adapter_config.json").unlink(),
        "round_2/client_1/.* has no adapter_config.json with lora_alpha beside it, and .*round_1/client_0/.* has",
    ),
    "no alpha": (lambda f: (f / "round_1/client_3/adapter_config.json").write_text('{"r": 2}'), "round_1/client_3/"),
    "nothing": (lambda f: shutil.rmtree(f) or f.mkdir(), "has no .safetensors file in it"),
    "no folder": (shutil.rmtree, "is no folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_with_the_file_and_nothing_is_written(tmp_path, case):
    spoil, told = WRONG[case]
    spoil(write_run(tmp_path / "a"))
    with pytest.raises(ff.UserError, match=told):
        diagnose_files(tmp_path / "a", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def add_servers(folder, rounds):
    """The mean of the clients' adapters as the server's after a round."""
    for t in rounds:
        own = [load_file(folder / f"round_{t}/client_{k}/adapter_model.safetensors") for k in range(4)]
        A, B = (np.mean([next(v for n, v in one.items() if f in n) for one in own], axis=0) for f in ("_A", "_B"))
        write_adapter(folder / f"round_{t}" / "server", A, B, {"r": 2, "lora_alpha": 4})


@pytest.mark.parametrize(("by", "servers"), [(math.nan, ()), (math.inf, ()), (1e200, ()), (math.nan, (1, 2, 3, 4))])
def test_a_client_whose_adapter_is_not_finite_is_left_out_and_named(tmp_path, by, servers):
    folder = write_run(tmp_path / "a")
    add_servers(folder, servers)
    (folder / "round_2/client_1").rename(tmp_path / "kept")
    diagnose_files(folder, out=tmp_path / "without")
    (tmp_path / "kept").rename(folder / "round_2/client_1")
    spoil_values(folder, "round_2/client_1", by=by)
    told = diagnose_files(folder, out=tmp_path / "out")
    file = "round_2/client_1/adapter_model.safetensors"
    assert f"the adapter of client 1 is not finite in round 2 ({file}, tensor " in told
    run, others = (read_run(tmp_path / name) for name in ("out", "without"))
    event = f"adapters not finite, left out of what is measured: client 1 ({file})"
    assert [r.events for r in run.records] == [(), (), (event,), (), ()]
    assert [math.isnan(c.update_norm) for c in run.records[2].clients] == [False, True, False, False]
    assert [r.probes for r in run.records] == [r.probes for r in others.records]  # as if it had not come
    assert run.metrics["verdict"]["state"] == "no alarm (not calibrated)"


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_a_server_whose_adapter_is_not_finite_has_failed_from_there_on(tmp_path, behind, scored):
    folder = write_run(tmp_path / "a")
    add_servers(folder, range(1, 5))
    losses = tmp_path / "losses.csv"
    losses.write_text("round,loss\n" + "".join(f"{t},{4 - t / 2}\n" for t in range(5)))
    diagnose_files(folder, losses if scored else None, out=tmp_path / "fine")
    spoil_values(folder, "round_3/server", "round_4/server")
    spoil_values(folder, *(f"round_4/client_{k}" for k in range(4) if behind))
    told = diagnose_files(folder, losses if scored else None, out=tmp_path / "out")
    assert told.startswith("failed. Round 3: the server's model is not finite.")
    assert "the adapter of the server is not finite in round 3, 4 (first round_3/server/adapter_model.safet" in told
    fine, run = (read_run(tmp_path / name) for name in ("fine", "out"))
    assert run.metrics["verdict"]["since"] == 3
    assert run.records[:3] == fine.records[:3]
    place = "round_3/server/adapter_model.safetensors"
    assert run.records[3].events == (f"the server's adapter is not finite ({place}): no loss of such a model counts",)
    assert [c.update_norm for c in run.records[3].clients] == pytest.approx(
        [c.update_norm for c in fine.records[3].clients]
    )
    assert all(math.isnan(c.update_norm) for c in run.records[4].clients)  # where round 4 began is not known
    assert ("kept_apart" in run.records[4].probes) == (not behind)  # nothing new was measured


@pytest.mark.parametrize(("loss", "state"), [(None, "failed"), (1.0, "no alarm (not calibrated)")])
def test_a_run_whose_last_adapters_are_all_not_finite_has_failed_unless_a_loss_says_otherwise(tmp_path, loss, state):
    folder = write_run(tmp_path / "a")
    spoil_values(folder, "round_2/client_1", *(f"round_{t}/client_{k}" for t in (3, 4) for k in range(4)))
    losses = ["round,loss", *(f"{t},{4 - t / 2}" for t in range(3)), *([f"4,{loss}"] if loss else [])]
    (tmp_path / "losses.csv").write_text("\n".join(losses))
    told = diagnose_files(folder, tmp_path / "losses.csv", out=tmp_path / "out")
    assert told.startswith(f"{state}.")
    assert ("no adapter from round 3 on is finite" in told) == (state == "failed")
    assert read_run(tmp_path / "out").metrics["verdict"]["since"] == (3 if state == "failed" else None)


def test_a_server_before_training_that_is_not_finite_is_a_failure_of_round_0(tmp_path):
    folder = write_run(tmp_path / "a")
    write_adapter(folder / "round_0" / "server", np.ones((2, 6)), np.full((5, 2), np.nan), {"r": 2, "lora_alpha": 4})
    assert diagnose_files(folder).startswith("failed. Round 0: the server's model is not finite.")


def test_a_first_round_without_a_finite_adapter_leaves_the_others_to_be_judged(tmp_path):
    folder = write_run(tmp_path / "a")
    spoil_values(folder, *(f"round_1/client_{k}" for k in range(4)))
    assert "lora_A: clients start together" in diagnose_files(folder, out=tmp_path / "out")
    assert "update_norm" in read_run(tmp_path / "out").records[3].probes


def test_servers_that_rounds_began_with_are_placed_where_one_of_them_is_not_finite(tmp_path):
    g = np.random.default_rng(0)
    config, start = {"r": 4, "lora_alpha": 4}, (g.normal(size=(4, 16)), g.normal(size=(16, 4)))
    for t in range(1, 7):
        write_adapter(tmp_path / "a" / f"round_{t}" / "server", *start, config)
        sent = [[x + 0.1 * g.normal(size=x.shape) for x in start] for _ in range(4)]
        for k, pair in enumerate(sent):
            write_adapter(tmp_path / "a" / f"round_{t}" / f"client_{k}", *pair, config)
        start = tuple(np.mean(x, axis=0) for x in zip(*sent, strict=True))
    spoil_values(tmp_path / "a", "round_6/server")
    told = diagnose_files(tmp_path / "a")
    assert "the server's adapters are those that rounds began with" in told
    assert "failed. Round 5: the server's model is not finite." in told


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('"r": true', "r is True, and should be an integer from 1 on"),
        ('"r": 0.5', "r is 0.5, and should be an integer"),
        ('"r": 1e400', "r is inf, and should be an integer"),
        ('"r": null', "r is None, and should be an integer"),
        ('"lora_alpha": NaN', "lora_alpha is nan, and should be a finite number above 0"),
        (f'"lora_alpha": 1{"0" * 400}', r"lora_alpha is 10{39}, and should be a finite number"),
        ('"lora_alpha": -1', "lora_alpha is -1, and should be a finite number"),
        ('"rank_pattern": [4]', r"rank_pattern is \[4\], and should be a mapping, as in \{'q_proj': 8\}"),
        ('"rank_pattern": {"l": 0}', "rank_pattern of 'l' is 0, and should be an integer from 1 on"),
        ('"rank_pattern": {"l[": 4}', r"rank_pattern has the key 'l\[', which is no regular expression \(unterminated"),
        ('"alpha_pattern": {"l{9999999999}": 4}', "alpha_pattern has the key .* is no regular expression"),
        ('"alpha_pattern": {"l": 0}', "alpha_pattern of 'l' is 0, and should be a finite number above 0"),
        ('"alpha_pattern": {"l": "x"}', "alpha_pattern of 'l' is 'x', and should be a finite number above 0"),
    ],
)
def test_a_rank_or_an_alpha_that_is_none_is_refused_with_its_file_and_key(tmp_path, written, told):
    write_adapter(tmp_path / "round_1" / "client_0", np.ones((2, 4)), np.ones((3, 2)), {})
    (tmp_path / "round_1" / "client_0" / "adapter_config.json").write_text(f"{{{written}}}")
    with pytest.raises(ff.UserError, match=f"round_1/client_0/adapter_config.json: {told}"):
        read_collection(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 2, "lora_alpha": 0.5, "rank_pattern": None, "alpha_pattern": {"q_proj": 1.5}},
        {"peft_type": "ADALORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q_proj.lora_E": [True, False]}},
    ],
)
def test_what_peft_writes_of_ranks_and_alphas_is_read(tmp_path, config):
    write_adapter(tmp_path / "round_1" / "client_0", np.ones((2, 4)), np.ones((3, 2)), config)
    (upload,) = read_collection(tmp_path).uploads
    (site,) = upload.sites
    assert upload.scale(site) == (0.75 if config.get("alpha_pattern") else 2)


ADALORA = {"peft_type": "ADALORA", "r": 8, "init_r": 3, "lora_alpha": 6, "alpha_pattern": {"q_proj": 60}}


@pytest.mark.parametrize("kept", [3, 2, 0])
def test_adalora_divides_by_init_r_and_has_a_factor_between(tmp_path, kept):
    """W = (alpha / init_r) B E A, also where a mask has pruned ranks, as in PEFT's `resize_modules_by_rank_pattern`."""
    g = np.random.default_rng(0)
    config = ADALORA | {"rank_pattern": None if kept == 3 else {"q_proj.lora_E": [True] * kept + [False] * (3 - kept)}}
    changes = []
    for k in (0, 1):
        A, B, E = g.normal(size=(kept, 5)), g.normal(size=(4, kept)), g.normal(size=(kept, 1))
        E_name = "base_model.model.layers.0.q_proj.lora_E"
        write_adapter(tmp_path / "a" / "round_1" / f"client_{k}", A, B, config, **{E_name: E})
        changes.append((2 * B @ (E * A)).ravel())
    found = read_collection(tmp_path / "a")
    rows = np.stack(changes)
    assert np.allclose(multiply_changes(found.uploads), rows @ rows.T)
    assert measure_scale(found, 1) == 1
    assert "lora_E: " in diagnose_files(tmp_path / "a")


@pytest.mark.parametrize("names", [["mlp.experts.up", "mlp.experts.down"], ["up", "down"]])
def test_factors_of_experts_are_taken_apart(tmp_path, names):
    """PEFT stacks A (experts, r, d_in) by experts and B (d_out, r, experts) by ranks (`ParamWrapper.get_delta_weight`)."""
    g = np.random.default_rng(0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": names}
    config |= {"rank_pattern": {"experts.down": 2, "v_proj": 5}}
    changes = []
    for k in (0, 1):
        folder, tensors, own = tmp_path / "round_1" / f"client_{k}", {}, []
        for site in ("mlp.experts", "mlp.experts.base_layer"):
            A, B = g.normal(size=(3, 2, 5)), g.normal(size=(4, 2, 3))
            tensors |= {f"base_model.model.layers.0.{site}.lora_A.weight": A.reshape(6, 5)}
            tensors |= {f"base_model.model.layers.0.{site}.lora_B.weight": B.reshape(4, 6)}
            own.append(2 * np.einsum("ore,eri->eoi", B, A).ravel())
        write_adapter(folder, g.normal(size=(2, 5)), np.zeros((5, 2)), config, **tensors)
        changes.append(np.concatenate(own))
    found, rows = read_collection(tmp_path), np.stack(changes)
    assert np.allclose(multiply_changes(found.uploads), rows @ rows.T)
    assert measure_scale(found, 1) == 1
    assert "rank 2, B A times 2" in diagnose_files(tmp_path)
    (tmp_path / "round_1/client_1/adapter_config.json").write_text(json.dumps(config | {"r": 3, "rank_pattern": None}))
    with pytest.raises(
        ff.UserError, match=r"client_1/adapter_config.json states, the factors of .*experts.* are of 2 experts"
    ):
        read_collection(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adalora", "experts"])
def test_a_round_of_peft_as_it_should_be_is_no_wrong_scale(tmp_path, kind):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.zeros(3, 4, 6))
            self.proj = torch.nn.Linear(4, 6)

        def forward(self, x):
            return self.proj(x) + torch.einsum("eio,i->o", self.up, x)

    model = torch.nn.Sequential(torch.nn.Identity(), Experts())
    config = {
        "adalora": peft.AdaLoraConfig(
            init_r=6, target_r=4, lora_alpha=8, target_modules=["proj"], total_step=9, tfinal=2
        ),
        "experts": peft.LoraConfig(r=2, lora_alpha=8, target_modules=[], target_parameters=["1.up"]),
    }[kind]
    lora = peft.get_peft_model(model, config)
    for k in range(2):
        for name, p in lora.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p)
        lora.save_pretrained(tmp_path / f"round_1/client_{k}")
    found = read_collection(tmp_path)
    assert measure_scale(found, 1) == 1
    layer = next(m for m in lora.modules() if getattr(m, "scaling", None) and hasattr(m, "get_delta_weight"))
    own = layer.get_delta_weight("default").detach().double().flatten()
    assert multiply_changes(found.uploads)[1, 1] == pytest.approx(float(own @ own), rel=1e-4)


@pytest.mark.slow
def test_a_client_that_is_there_in_all_other_rounds_is_missed(tmp_path):
    shutil.rmtree(write_run(tmp_path / "a") / "round_2" / "client_3")
    assert "no adapter of client 3 in round 2, and in other rounds it has: not drawn, or lost?" in diagnose_files(
        tmp_path / "a"
    )


@pytest.mark.slow
def test_a_table_of_losses_alone_is_a_run(tmp_path):
    losses = ["round,loss", *(f"{t},{loss}" for t, loss in enumerate([4, 3, 3.5, 4, "nan"]))]
    (tmp_path / "l.csv").write_text("\n".join(losses) + "\n")
    told = diagnose_files(csv=tmp_path / "l.csv", out=tmp_path / "out")
    assert told.startswith("failed. ")
    assert ff.open(tmp_path / "out").verdict.state == "failed"
    assert [one.name for one in ff.runs(tmp_path)] == ["out"]


@pytest.mark.slow
def test_rounds_far_apart_are_written_at_once_and_steps_are_refused(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("os.fsync", waits.append)
    (tmp_path / "x.csv").write_text("round,loss\n0,4.0\n300,3.0\n600,2.0\n")
    diagnose_files(csv=tmp_path / "x.csv", out=tmp_path / "out")
    assert len(read_run(tmp_path / "out").records) == 601
    assert len(waits) < 30
    for far in ("round,loss\n0,4.0\n1000000,3.0\n", "round,loss\n1002,3.0\n"):
        (tmp_path / "x.csv").write_text(far)
        with pytest.raises(ff.UserError, match="rounds are missing, more than 1,000: are these steps"):
            diagnose_files(csv=tmp_path / "x.csv", out=tmp_path / "steps")
        assert not (tmp_path / "steps").exists()


def test_losses_of_clients_give_that_of_the_mixture_by_their_examples(tmp_path):
    text = "round,client,loss,train_loss,examples\n0,a,4,-,1\n0,b,2,-,3\n1,a,3,3.5,1\n1,b,1,1.5,3\n"
    (tmp_path / "l.csv").write_text(text)
    diagnose_files(csv=tmp_path / "l.csv", out=tmp_path / "out")
    first, second = read_run(tmp_path / "out").records
    assert (first.scores["validation"].loss, second.scores["validation"].loss) == (2.5, 1.5)
    assert second.scores["client/1"].loss == 1
    assert [(c.client, c.loss) for c in second.clients] == [(0, 3.5), (1, 1.5)]


def test_a_column_that_only_a_later_row_has_is_checked_too(tmp_path):
    rows = [{"round": 0, "loss": 3.0}, {"round": 1, "loss": 2.9, "genral_loss": 5.0}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ff.UserError, match="line 2: no column 'genral_loss' is known; did you mean 'general_loss'"):
        read_losses(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("cells", "loss"),
    [(("-", "", "5"), 5), (("5", "5.0", "5"), 5), (("0", "-", "-"), 0), (("nan", "nan", "-"), math.nan)],
)
def test_a_general_loss_may_stand_in_any_row_of_its_round(tmp_path, cells, loss):
    rows = zip(("0,a,2", "0,b,4", "0,server,3.5"), cells, strict=True)
    text = "\n".join(["round,client,loss,general_loss", *map(",".join, rows)])
    (tmp_path / "l.csv").write_text(text)
    assert read_losses(tmp_path / "l.csv")[0].general_loss == pytest.approx(loss, nan_ok=True)


def test_examples_of_some_clients_do_no_harm_where_the_mixture_has_a_row(tmp_path):
    (tmp_path / "l.csv").write_text("round,client,loss,examples\n0,a,2,500\n0,b,4,-\n0,server,3.5,-\n")
    assert read_losses(tmp_path / "l.csv")[0].mean == 3.5


def test_names_with_zeros_in_front_are_the_same_clients_as_without(tmp_path):
    for k in (1, 10):
        write_adapter(tmp_path / "a" / "round_1" / f"client_{k:02d}", np.ones((1, 2)), k * np.ones((2, 1)))
    (tmp_path / "l.csv").write_text("round,client,loss,train_loss\n1,1,3,3.5\n1,10,2,2.5\n")
    told = diagnose_files(tmp_path / "a", tmp_path / "l.csv", out=tmp_path / "out")
    (_, record) = read_run(tmp_path / "out").records
    assert [(c.client, c.loss) for c in record.clients] == [(1, 3.5), (10, 2.5)]
    assert {name: score.loss for name, score in record.scores.items() if "client" in name} == {
        "client/1": 3,
        "client/10": 2,
    }
    assert "clients by number" not in told
    (tmp_path / "l.csv").write_text("round,client,loss\n1,1,3\n1,north,2\n")
    assert "clients by number: 0 is 01, 0 is 1, 1 is 10, 2 is north" in diagnose_files(
        tmp_path / "a", tmp_path / "l.csv"
    )


def test_two_names_of_one_number_are_refused(tmp_path):
    (tmp_path / "l.csv").write_text("round,client,loss\n1,1,3\n2,01,2\n")
    with pytest.raises(ff.UserError, match="the losses have clients '01' and '1', which are one number"):
        diagnose_files(csv=tmp_path / "l.csv")
    for name in ("client_2", "client_002"):
        write_adapter(tmp_path / "a" / "round_1" / name, np.ones((1, 2)), np.ones((2, 1)))
    with pytest.raises(ff.UserError, match="the adapters have clients '002' and '2'"):
        diagnose_files(tmp_path / "a")


def test_a_mean_over_other_clients_is_told(tmp_path):
    (tmp_path / "l.csv").write_text("round,client,loss\n0,a,4\n0,b,2\n1,a,3\n")
    told = diagnose_files(csv=tmp_path / "l.csv")
    assert "in round 1 there are others than in round 0: part of its change is who was scored" in told
    with pytest.raises(ff.UserError, match=r"calibration=packaged is of fedfault's own runs"):
        diagnose_files(csv=tmp_path / "l.csv", calibration="packaged")


@pytest.mark.slow
def test_of_a_lone_adapter_nothing_is_known(tmp_path):
    write_adapter(tmp_path / "a" / "round_1" / "client_0", np.ones((1, 2)), np.ones((2, 1)))
    assert "lora_A: where clients start is not known" in diagnose_files(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("round,loss\n0,4\n1,\n", "line 3: loss is empty; write `nan`"),
        ("round,loss\n0,4\n1,low\n", "line 3: loss is 'low', which is no number"),
        ("round,loss\n0,4\n1.5,3\n", "line 3: round is '1.5'"),
        ("round,loss\n0,4\n0,3\n", "line 3: round 0 of the server is there already, at .*line 2"),
        ("round,client,loss\n0,,3\n", "line 2: client is empty; write `server`"),
        ("round,client,loss,examples\n0,1,3,0\n", "line 2: examples is '0'"),
        ("round,client,loss,examples\n0,a,2,500\n0,b,4,-\n", "line 3: examples is not there, and it is at .*line 2"),
        ("round,client,loss,examples\n0,a,2,-\n0,b,4,-\n1,a,2,9\n1,b,3,1\n", "line 2: examples .*at .*line 4: by how"),
        (
            "round,client,loss,general_loss\n0,a,2,5\n0,b,2,6\n",
            "line 3: general_loss is 6, and 5 in another row of the",
        ),
        ("epoch,loss\n0,3\n", "has no column 'round'"),
        ("round,loss,los\n0,3,3\n", "no column 'los' is known; did you mean 'loss'"),
        ("round,loss\n", "has no rows"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(tmp_path, text, told):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ff.UserError, match=told):
        diagnose_files(csv=tmp_path / "l.csv")


def test_the_command_says_what_is_wrong_and_ends_with_2(tmp_path, monkeypatch, capsys):
    for words, told in (
        ([], "name a run folder, or --adapters FOLDER, or --csv FILE"),
        (["--csv", str(tmp_path / "none.csv")], "none.csv"),
        ([str(tmp_path), "--csv", "x.csv"], "the other options are for --adapters and --csv"),
    ):
        monkeypatch.setattr(sys, "argv", ["fedfault", "diagnose", *words])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_python_returns_the_run_that_was_made_of_the_files(tmp_path):
    run = ff.diagnose(adapters=write_run(tmp_path / "a"), out=tmp_path / "out")
    assert run.rounds["kept_apart"].dropna().between(-1, 1).all()
    assert run.config["monitor"]["settings"]["lora_alpha"] == 4
    with pytest.raises(ff.UserError, match="out= is missing"):
        ff.diagnose(adapters=tmp_path / "a")
    with pytest.raises(ff.UserError, match="and not both"):
        ff.diagnose(run, adapters=tmp_path / "a")


@pytest.mark.slow
def test_a_folder_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path):
    (tmp_path / "l.csv").write_text("round,loss\n0,4\n1,3\n")
    diagnose_files(csv=tmp_path / "l.csv", out=tmp_path / "out")
    with pytest.raises(ff.UserError, match="is there already"):
        diagnose_files(csv=tmp_path / "l.csv", out=tmp_path / "out")
    diagnose_files(csv=tmp_path / "l.csv", out=tmp_path / "out", overwrite=True)


@pytest.mark.slow
def test_adapters_are_judged_without_torch(tmp_path):
    write_run(tmp_path / "a")
    code = "import sys; from fedfault.monitor.files import diagnose_files; from pathlib import Path\n"
    code += f"print(diagnose_files(Path({str(tmp_path / 'a')!r}))); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lora_B: clients start together" in done.stdout


def test_where_some_rounds_have_a_row_of_the_server_others_have_no_loss_of_the_mixture(tmp_path):
    """The mean over clients stood in, so that a run of two curves was called failed."""
    rows = [f"{t},{k},{loss}" for t in range(5) for k, loss in (("a", 4 - t / 10), ("b", 2 - t / 10))]
    (tmp_path / "l.csv").write_text("\n".join(["round,client,loss", "0,server,3.0", "1,server,2.9", *rows]))
    found = read_losses(tmp_path / "l.csv")
    assert [found[t].mean for t in range(5)] == [3.0, 2.9, None, None, None]
    told = diagnose_files(csv=tmp_path / "l.csv")
    assert told.startswith("no alarm")
    assert "no loss of the mixture in rounds without a row of the server: 2, 3, 4" in told


def test_cells_of_json_are_read_as_what_they_are(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"round": 0, "client": 1, "loss": 3}\n{"round": 1, "client": 1.0, "loss": 2}\n')
    assert [set(one.clients) for one in read_losses(tmp_path / "l.jsonl").values()] == [{"1"}, {"1"}]
    (tmp_path / "l.jsonl").write_text('{"round": 0, "loss": true}\n')
    with pytest.raises(ff.UserError, match="line 1: loss is true, and should be a number"):
        read_losses(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            "1,client_0,3\n1,client_1,2\n",
            r"no client of the adapters \(0, 1\) is among those of the losses \(client_0, c",
        ),
        ("50,0,3\n51,1,2\n", "rounds 1 to 1 and the losses of rounds 50 to 51, and have none in common"),
    ],
)
def test_adapters_and_losses_of_unlike_runs_are_not_joined(tmp_path, rows, why):
    for k in (0, 1):
        write_adapter(tmp_path / "a" / "round_1" / f"client_{k}", np.ones((1, 2)), k * np.ones((2, 1)))
    (tmp_path / "l.csv").write_text("round,client,loss\n" + rows)
    with pytest.raises(ff.UserError, match=why):
        diagnose_files(tmp_path / "a", tmp_path / "l.csv")
