import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.registry import build


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_without_network_and_cache_the_ways_out_are_named(datasets, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    for name in ("ag_news", "wikitext"):
        with pytest.raises(UserError, match=r"data\.path=FOLDER.*data\.dataset=registers"):
            build("corpus", name)
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert not hub.is_reachable()


@pytest.mark.slow
def test_a_refused_connection_is_not_reachable_and_an_error_page_is(monkeypatch):
    class Forbidden(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Forbidden)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        assert hub.is_reachable()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not hub.is_reachable()


def test_the_source_names_the_revision(datasets, monkeypatch):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})})
    splits["train"].info.download_checksums = {f"hf://datasets/x/y@{'ab12' * 10}/train.parquet": {}}
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    assert hub.load_splits("x/y", "z")[1] == f"Hugging Face Hub x/y z at {'ab12' * 10}"


def test_a_name_on_the_hub_may_say_a_revision():
    assert hub.split_revision("org/name@refs", "model.name") == ("org/name", "refs")
    for name in ("org/name@", "@main"):
        with pytest.raises(UserError, match=rf"model\.name={name}: write ORG/NAME@REVISION"):
            hub.split_revision(name, "model.name")


@pytest.mark.parametrize("address", ["hf://org/name", "hf://datasets/name", "hf://datasets/a/b@"])
def test_an_address_that_names_no_data_set_is_refused_before_anybody_is_asked(address, monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match=r"write (hf://datasets/ORG/NAME|ORG/NAME@REVISION)"):
        hub.fetch_data(address, [".csv"])


def test_a_place_in_the_hubs_cache_is_named_by_repository_and_commit(tmp_path):
    below = tmp_path / "hub/datasets--org--my-data/snapshots/0abc/train.csv"
    below.parent.mkdir(parents=True)
    below.touch()
    assert hub.name_place(hub.DataPath(below)) == "Hugging Face Hub org/my-data at 0abc: train.csv"
    assert hub.name_place(hub.DataPath(below.parent)) == "Hugging Face Hub org/my-data at 0abc"
    assert hub.name_place(hub.DataPath(tmp_path)) == f"folder {tmp_path.resolve()}"


def test_a_folder_of_a_data_set_may_have_dots_in_its_name(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "v1.0").mkdir()

    def download(repository, **options):
        asked.append((repository, options["revision"], options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    assert hub.fetch_data("hf://datasets/org/name@r1/v1.0", [".csv"]) == hub.DataPath(tmp_path / "v1.0")
    assert asked == [("org/name", "r1", ["v1.0", "v1.0/*.csv"])]


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The snapshot of a data set in the Hub's cache, which is all that there is without network."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    snapshot = tmp_path / "hub/datasets--org--name/snapshots/0abc"
    (snapshot / "data").mkdir(parents=True)
    return snapshot


def write_shard(snapshot, number, end=""):
    rows = "".join(f"row {number} {i}\n" for i in range(10))
    (snapshot / f"data/train-{number:05}-of-00003{end}.csv").write_text(f"text\n{rows}")


def test_without_network_a_part_of_the_files_is_not_taken_for_the_whole(cached):
    write_shard(cached, 0)
    with pytest.raises(UserError, match=r"it holds 1 of the 3 files train-\*-of-00003\*\.csv; fetch the others"):
        build("corpus", "text", path="hf://datasets/org/name")
    one = build("corpus", "text", path="hf://datasets/org/name/data/train-00000-of-00003.csv")
    assert one.source == "Hugging Face Hub org/name at 0abc: data/train-00000-of-00003.csv"
    for number in (1, 2):
        write_shard(cached, number, f"-{number}a")  # as older conversions of the Hub are called
    whole = build("corpus", "text", path="hf://datasets/org/name")
    assert len(whole.train) + len(whole.validation) == 30
    assert whole.source == "Hugging Face Hub org/name at 0abc, from the local cache, which may hold a part of it"


def test_with_network_the_files_are_those_of_the_hub(cached, monkeypatch):
    for number in range(3):
        write_shard(cached, number)
    before = build("corpus", "text", path="hf://datasets/org/name")
    assert before.source == "Hugging Face Hub org/name at 0abc, from the local cache, which may hold a part of it"
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    assert (
        build("corpus", "text", path="hf://datasets/org/name/data").source == "Hugging Face Hub org/name at 0abc: data"
    )
    assert build("corpus", "text", path="hf://datasets/org/name").source == "Hugging Face Hub org/name at 0abc"
