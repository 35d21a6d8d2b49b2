"""The memory of a client between rounds (SCAFFOLD's c_i, private factors), in Flower's Context and in a file.

A client cannot know whether its update was used: it may be refused, or never arrive. So it keeps two versions, that of the
last round which the server has used and that of the last one it trained in, and the server says in every message which
of its rounds it has used. SuperNodes hold Contexts in memory, for one Flower run; the file outlives both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Array, ConfigRecord, Context
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedfault.flower.payload import Refused, read_numbers, to_arrays
from fedfault.storage import write_atomically
from fedfault.types.adapter import Adapter

PREFIX = "fedfault.memory."

log = logging.getLogger(__name__)


class Memory:
    """The memory of one client in one run, by the round that it was made in.

    file: where it is kept too; None for the Context alone. Files are named by run, so that runs do not meet.
    """

    def __init__(self, context: Context, run: str, like: Adapter, folder: Path | None, client: int) -> None:
        self.context, self.like = context, like
        self.about = {"run": run, "layout": like.layout.fingerprint}
        self.file = None if folder is None else folder / f"{run}-client-{client}.safetensors"
        self.versions = self._read_context() or self._read_file()

    def find_version(self, round: int, fresh: Mapping[str, Adapter]) -> Mapping[str, Adapter]:
        """Return what the client had after a round; `fresh` (P,) for round 0. Raises `Refused` when that is gone."""
        if not fresh or round == 0:
            return fresh
        if (found := self.versions.get(round)) is None or _list_sizes(found) != _list_sizes(fresh):
            raise Refused(
                f"what this client kept after round {round} is gone (it has that of {sorted(self.versions) or 'no round'}); "
                f"bring its memory back{f' to {self.file}' if self.file else ''}, or start a new run"
            )
        return found

    def store_version(self, round: int, home: Mapping[str, Adapter], used: int) -> None:
        """Keep what the client has after its part in a round, (P,) each, beside that of the last round used."""
        if not home:
            return
        self.versions = {t: v for t, v in self.versions.items() if t == used} | {round: home}
        for key in [key for key in self.context.state if key.startswith(PREFIX)]:
            del self.context.state[key]
        self.context.state[f"{PREFIX}about"] = ConfigRecord(dict(self.about))
        for t, version in self.versions.items():
            self.context.state[f"{PREFIX}{t}"] = to_arrays(version, None)
        if self.file is not None:
            every = {f"{t}/{name}": a.flat.cpu() for t, v in self.versions.items() for name, a in v.items()}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, save({n: flat.contiguous() for n, flat in every.items()}, self.about))

    def _read_context(self) -> dict[int, Mapping[str, Adapter]]:
        state = self.context.state
        about = state.config_records.get(f"{PREFIX}about")
        if about is None or dict(about) != self.about:
            return {}
        versions: dict[int, Mapping[str, Adapter]] = {}
        for key, record in state.array_records.items():
            if key.startswith(PREFIX):
                kept = {name: self._read_array(name, array) for name, array in record.items()}
                versions[int(key.removeprefix(PREFIX))] = kept
        return versions

    def _read_array(self, name: str, array: Array) -> Adapter:
        """Read one thing that was kept, as many numbers as it has. Raises `Refused` where it is no row of numbers."""
        dtype = str(self.like.flat.dtype).removeprefix("torch.")
        values = read_numbers(name, array, tuple(array.shape)[:1], dtype)
        return replace(self.like, flat=torch.from_numpy(values).to(self.like.flat))

    def _read_file(self) -> dict[int, Mapping[str, Adapter]]:
        """Read the versions in the file; none if there is no file, or if it is damaged, which is said in the log."""
        versions: dict[int, dict[str, Adapter]] = {}
        if self.file is None or not self.file.is_file():
            return {}
        try:
            with safe_open(self.file, "pt") as found:
                if found.metadata() != self.about:
                    raise ValueError("it belongs to another run or other trainable sites")
                for key in found.keys():  # noqa: SIM118, it is no mapping
                    t, _, name = key.partition("/")
                    flat = found.get_tensor(key).to(self.like.flat)
                    versions.setdefault(int(t), {})[name] = replace(self.like, flat=flat)
        except (SafetensorError, ValueError, OSError) as e:
            log.warning("%s cannot be used: %s", self.file, e)
            return {}
        return dict(versions)


def _list_sizes(kept: Mapping[str, Adapter]) -> dict[str, int]:
    return {name: a.flat.numel() for name, a in kept.items()}
