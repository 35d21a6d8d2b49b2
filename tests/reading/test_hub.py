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
