"""Fixtures: tiny models, no network, a cache of their own, a browser, and where the optional data files are."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it: no test touches the network

import pytest
import torch

from tiny import tiny_gpt2, tiny_llama

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that no process is left alone with one; skip what needs a GPU without one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU with CUDA"))


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what stays: a million objects of libraries and tests, at every turn."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Runs end without a report, whose drawing takes seconds, but in tests that are marked `draws`."""
    if "draws" not in request.keywords:
        monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def shared_data() -> Path:
    """The folder with real data sets; tests that ask for it are marked `shared`."""
    if not SHARED.is_dir():
        pytest.skip(f"no data files at {SHARED}")
    return SHARED


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest):
    """Builder of a tiny model: a fresh one with the same weights at every call."""
    return request.param


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium for the tests of pages; without one they are skipped with the reason."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: on the PATH, or CHROMIUM names it")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
