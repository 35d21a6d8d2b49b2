"""From the file of a study to a plan: every cell's configuration is checked before the first run starts.

A study is a configuration (with `_base_`, sections and `key=value` arguments) that has some of these keys besides:

    question    what it is to answer
    arms        NAME: settings that make this arm
    grid        setting: [values], or a list of such grids; cells are the product, times the arms
    seeds       a number, or a list: every cell is run with each of them, with the same split and the same cohorts; or
                `auto`: one seed after another until every hypothesis is answered, see `stopping.py`
    max_seeds   with `auto`: the most that a cell is run with
    hypotheses  NAME: {claim, metric, arm, than, beyond, expect, by}, see `statements.py`
    maps        NAME: {x, y, metric, where}: heat maps over two axes
    best        NAME: {axis, metric, prefer, by, where}: what to use when, see `best.py`
    limits      what the study cannot show, a sentence each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.config.changes import NO_CAUSE, find_changes, hash_settings
from fedfault.config.files import Key, Layer, nest_settings, spell_key
from fedfault.config.layers import parse_command_line, read_layers
from fedfault.config.loading import Loaded, resolve
from fedfault.config.shipped import find_study
from fedfault.config.shorthand import translate_layer
from fedfault.errors import UserError, join_names
from fedfault.runs.recorded import find_units
from fedfault.storage import expand_home
from fedfault.studies.axes import Point, make_slug, span_points
from fedfault.studies.outcomes import has_metric, is_loss
from fedfault.studies.statements import Asked, parse_best, parse_hypotheses, parse_maps, select_cells
from fedfault.studies.study import RUNS, Cell, Hypothesis, Study, StudyPlan

# Keys of a study beside a configuration's
OWN = ("question", "arms", "grid", "seeds", "max_seeds", "hypotheses", "maps", "best", "limits")
LONGEST = 70  # characters of a run's name that stand for its cell
SEEDS = 5  # pairs: with two, Student's interval is seven times as wide as with five
AUTO = "auto"
MOST_SEEDS = 20  # of `auto`: find differences of 1.25 standard deviations among 13 hypotheses, with a power of 0.8
NAME: Key = ("experiment_name",)
REPLACED: Mapping[Key, str] = {
    ("seed",): "a study runs every cell with the same seeds; give them as a list, like `seeds: [1, 5]`",
    NAME: "a study names its runs; leave it out there",
    ("logging", "results_dir"): "all runs of a study are in its folder; leave it out there",
}


def load_study(
    path: Path | str,
    overrides: Sequence[str] = (),
    results_dir: str | None = None,
    command: str = "",
    plugins: Sequence[str] = (),
) -> StudyPlan:
    """The plan of a study file with `key=value` arguments on top.

    Raises `UserError` with a line for everything that is wrong, anywhere in it: nothing has run then.
    """
    file = find_study(path)
    given = parse_command_line(overrides)
    layers = [*read_layers(file), given]
    own = _select_study_keys(layers)
    base = [{key: entry for key, entry in layer.items() if key[0] not in OWN} for layer in layers]
    name = next((str(layer[NAME].value) for layer in reversed(base[-2:]) if NAME in layer), file.stem)
    where = file.name
    spanned = span_points(own.get("arms"), own.get("grid"), where)
    wrong = [*_find_replaced(spanned, where), *_find_overruled(spanned, base[-1])]
    checked, refused = _resolve_points(spanned, base, plugins)
    wrong += [*refused, *_find_same(spanned, checked)]
    if not checked:
        raise UserError("\n".join(wrong))
    any_one = next(iter(checked.values())).experiment
    sequential = own.get("seeds") == AUTO
    wanted = _find_most_seeds(own, where, wrong) if sequential or "max_seeds" in own else own.get("seeds", SEEDS)
    seeds = _choose_seeds(wanted, any_one.seed, ("seed",) in base[-1], where, wrong)
    if not make_slug(name):
        raise UserError(
            f"{where}: {name!r} has no letter or digit that the name of a folder could be made of; give experiment_name=NAME"
        )
    folder = expand_home(results_dir or any_one.logging.results_dir, "logging.results_dir") / make_slug(name)
    cells, configs = _name_runs(spanned, checked, seeds, folder, where)
    claims = parse_hypotheses(own.get("hypotheses") or {}, cells, where, wrong)
    drawn = parse_maps(own.get("maps") or {}, cells, where, wrong)
    best = parse_best(own.get("best") or {}, cells, where, wrong)
    wrong += _find_mixed_units(claims, cells, configs, where)
    wrong += _find_unmeasured({"hypotheses": claims, "maps": drawn, "best": best}, cells, configs, where)
    if wrong:
        raise UserError("\n".join(wrong))
    limits = own.get("limits") or []
    study = Study(
        make_slug(name),
        str(own.get("question") or ""),
        tuple(seeds),
        tuple(cells),
        claims,
        drawn,
        best,
        tuple(map(str, limits if isinstance(limits, list) else [limits])),
        command,
        sequential,
    )
    return StudyPlan(study, folder, configs)


def _select_study_keys(layers: Sequence[Layer]) -> dict[str, Any]:
    """The study's own keys as nested values; a layer that has one replaces it whole."""
    found: dict[str, Any] = {}
    for layer in layers:
        for name in OWN:
            mine = {key[1:]: entry.value for key, entry in layer.items() if key[0] == name}
            if mine:
                found[name] = mine[()] if () in mine else nest_settings(mine)
    return found


def _find_replaced(spanned: Sequence[Point], where: str) -> list[str]:
    """A line for what every run gets from the study itself: in the grid or the arms it would be replaced in silence."""
    varied = {key for point in spanned for layer in point.layers for key in translate_layer(layer)[0]}
    return [
        f"{where}: {spell_key(key)} stands in the grid or the arms, but {why}"
        for key, why in REPLACED.items()
        if key in varied
    ]


def _find_overruled(spanned: Sequence[Point], given: Layer) -> list[str]:
    """An argument for a setting that varies would be overruled in silence: it is refused."""
    varied = {key for point in spanned for layer in point.layers for key in translate_layer(layer)[0]}
    return [
        f"{entry.where}: {spell_key(key)} varies in this study; change the values of the grid or of the arms instead"
        for key, entry in translate_layer(given)[0].items()
        if any(key[: len(v)] == v or v[: len(key)] == key for v in varied)
    ]


def _resolve_points(
    spanned: Sequence[Point], base: list[Layer], plugins: Sequence[str]
) -> tuple[dict[int, Loaded], list[str]]:
    """The configuration of every point that has a good one, and a line for each thing that is wrong."""
    found: dict[int, Loaded] = {}
    wrong: dict[str, list[int]] = {}
    for i, point in enumerate(spanned):
        try:
            found[i] = resolve([*base, *point.layers], plugins)
        except UserError as e:
            for line in str(e).splitlines():
                wrong.setdefault(line, []).append(i)
    names = [", ".join(point.choices.values()) for point in spanned]
    some = [
        line if len(at) == len(spanned) else f"{line} (in {len(at)} of {len(spanned)} cells: {names[at[0]]}, ...)"
        for line, at in wrong.items()
    ]
    return found, some


def _find_same(spanned: Sequence[Point], checked: Mapping[int, Loaded]) -> list[str]:
    """A line for cells of one block that are the same experiment."""
    seen: dict[tuple[int, str], str] = {}
    wrong = []
    for i, loaded in checked.items():
        key = (spanned[i].block, hash_settings(loaded.resolved))
        name = ", ".join(spanned[i].choices.values())
        if key in seen:
            wrong.append(f"{seen[key]} and {name} are the same experiment; leave one out or make them differ")
        seen.setdefault(key, name)
    return wrong


def _find_most_seeds(own: Mapping[str, Any], where: str, wrong: list[str]) -> int:
    """The most seeds of `seeds: auto`; what does not go with it is appended to `wrong`."""
    most = own.get("max_seeds", MOST_SEEDS)
    if own.get("seeds") != AUTO:
        wrong.append(f"{where}: max_seeds is for `seeds: auto`; seeds is {own.get('seeds', SEEDS)!r:.60}")
    elif not own.get("hypotheses"):
        wrong.append(f"{where}: `seeds: auto` runs until hypotheses are answered, and there are none; give a number")
    if not isinstance(most, int) or isinstance(most, bool) or most < 2:
        wrong.append(f"{where}: max_seeds must be a number of at least 2; it is {most!r:.60}")
        return MOST_SEEDS
    return most


def _choose_seeds(wanted: Any, first: int, given: bool, where: str, wrong: list[str]) -> list[int]:
    """So many seeds from `seed` on, or those of the list."""
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0:
        return list(range(first, first + wanted))
    fine = isinstance(wanted, list) and wanted and all(type(s) is int and s >= 0 for s in wanted)
    if not fine or len(set(wanted)) < len(wanted):
        wrong.append(
            f"{where}: seeds must be a number of seeds, a list of different ones, or auto; it is {wanted!r:.60}"
        )
        return [first]
    if given:
        wrong.append("command line: seed is set, but the study lists its seeds; give seeds=[...] instead")
    return list(wanted)


def _find_unmeasured(
    asked: Mapping[str, Sequence[Asked]], cells: Sequence[Cell], configs: Mapping[str, Loaded], where: str
) -> list[str]:
    """A line for every metric that the runs cannot have: one run of a hypothesis, or all of a map or of a table."""
    wrong = []
    for what, one in ((what, one) for what, each in asked.items() for one in each):
        exps = [configs[cell.runs[0]].experiment for cell in select_cells(one, cells)]
        without = [exp for exp in exps if not has_metric(exp, one.metric)]
        if without and (what == "hypotheses" or len(without) == len(exps)):
            wrong.append(
                f"{where}: {what}.{one.name}: metric: {one.metric} is not measured with data.task_type="
                f"{without[0].data.task_type}, whose scores are {', '.join(without[0].scores)}"
            )
    return wrong


def _find_mixed_units(
    claims: Sequence[Hypothesis], cells: Sequence[Cell], configs: Mapping[str, Loaded], where: str
) -> list[str]:
    """A line for every hypothesis that compares losses of different units."""
    wrong = []
    for h in claims:
        for c in h.contrasts if is_loss(h.metric) else ():
            exps = [configs[cells[i].runs[0]].experiment for i in sorted(c.cells)]
            units = list(dict.fromkeys(find_units(exp.data.task_type, exp.training.loss_on)[0] for exp in exps))
            if len(units) > 1:
                wrong.append(
                    f"{where}: hypotheses.{h.name}: {h.metric} is in {join_names(units)}, which cannot be compared; keep "
                    "data.task_type and training.loss_on the same on both sides, or ask for a metric that both have"
                )
                break
    return wrong


def _name_runs(
    spanned: Sequence[Point], checked: Mapping[int, Loaded], seeds: Sequence[int], folder: Path, where: str
) -> tuple[list[Cell], dict[str, Loaded]]:
    """Cells with the names of their runs, and every run's configuration; a run that two cells share is there once."""
    cells: list[Cell] = []
    configs: dict[str, Loaded] = {}
    by_identity: dict[str, str] = {}
    for i, loaded in checked.items():
        names = []
        for seed in seeds:
            one = _set_seed(loaded, spanned[i], seed, folder)
            name = by_identity.setdefault(hash_settings(one.resolved), one.experiment.experiment_name)
            configs.setdefault(name, one)
            names.append(name)
        cell = Cell(dict(spanned[i].choices), tuple(names))
        same = next((other for other in cells if other.choices == cell.choices), None)
        if same is None:
            cells.append(cell)
        elif same.runs != cell.runs:
            changed = find_changes(configs[same.runs[0]].resolved, loaded.resolved)
            settings = [key for key in changed if not key.startswith((*NO_CAUSE, "seed"))]
            raise UserError(
                f"{where}: two blocks of the grid have a cell {cell.name or 'of all runs'} with different settings "
                f"({', '.join(settings)}); put its values into one block, or give the cells names of their own with arms"
            )
    return cells, configs


def _set_seed(loaded: Loaded, point: Point, seed: int, folder: Path) -> Loaded:
    logging = loaded.experiment.logging.model_copy(update={"results_dir": str(folder / RUNS)})
    exp = loaded.experiment.model_copy(update={"seed": seed, "logging": logging})
    head = make_slug("_".join(map(make_slug, point.choices.values())))[:LONGEST] or "run"
    exp = exp.model_copy(update={"experiment_name": f"{head}-seed{seed}-{hash_settings(exp.model_dump())[:8]}"})
    return Loaded(exp, loaded.notes, exp.model_dump())
