"""A folder of adapters that clients have sent: which are of what round and client, and what they are made of. No torch."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedfault.errors import UserError, join_names
from fedfault.monitor.losses import SERVER
from fedfault.monitor.tensors import Stored, list_tensors
from fedfault.runs.files import read_json

PATTERN = "round_{round}/client_{client}"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FACTOR = re.compile(r"(?P<site>.+)\.lora_(?:embedding_)?(?P<factor>[ABE])(?:\.(?!bias)\w+)*")
WRAPPED = "base_model.model."  # before the name that a layer has in the model: PEFT's wrapper and tuner
FULL = "saved in full"  # the part of all tensors that are no factors of LoRA


def name_part(tensor: str) -> str:
    """The part of the adapter that a tensor belongs to: a factor as `lora_A`, or the rest."""
    factor = FACTOR.fullmatch(tensor)
    return f"lora_{factor['factor']}" if factor else FULL


@dataclass(frozen=True)
class Upload:
    """An adapter that a client has sent, or the server's after a round."""

    round: int
    client: str | None  # its name; None: the server's
    file: Path
    tensors: Mapping[str, Stored] = field(compare=False)
    config: Mapping[str, Any] = field(compare=False)  # adapter_config.json; empty where there is none

    @cached_property
    def sites(self) -> dict[str, dict[str, Stored]]:
        """The factors A (r, d_in), B (d_out, r) and, in AdaLoRA, E (r, 1) by the name of their layer.

        Raises `UserError` where one of A and B is missing.
        """
        found: dict[str, dict[str, Stored]] = {}
        for name, tensor in self.tensors.items():
            if factor := FACTOR.fullmatch(name):
                found.setdefault(factor["site"], {})[factor["factor"]] = tensor
        for site, factors in found.items():
            if not factors.keys() >= {"A", "B"}:
                raise UserError(
                    f"{self.file} has only the factor {next(iter(factors))} of {site}: the adapter is not whole"
                )
        return found

    @cached_property
    def rest(self) -> dict[str, Stored]:
        """What is saved beside the factors: layers in full, biases, magnitudes."""
        return {name: tensor for name, tensor in self.tensors.items() if not FACTOR.fullmatch(name)}

    def rank(self, site: str) -> int:
        """The rank that the factors of a layer have, of one expert where several are stacked."""
        return self.sites[site]["A"].shape[0] // self.experts(site)

    def stated_rank(self, site: str) -> int:
        """The rank of a layer by adapter_config.json; that of its factors where it says none."""
        return int(self._choose("rank_pattern", site, self.config.get("r") or self.sites[site]["A"].shape[0]))

    def misfit(self, site: str) -> float:
        """The rank that the factors of a layer have over the stated one; 1 where AdaLoRA has pruned them."""
        rank, stated = self.rank(site), self.stated_rank(site)
        return 1.0 if "E" in self.sites[site] and rank < stated else rank / stated

    def experts(self, site: str) -> int:
        """How many experts have their factors stacked in those of a layer: 1 but for PEFT's `target_parameters`.

        There A has r rows for each expert, one expert after another, and B its columns rank by rank.
        """
        rows, rank = self.sites[site]["A"].shape[0], self.stated_rank(site)
        return rows // rank if self._list_parameters(site) and rows and rows % rank == 0 else 1

    def scale(self, site: str) -> float:
        """What PEFT multiplies B A with: alpha / r, or alpha / sqrt(r) in rsLoRA; 1 without adapter_config.json."""
        if "lora_alpha" not in self.config:
            return 1.0
        alpha, rank = float(self._choose("alpha_pattern", site, self.config["lora_alpha"])), self.stated_rank(site)
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _choose(self, patterns: str, site: str, usual: Any) -> Any:
        """The value of a layer where one of the patterns of the configuration has its own, as PEFT matches them.

        PEFT (`get_pattern_key`) matches the name of the layer in the model, and not that in the file.
        """
        own, names = self.config.get(patterns) or {}, [site.removeprefix(WRAPPED), *self._list_parameters(site)]
        return next((value for key, value in own.items() if any(map(_compile_pattern(key).match, names))), usual)

    def _list_parameters(self, site: str) -> list[str]:
        """The `target_parameters` that a layer of the file may be of, by their names in the model; none for a module.

        PEFT wraps a module once for each of its parameters, and calls the inner ones `base_layer`.
        """
        layer = site.removeprefix(WRAPPED).replace(".base_layer", "")
        split = [name.rpartition(".") for name in self.config.get("target_parameters") or ()]
        return [f"{layer}.{own}" for module, _, own in split if not module or f".{layer}".endswith(f".{module}")]

    @cached_property
    def broken(self) -> str | None:
        """The first of its tensors that has numbers that are not finite; None where all have finite ones."""
        return next((name for name, tensor in self.tensors.items() if not tensor.is_finite()), None)

    def part(self, tensor: str, frozen: Sequence[str] = ()) -> str:
        """The part that a tensor belongs to: a pattern of what should stand still, a factor as `lora_A`, or the rest."""
        for pattern in frozen:
            if pattern in tensor or fnmatch.fnmatchcase(tensor, pattern):
                return pattern
        return name_part(tensor)

    def digest(self, names: Sequence[str]) -> str:
        """The hash of some of its tensors, the same for equal bytes only."""
        found = hashlib.sha256()
        for name in sorted(names):
            found.update(self.tensors[name].read_bytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Collection:
    """All adapters of a run: uploads by round and then client, what the server had, and what a reader should know."""

    folder: Path
    uploads: tuple[Upload, ...]
    servers: Mapping[int, Upload]
    names: tuple[str, ...]  # of the clients, in order
    notes: tuple[str, ...]

    @property
    def rounds(self) -> list[int]:
        """The rounds that have uploads, in order."""
        return sorted({u.round for u in self.uploads})

    @cached_property
    def whole(self) -> tuple[Upload, ...]:
        """The uploads whose numbers are finite: those that are measured."""
        return tuple(u for u in self.uploads if u.broken is None)

    @cached_property
    def broken(self) -> tuple[Upload, ...]:
        """The adapters with numbers that are not finite, clients' and the server's, by round."""
        every = (*self.uploads, *self.servers.values())
        return tuple(sorted((u for u in every if u.broken is not None), key=lambda u: u.round))

    @cached_property
    def lost(self) -> int | None:
        """The round from which on no adapter is finite, of two at least; None where there is none."""
        every = (*self.uploads, *self.servers.values())
        fine = max((u.round for u in every if u.broken is None), default=-1)
        behind = [u.round for u in self.broken if u.round > fine]
        return min(behind) if len(behind) > 1 else None

    def sent(self, round: int) -> list[Upload]:
        """The uploads of a round, by client."""
        return [u for u in self.uploads if u.round == round]

    def of(self, round: int) -> list[Upload]:
        """The uploads of a round that are measured, by client."""
        return [u for u in self.whole if u.round == round]


def read_collection(folder: Path, pattern: str = PATTERN, server: str | None = None) -> Collection:
    """Find the adapters of a folder and check that they belong together.

    pattern: where a client's adapter lies, a folder that PEFT has saved or a safetensors file, with `{round}` (a number) and
    `{client}` in it, and `*` for what differs otherwise, such as checkpoint-*; server: where the server's lies after a
    round, with `{round}`; else `server` or `global` in the place of the client's name. Raises `UserError`, with the file,
    for what is missing or damaged, for adapters of other layers, and where no adapter has finite numbers.
    """
    _check_pattern("--pattern", pattern, ("{round}", "{client}"))
    own = [server] if server else [_name_server(pattern, name) for name in SERVER]
    _check_pattern("--server", own[0], ("{round}",))
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; --adapters takes the one that holds the adapters of all rounds")
    paths = _list_paths(folder, (pattern, *own))
    places = [(path, found) for path in paths if (found := _match(pattern, folder, path))]
    if not places:
        raise UserError(_explain_none(folder, pattern))
    servers = [(int(f["round"]), None, path) for one in own for path in paths if (f := _match(one, folder, path))]
    clients = [(int(f["round"]), f["client"], path) for path, f in places if f["client"] not in SERVER]
    if not clients:
        raise UserError(f"{folder} has adapters of the server only; those of clients are needed too, as {pattern!r}")
    _refuse_repeats([*clients, *servers])
    clients.sort(key=lambda one: (one[0], sort_name(one[1])))
    names = tuple(sorted({name for _, name, _ in clients}, key=sort_name))
    gaps = _find_gaps(folder, [(t, name) for t, name, _ in clients], names)
    uploads = tuple(_read_upload(path, t, name, f"--pattern '{pattern}") for t, name, path in clients)
    after = {t: _read_upload(path, t, None, f"--server '{_find_own(own, folder, path)}") for t, _, path in servers}
    notes = [*gaps, *_count_unread(folder, pattern, [u.file for u in (*uploads, *after.values())])]
    collection = Collection(folder, uploads, after, names, tuple(notes))
    _check_alike(collection)
    _check_scales(collection)
    _check_experts(collection)
    if len(collection.broken) == len(uploads) + len(after):
        first = collection.broken[0]
        raise UserError(
            f"{first.file}: {first.broken} has numbers that are not finite, and no adapter of {folder} is free of such: "
            "there is nothing to measure; look at the losses with --csv, and at the learning rate and the precision"
        )
    return collection


def _find_own(patterns: Sequence[str], folder: Path, path: Path) -> str:
    return next(one for one in patterns if _match(one, folder, path))


def _count_unread(folder: Path, pattern: str, read: Iterable[Path]) -> list[str]:
    """Say how many adapters below a folder no pattern took: one that is called otherwise would be missed without a sign."""
    taken = {os.path.realpath(file) for file in read}
    alone = pattern.endswith(".safetensors")  # files under names of their own
    left = sorted(
        file
        for file in _walk(folder)
        if (file.name == WEIGHTS or (alone and file.suffix == ".safetensors")) and os.path.realpath(file) not in taken
    )
    if not left:
        return []
    where = f"they fit neither {pattern!r} nor a place of the server, which --pattern and --server name"
    return [f"adapters that are not read: {len(left)}, such as {left[0].relative_to(folder)}; {where}"]


def _refuse_repeats(places: Iterable[tuple[int, str | None, Path]]) -> None:
    """Raise `UserError` for two adapters of one round and client, as in round_1 and round_01; None: of the server."""
    seen: dict[tuple[int, str | None], Path] = {}
    for round, client, path in places:
        if (other := seen.setdefault((round, client), path)) != path:
            whose, way = (f"client {client}", "") if client else ("the server", ", or name where it lies by --server")
            raise UserError(f"{other} and {path} are both of {whose} in round {round}; take one of them away{way}")


def _check_pattern(said: str, pattern: str, wanted: Sequence[str]) -> None:
    for field_ in wanted:
        if pattern.count(field_) != 1:
            raise UserError(f"{said} {pattern!r} should have {field_} in it once, as in {PATTERN!r}")


def _name_server(pattern: str, name: str) -> str:
    """The pattern with the name of the server in the place of a client's: round_{round}/server."""
    *above, last = re.split(r"(?<=/)", pattern)
    if "{client}" not in last:
        return "".join(name + "/" if "{client}" in part and "{round}" not in part else part for part in (*above, last))
    ending = ".safetensors" if last.endswith(".safetensors") else ""
    return "".join([*above, last.replace("{client}", name) if "{round}" in last else name + ending])


def _list_paths(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """What lies as deep as the patterns or less, in order, also behind links: one that leads back up goes no deeper.

    Raises `UserError` for a link to nothing in the place of an adapter or of a folder above it.
    """
    found: list[Path] = []
    for depth in range(max(one.count("/") for one in patterns) + 1):
        paths = list(folder.glob("*/" * depth + "*"))  # follows links, as `**` does not
        begun = ["/".join(one.split("/")[: depth + 1]) for one in patterns]
        for path in paths:
            if path.is_symlink() and not path.exists() and any(_fit(one, folder, path) for one in begun):
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}, where nothing is; put back what was there, or take the "
                    "link away"
                )
        found += paths
    return sorted(found)


def _match(pattern: str, folder: Path, path: Path) -> dict[str, str] | None:
    """The round and the client of a path; None for another one."""
    kind = path.is_file() if pattern.endswith(".safetensors") else path.is_dir()
    found = _fit(pattern, folder, path) if kind else None
    return found.groupdict() if found else None


def _fit(pattern: str, folder: Path, path: Path) -> re.Match[str] | None:
    written = re.escape(pattern).replace(r"\{round\}", r"(?P<round>\d+)").replace(r"\{client\}", r"(?P<client>[^/]+)")
    written = written.replace(r"\*", "[^/]*")
    return re.fullmatch(written, path.relative_to(folder).as_posix())


def sort_name(name: str) -> tuple[bool, int, str]:
    """The key by which clients are in order: numbers first, by their value."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _explain_none(folder: Path, pattern: str) -> str:
    files = sorted(_walk(folder))
    there = [file.relative_to(folder).as_posix() for file in files if file.suffix == ".safetensors"]
    if not there:
        pickled = next((file for file in files if file.name == "adapter_model.bin"), None)
        if pickled is not None:
            return f"{pickled} is a pickle, which is not opened: save it with `safe_serialization=True`"
        return f"{folder} has no .safetensors file in it; --adapters takes the folder that holds the adapters of all rounds"
    return (
        f"{folder} has no adapter {pattern!r}; there are {len(there)} files like {there[0]}: say where they lie, as in "
        f"--pattern 'r{{round}}/site-{{client}}', with the folder or the .safetensors file of an adapter"
    )


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, also behind links; a folder that several links lead to is looked at once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files)


def _read_upload(path: Path, round: int, client: str | None, said: str) -> Upload:
    """Read an adapter; said: the option and the pattern that it fits, without the quote that ends it."""
    if path.is_file():
        return Upload(round, client, path, list_tensors(path), {})
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        hint = "adapter_model.bin is a pickle, which is not opened: save with `safe_serialization=True`"
        hint = hint if pickled else _point_below(path, said) or "put it back, or take the folder away"
        raise UserError(f"{path} has no {WEIGHTS}; {hint}")
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    if config.get("peft_type") == "ADALORA":
        config = _read_adalora(config)
    _check_config(path / CONFIG, config)
    return Upload(round, client, path / WEIGHTS, list_tensors(path / WEIGHTS), config)


def _point_below(path: Path, said: str) -> str | None:
    """The pattern of what lies where an adapter is missing: a checkpoint, an adapter with a name, a lone file."""
    places = [*sorted(file.parent for file in path.glob(f"*/{WEIGHTS}")), *sorted(path.glob("*.safetensors"))]
    if not places:
        return None
    found = re.sub(r"(?<=^checkpoint-)\d+$", "*", places[0].name)  # steps, which clients may have more or less of
    return f"{places[0].name} is there: say {said}/{found}'"


def _read_adalora(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as a LoRA's: AdaLoRA divides alpha by `init_r`, also once it has pruned factors.

    Its rank_pattern holds masks and no ranks of layers; by the other keys that are left out it does not go.
    """
    left = {key: value for key, value in config.items() if key not in ("rank_pattern", "alpha_pattern", "use_rslora")}
    return left | ({"r": config["init_r"]} if "init_r" in config else {})


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` for a rank or an alpha, of all layers or of some, that is none."""
    targets = config.get("target_parameters")
    if not (targets is None or (isinstance(targets, list) and all(isinstance(name, str) for name in targets))):
        raise UserError(f"{file}: target_parameters is {targets!r:.40}, and should be a list of names")
    for key, patterns, whole in (("r", "rank_pattern", True), ("lora_alpha", "alpha_pattern", False)):
        if key in config:
            _check_number(f"{file}: {key}", config[key], whole)
        own = config.get(patterns)
        if not isinstance(own, dict | None):
            raise UserError(f"{file}: {patterns} is {own!r:.40}, and should be a mapping, as in {{'q_proj': 8}}")
        for name, value in (own or {}).items():
            _check_number(f"{file}: {patterns} of {name!r}", value, whole)
            try:
                _compile_pattern(name)
            except (re.error, OverflowError, RecursionError) as error:
                why = str(error).partition(" at position ")[0]  # which is not that in the key
                raise UserError(
                    f"{file}: {patterns} has the key {name!r}, which is no regular expression ({why}); write the name of a "
                    "layer, its end, or an expression that matches it"
                ) from error


def _check_number(what: str, value: Any, whole: bool) -> None:
    number = type(value) is int or (type(value) is float and not whole)
    if not number or not 0 < value <= sys.float_info.max:  # NaN is not above 0 either
        wanted = "an integer from 1 on" if whole else "a finite number above 0"
        raise UserError(f"{what} is {value!r:.40}, and should be {wanted}; correct it, or save the adapter again")


def _compile_pattern(key: str) -> re.Pattern[str]:
    """What the name of a layer has to match for a key of rank_pattern or alpha_pattern to be of it, as PEFT has it."""
    return re.compile(rf"(.*\.)?({key})$")


def _find_gaps(folder: Path, sent: Sequence[tuple[int, str]], names: Sequence[str]) -> Iterator[str]:
    """Say who is missing where all others are always there. Raises `UserError` for a round that is missing among others."""
    rounds = sorted({t for t, _ in sent})
    steps = [b - a for a, b in itertools.pairwise(rounds)]
    odd = next((t for t, step in zip(rounds, steps, strict=False) if step != min(steps)), None)
    if odd is not None:
        raise UserError(
            f"{folder} has rounds {', '.join(map(str, rounds))}: round {odd + min(steps)} is missing; put its adapters "
            "back, or take away those before it or behind it"
        )
    lacking = [(t, name) for t in rounds for name in names if (t, name) not in sent]
    if 0 < len(lacking) < len(rounds):  # more are sampled cohorts
        told = join_names([f"client {name} in round {t}" for t, name in lacking])
        yield f"{folder} has no adapter of {told}, and in other rounds it has: not drawn, or lost?"


def _check_alike(found: Collection) -> None:
    """Raise `UserError` where two adapters do not have the same tensors; only the rank may differ."""
    first = found.uploads[0]
    for other in (*found.uploads, *found.servers.values()):
        names = first.tensors.keys() ^ other.tensors.keys()
        if names:
            one, two = (first, other) if min(names) in first.tensors else (other, first)
            raise UserError(
                f"{one.file} has the tensor {min(names)}, and {two.file} has not: they are adapters of different layers, "
                "which have no common mean; name one kind by --pattern"
            )
        for name, tensor in first.tensors.items():
            mine, theirs = tensor.shape, other.tensors[name].shape
            if mine != theirs and _drop_rank(name, mine) != _drop_rank(name, theirs):
                raise UserError(
                    f"{other.file}: {name} has the shape {theirs}, and {mine} in {first.file}: they are of different "
                    "models, or one is damaged; ranks may differ, layers may not"
                )


def _check_scales(found: Collection) -> None:
    """Raise `UserError` where some adapters say by what B A is multiplied and others do not."""
    every = (*found.uploads, *found.servers.values())
    told, silent = ([u for u in every if ("lora_alpha" in u.config) == known] for known in (True, False))
    if told and silent:
        raise UserError(
            f"{silent[0].file} has no {CONFIG} with lora_alpha beside it, and {told[0].file} has: what B A is multiplied "
            "with has to be known of all adapters or of none; put the file back, or take it away everywhere"
        )


def _check_experts(found: Collection) -> None:
    """Raise `UserError` where a layer would have the factors of more experts in one adapter than in another."""
    first = found.uploads[0]
    for other in (*found.uploads, *found.servers.values()):
        for site in first.sites:
            own, others = first.experts(site), other.experts(site)
            if own != others:
                raise UserError(
                    f"by the rank that {other.file.with_name(CONFIG)} states, the factors of {site} are of {others} "
                    f"experts, and of {own} by {first.file.with_name(CONFIG)}: correct r or rank_pattern in one of them"
                )


def _drop_rank(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    factor = FACTOR.fullmatch(name)
    if factor is None or len(shape) < 2:
        return shape
    return (shape[0], *shape[2:]) if factor["factor"] == "B" else shape[1:]
