"""The docs say what is there: their code runs, their names exist, and what is written from the code is up to date."""

import ast
import dataclasses
import importlib
import inspect
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from fedfault import registry
from fedfault.config.loading import load
from fedfault.config.schema import Experiment
from fedfault.records import ClientRecord, Finding, RoundRecord, Score, Turn
from fedfault.registry import build, load_builders, read_declarations
from fedfault.runs.checkpoint import PLAIN
from fedfault.runs.clients import COLUMNS, PROBE
from fedfault.session.provenance import INPUTS, VERSIONS
from fedfault.setup import equipment
from fedfault.types.algorithm import Algorithm
from fedfault.types.corpus import Tally

ADDING = Path(__file__).parents[1] / "docs" / "adding.md"


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_example_of_an_algorithm_runs_with_its_test(tmp_path):
    algorithm, test, _ = blocks(ADDING)
    code = [line for line in algorithm.splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
    assert len(code) < 20
    (tmp_path / "halfway.py").write_text(algorithm)
    with registry.keep_plugins():
        registry.activate([str(tmp_path / "halfway.py")])
        assert isinstance(build("algorithm", "halfway", step=0.3), Algorithm)
        names: dict = {}
        exec(compile(test.replace('"halfway.py"', repr(str(tmp_path / "halfway.py"))), "docs/adding.md", "exec"), names)
        tests = [run for name, run in names.items() if name.startswith("test_")]
        assert len(tests) == 3
        for run in tests:
            run()


def test_the_example_of_an_aggregation_is_a_newcomer_that_the_contracts_run():
    _, _, aggregation = blocks(ADDING)
    file = Path(__file__).parent / "newcomers" / "midhinge.py"
    assert aggregation.splitlines()[1:] == file.read_text(encoding="utf-8").splitlines()[2:]


def test_the_configurations_in_the_page_about_deployment_are_valid(tmp_path):
    pages = re.findall(r"```yaml\n(.*?)```", ADDING.with_name("deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    for i, text in enumerate(pages):
        (tmp_path / f"{i}.yaml").write_text(text)
        equipment.check_equipment(load(tmp_path / f"{i}.yaml").experiment)
    assert pages


MEASURED = ADDING.with_name("metrics.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", load_builders("probe"))
def test_the_page_about_metrics_has_a_row_for_every_probe(name):
    off = "" if read_declarations("probe")[name].facts.get("on", True) else " (off)"
    start = f"| `{name}`{off} |"
    assert any(line.startswith(start) for line in MEASURED), f"docs/metrics.md lacks a row {start} with its numbers"


@pytest.mark.parametrize("name", load_builders("detector"))
def test_the_page_about_metrics_says_what_every_detector_reads_and_what_a_run_does_at_its_alarm(name):
    detector = build("detector", name)
    remedies = ", else ".join(f"`{remedy}`" for remedy in detector.remedies) or "–"
    row = f"| `{name}` | {remedies} | {'yes' if detector.wants_clusters else '–'} |"
    assert row in MEASURED, f"docs/metrics.md lacks the row {row}"
    assert sum(line.startswith(f"| `{name}` |") for line in MEASURED) >= 2, "docs/metrics.md lacks its statistic"


def test_the_page_about_metrics_says_which_detectors_controls_do_not_calibrate():
    theirs = [f"`{name}`" for name in load_builders("detector") if not build("detector", name).calibrated]
    assert f"(all but {', '.join(theirs[:-1])} and {theirs[-1]})" in " ".join(MEASURED)


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fedfault"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [page for page in TEXTS if (ROOT / "docs" / "studies") not in page.parents]  # reports of runs, as they were
WRITTEN = runpy.run_path(str(ROOT / "scripts" / "write_docs.py"))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["cli", "components", "map"])
def test_a_page_that_is_written_from_the_code_is_up_to_date(page):
    assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") == WRITTEN[f"build_{page}"](), "run `make docs`"


@pytest.mark.slow
def test_every_file_has_a_line_in_the_map():
    found = WRITTEN["build_map"]()
    for file in SOURCE.rglob("*.py"):
        name = str(file.relative_to(SOURCE))
        assert name == "__init__.py" or f"`{name.removesuffix('__init__.py')}`" in found or f"`{name}`" in found, name
    assert not re.search(r": ?$", found, re.MULTILINE), "a module has no docstring"


@pytest.mark.parametrize("flag", sorted(set(re.findall(r'"(--[a-z-]+)"', (SOURCE / "flags.py").read_text("utf-8")))))
def test_every_flag_of_the_scripts_at_the_root_is_in_the_page_about_the_command_line(flag):
    assert f"`{flag}" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", registry.FOLDERS)
def test_a_component_of_every_kind_has_its_folder_in_the_pages_about_adding_one(kind):
    folder = registry.FOLDERS[kind].removeprefix("fedfault.")
    assert f"\n| {kind} | `{folder}` | `" in (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    assert f"`{folder}/`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_page_about_installing_has_every_extra():
    extras = re.search(
        r"^\[project\.optional-dependencies\]$(.*?)^\[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S
    )
    names = re.findall(r"^(\w+) = \[", extras[1], re.M)
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(names)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_python_file_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^# (\S+\.py)$", text, re.MULTILINE)  # files that a reader is to write
    named = set(re.findall(r"[\w./-]*\w\.py\b", text)) - set(shown)
    bases = (ROOT, SOURCE, page.parent)
    assert not [name for name in sorted(named) if not any((base / name).is_file() for base in bases)]


@cache
def list_classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def has_attribute(node: ast.ClassDef, name: str) -> bool:
    names = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    names |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
    return name in names


def resolves(name: str) -> bool:
    """Whether a dotted name is a class of ours with this attribute, or leads from a room of ours to something."""
    first, *rest = name.split(".")
    if first in list_classes():
        return len(rest) == 1 and any(has_attribute(node, rest[0]) for node in list_classes()[first])
    thing = importlib.import_module("fedfault")
    for part in [first, *rest] if first != "fedfault" else rest:
        if inspect.ismodule(thing):
            try:  # first a room or module: of a room `fedfault` may have a function of the same name
                thing = importlib.import_module(f"{thing.__name__}.{part}")
                continue
            except ImportError as e:
                if not str(e.name).startswith("fedfault"):
                    return True  # what it needs is not installed here
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


ROOMS = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}


def is_setting(name: str) -> bool:
    """Whether a name like `data.path` is a key of the configuration; `data.split` is a module."""
    first, second, *_ = name.split(".")
    return first in Experiment.model_fields and not (SOURCE / first / f"{second}.py").is_file()


def find_stale_names(page: Path) -> list[str]:
    """Dotted names of ours in a page or a file of code, in backticks, that lead to nothing."""
    spans = re.findall(r"`@?((?:\w+\.)+\w+)(?:\([^`]*\))?`", page.read_text(encoding="utf-8"))
    ours = {s for s in spans if s.split(".")[0] in ROOMS | {"fedfault"} | list_classes().keys() and not is_setting(s)}
    files = {s for s in ours if re.search(r"\.(py|parquet|jsonl?|html|yaml|md)$", s)}
    return [name for name in sorted(ours - files) if not resolves(name)]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_dotted_name_of_ours_in_a_page_exists(page):
    assert not find_stale_names(page)


def test_every_dotted_name_of_ours_in_a_docstring_exists():
    stale = {str(file.relative_to(SOURCE)): find_stale_names(file) for file in SOURCE.rglob("*.py")}
    assert not {file: names for file, names in stale.items() if names}


RUN_FOLDER = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")


def list_keys(file: str, *functions: str) -> set[str]:
    """Keys of the dictionaries that these functions of a file make, or of all its functions."""
    nodes = ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8")))
    there = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert set(functions) <= {function.name for function in there}, file
    found: set[str] = set()
    for function in there:
        if not functions or function.name in functions:
            for node in ast.walk(function):
                keys = node.keys if isinstance(node, ast.Dict) else []
                keys = [node.slice] if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) else keys
                keys = [key.values[0] if isinstance(key, ast.JoinedStr) else key for key in keys]
                found |= {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    return found


def list_run_keys() -> dict[str, set[str]]:
    """What the files of a run folder can hold, by where the code says so."""
    kinds = (RoundRecord, Score, ClientRecord, Turn, Finding, Tally)
    found = {kind.__name__: {f.name for f in dataclasses.fields(kind)} for kind in kinds}
    found["a checkpoint"] = set(PLAIN)
    found["manifest.json"] = {*VERSIONS, *INPUTS, *list_keys("session/provenance.py", "make_manifest")}
    found["a manifest's inputs"] = list_keys("setup/sources.py", "describe_sources")
    found["a fork's manifest.json"] = list_keys("session/fork.py", "fork_run")
    found["metrics.json"] = list_keys("runs/outcome.py")
    found["a verdict"] = list_keys("diagnosis/verdict.py", "judge_detection")
    found["split.json"] = list_keys("data/split.py", "to_json")
    found["clusters.json"] = list_keys("clustering/clusters.py", "to_json")
    return found


@pytest.mark.parametrize(("file", "keys"), list_run_keys().items(), ids=list(list_run_keys()))
def test_the_page_about_the_run_folder_names_every_key(file, keys):
    assert keys
    assert not [key for key in sorted(keys) if f"`{key}`" not in RUN_FOLDER]


def read_first_cells(heading: str) -> list[str]:
    """The names in the first column of the table below a heading of the page about the run folder, in order."""
    section = RUN_FOLDER.split(f"\n## `{heading}`\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_has_the_columns_of_the_clients_table_in_their_order():
    assert read_first_cells("clients.parquet") == [*COLUMNS, f"{PROBE}NAME"]


def test_every_number_of_metrics_json_has_a_unit():
    section = RUN_FOLDER.split("\n## `metrics.json`\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    assert not [row for row in rows if len(row.split(" | ")) < 3 or not row.split(" | ")[1].strip()]


def test_the_page_about_the_run_folder_names_every_file():
    old = Path(__file__).parent / "runs" / "old" / "stopped"
    texts = [file.read_text(encoding="utf-8") for room in ("session", "runs") for file in (SOURCE / room).glob("*.py")]
    named = set(re.findall(r'"([\w-]+\.(?:json|jsonl|parquet|yaml|html))"', "".join(texts)))
    there = {path.name + "/" * path.is_dir() for path in old.iterdir()}
    assert {"metrics.json", "checkpoint/"} <= named | there
    assert not [name for name in sorted(named | there) if f"`{name}`" not in RUN_FOLDER]


@pytest.mark.parametrize("file", sorted((SOURCE / "metrics").glob("[a-z]*.py")), ids=lambda file: file.stem)
def test_the_page_about_metrics_names_every_number_of_a_probe(file):
    text = "\n".join(MEASURED)
    keys = list_keys(f"metrics/{file.name}")
    assert keys
    assert not [key for key in sorted(keys) if f"`{key}`" not in text and f"`{key}L`" not in text]


def test_the_page_about_faults_has_every_row_and_names_tests_that_are_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 31))
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert named
    assert not [(f, t) for f, t in named if f"def {t}" not in (ROOT / f).read_text(encoding="utf-8")]


GLOSSARY = ROOT / "docs" / "glossary.md"
TERMS = [
    term
    for names in re.findall(r"^\* \*\*(.+?)\*\*:", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    for term in names.split(", ")
]
NEEDED = (
    "cohort row site slice layout pass message state fold private personal deal turn nat mixture block probe reading "
    "finding alarm suspect verdict calibration cell arm contrast tier fate regret budget trait stands remedy fork paired"
)


@pytest.mark.parametrize("term", [*NEEDED.split(), "control variate", "control (run)", "held out", "halves"])
def test_the_glossary_has_the_words_that_a_stranger_cannot_know(term):
    assert term in TERMS


@pytest.mark.slow
def test_every_term_of_the_glossary_is_a_word_of_the_code_or_the_docs():
    pages = [page for page in TEXTS if page != GLOSSARY]
    text = "\n".join(file.read_text(encoding="utf-8") for file in [*SOURCE.rglob("*.py"), *pages]).lower()
    assert len(set(TERMS)) == len(TERMS)
    assert not [t for t in TERMS if not re.search(rf"\b{re.escape(t.lower().partition(' (')[0])}", text)]


TOUR = ROOT / "docs" / "tour.md"
STEPS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", TOUR.read_text(encoding="utf-8"), re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_tour_of_one_round_prints_what_it_shows(capsys):
    """Floating-point numbers as far as another machine can tell, all else to the letter."""
    names: dict = {}
    assert len(STEPS) == len(blocks(TOUR)) >= 6
    for code, shown in STEPS:
        exec(compile(code, "docs/tour.md", "exec"), names)
        printed = capsys.readouterr().out
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
        floats = [[float(x) for x in NUMBER.findall(text)] for text in (printed, shown)]
        assert floats[0] == pytest.approx(floats[1], rel=0.05, abs=0.02)
    record = names["record"]
    undocumented = {name.partition("/")[0] for name in [*record.probes, *record.matrices, *record.clients[0].probes]}
    assert not [name for name in sorted(undocumented) if f"`{name}" not in "\n".join(MEASURED)]


def test_the_words_that_a_report_explains_are_in_the_glossary():
    page = (SOURCE / "report" / "glossary.py").read_text(encoding="utf-8")
    words = ", ".join(re.findall(r'\bWord\(\s*"([\w, ]+)",\s*r"', page)).lower().split(", ")
    assert len(words) == 15
    assert {word.removesuffix(" run") for word in words} <= {term.removesuffix(" (run)").lower() for term in TERMS}
