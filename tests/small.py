"""A small experiment of whole runs, and everything of a run that is a number."""

from __future__ import annotations

from pathlib import Path

from fedfault.config import load
from fedfault.config.files import parse_setting
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress
from fedfault.session.start import start_run

SMALL = [
    "federation.total_clients=3", "federation.participation_rate=0.7", "federation.num_rounds=3",
    "training.local_steps=2", "training.batch_size=2", "model.max_length=16", "data.max_samples=60",
    "evaluation.max_blocks=4", "evaluation.general_blocks=4", "metrics.memory=false",
    "metrics.gradients=false", "metrics.representation=false", "metrics.attention=false",  # half of the time
]  # fmt: skip
WORDS = {".".join(key): entry.value for word in SMALL for key, entry in parse_setting(word).items()}  # as a mapping


def start(folder: Path, *changes: str, **options) -> RunFolder:
    """A whole run of the small experiment below `folder`."""
    overrides = [*SMALL, f"logging.results_dir={folder}", *changes]
    return start_run(load("quickstart", overrides), Progress(quiet=True), **options)


def final(folder: RunFolder) -> tuple[list[dict], bytes]:
    """Everything of a run that is a number and not a time, and the adapter's bytes."""
    lines = [r.to_json() for r in folder.read_records()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines], (
        folder.path / "adapter/adapter_model.safetensors"
    ).read_bytes()
