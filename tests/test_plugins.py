"""Components from outside the package: how they are found and told apart, and every way in which one can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fedfault import plugins, registry
from fedfault.errors import UserError
from fedfault.plugins import PlugIn, choose_source, copy_sources, find_installed
from fedfault.registry import activate, build, describe_plugins, find_builder, list_plugins, load_builders

ROOT = Path(__file__).parents[1]
PARTITION = """
from fedfault.registry import register
from fedfault.types.corpus import Deal


@register("partition")
def {name}(*, first: int = {first}):
    "Nobody gets anything."
    return lambda documents, n, generator: Deal([])
"""


@pytest.fixture(autouse=True)
def _keep():
    with registry.keep_plugins():
        yield


def write(folder: Path, file: str, text: str = PARTITION.format(name="mine", first=1)) -> str:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_adds_its_components_until_another_configuration_is_loaded(tmp_path):
    activate([write(tmp_path, "mine.py")])
    assert load_builders("partition")["mine"].__doc__ == "Nobody gets anything."
    assert registry.find_plugin(find_builder("partition", "mine")).name == "mine.py"
    assert registry.find_plugin(find_builder("partition", "iid")) is None
    activate([])
    assert "mine" not in load_builders("partition")
    with pytest.raises(UserError, match="registers one, which the configuration does not name"):
        find_builder("partition", "mine")


def test_an_edit_is_seen_at_once_and_changes_the_hash(tmp_path):
    source = write(tmp_path, "mine.py")
    activate([source])
    before = describe_plugins()
    write(tmp_path, "mine.py", PARTITION.format(name="mine", first=2))  # as long, and within the same second
    activate([source])
    assert find_builder("partition", "mine").__kwdefaults__ == {"first": 2}
    assert describe_plugins().partition("#")[0] == "mine.py"
    assert describe_plugins() != before


def test_a_pinned_file_is_that_source_or_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine.py")
    activate(["mine.py"])
    (plugin,) = list_plugins()
    assert plugin.pinned == f"mine.py#{plugin.fingerprint}"
    copy_sources([plugin], tmp_path / "run" / "plugins")
    activate([plugin.pinned])
    write(tmp_path, "mine.py", PARTITION.format(name="mine", first=2))
    with pytest.raises(UserError, match=rf"the plug-in mine\.py has the hash \w+, and {plugin.fingerprint} is wanted"):
        activate([plugin.pinned])
    assert choose_source(plugin.pinned, tmp_path) == plugin.pinned  # no copy lies there
    activate([choose_source(plugin.pinned, tmp_path / "run")])
    assert find_builder("partition", "mine").__kwdefaults__ == {"first": 1}


def test_a_file_lies_relative_to_the_configuration_or_else_to_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "configs", "mine.py")
    monkeypatch.chdir(tmp_path)
    assert choose_source("mine.py", Path("configs")) == "configs/mine.py"
    assert choose_source("configs/mine.py", Path("elsewhere")) == "configs/mine.py"
    assert choose_source("my_package.module", Path("configs")) == "my_package.module"
    assert choose_source("nowhere.py", Path("configs")) == "nowhere.py"


def test_a_package_is_a_plug_in_with_all_its_modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, "outside_package/__init__.py", "from outside_package import inner\n")
    write(tmp_path, "outside_package/inner.py", PARTITION.format(name="from_package", first=1))
    activate(["outside_package"])
    assert build("partition", "from_package")
    copy_sources(list_plugins(), tmp_path / "plugins")
    copied = {p.relative_to(tmp_path / "plugins").as_posix() for p in (tmp_path / "plugins").rglob("*.py")}
    assert copied == {"outside_package/__init__.py", "outside_package/inner.py"}
    write(tmp_path, "outside_package/inner.py", PARTITION.format(name="from_package", first=2))
    with pytest.raises(UserError, match="has changed since this process imported it"):
        activate(["outside_package"])


@pytest.mark.long
def test_an_installed_package_offers_components_by_an_entry_point(tmp_path):
    """In a process of its own, that finds the package on its path as pip would have put it there."""
    write(tmp_path, "weathervane.py", PARTITION.format(name="by_wind", first=1))
    about = tmp_path / "weathervane-1.0.dist-info"
    write(about, "METADATA", "Metadata-Version: 2.1\nName: weathervane\nVersion: 1.0\n")
    write(about, "entry_points.txt", "[fedfault.components]\nwind = weathervane\n")
    code = "from fedfault.config.loading import load; from fedfault.registry import describe_plugins\n"
    code += "print(load('quickstart', ['data.partition=by_wind']).resolved['plugins'], describe_plugins())"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] weathervane#")


def test_an_installed_package_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, "broken_package.py", "1 / 0")
    entry = metadata.EntryPoint("broken", "broken_package", plugins.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    find_installed.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"package broken offers.*broken_package\.py:1: ZeroDivisionError: division by"
        ):
            load_builders("partition")
    finally:
        find_installed.cache_clear()


HEAD = "from fedfault.registry import register\n"
WRONG = {
    "a syntax error": ("def mine(\n", r"bad\.py:1: syntax error: .* never closed"),
    "null bytes": ("x = 1\0\n", r"bad\.py:1: syntax error: .*null bytes"),
    "an error of its own": ("x = 1\ny = 1 / 0\n", r"bad\.py:2: ZeroDivisionError: division by zero"),
    "the end of the process": ("import sys\nsys.exit(3)\n", r"bad\.py:2: SystemExit: 3"),
    "a module that is missing": ("import no_such_thing\n", r"bad\.py:1: ModuleNotFoundError: .*a plug-in is one file"),
    "nothing registered": ("x = 1\n", r"bad\.py registers no component; decorate"),
    "a name of the package's": (
        HEAD + '@register("algorithm")\ndef fedavg(): ...\n',
        r"bad\.py:2: fedfault has algorithm 'fedavg' already; give the function another name",
    ),
    "a class": (
        HEAD + '@register("algorithm")\nclass Mine: ...\n',
        r"bad\.py:2: a component is a function .*Mine is a class",
    ),
    "a kind that is none": (
        HEAD + '@register("algoritm")\ndef mine(): ...\n',
        r"bad\.py:2: no kind 'algoritm'.*'algorithm'",
    ),
    "one name twice": (
        HEAD + 2 * '@register("algorithm")\ndef mine(): ...\n',
        r"bad\.py:4: two algorithm components are called 'mine', the other one at .*bad\.py:2",
    ),
    "options by position": (
        HEAD + '@register("algorithm")\ndef mine(a): ...\n',
        r"bad\.py:2: mine takes a by position, and options of a component are keyword-only",
    ),
    "a type that is not there": (
        "from __future__ import annotations\n" + HEAD + '@register("algorithm")\ndef mine(*, a: Anotated[int]): ...\n',
        r"bad\.py:3: name 'Anotated' is not defined",
    ),
    "a switch of what is no probe": (
        HEAD + '@register("detector", on=False)\ndef mine(): ...\n',
        r"bad\.py:2: ValueError: only a probe has `on`",
    ),
}


@pytest.mark.parametrize(("text", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_told_with_its_line_and_can_be_mended(tmp_path, text, told):
    source = write(tmp_path, "bad.py", text)
    with pytest.raises(UserError, match=told):
        activate([source])
    assert list_plugins() == ()
    write(tmp_path, "bad.py")
    activate([source])
    assert "mine" in load_builders("partition")


def test_two_plug_ins_cannot_register_one_name(tmp_path):
    one, other = write(tmp_path, "one.py"), write(tmp_path, "other.py")
    with pytest.raises(UserError, match=r"other\.py:6: partition 'mine' is there already, at .*one\.py:6"):
        activate([one, other])


def test_two_files_of_one_name_are_refused_and_the_same_one_counts_once(tmp_path):
    one = write(tmp_path, "a/mine.py")
    same = write(tmp_path, "b/mine.py")
    activate([one, same])
    assert len(list_plugins()) == 1
    other = write(tmp_path, "c/mine.py", PARTITION.format(name="another", first=1))
    with pytest.raises(UserError, match=r"two plug-ins are called mine\.py: .*a/mine\.py and .*c/mine\.py; rename one"):
        activate([one, other])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nope.py", "there is no file nope.py, neither beside the configuration nor in the working folder"),
        (
            "nope.py#0123456789ab",
            "nope.py is not there, with the hash 0123456789ab; put it back, or a copy as plugins/nope.py",
        ),
        ("no.such.module", "no module 'no.such.module' can be imported"),
        ("", "no module '' can be imported"),
    ],
)
def test_what_is_not_there_is_told(source, told):
    with pytest.raises(UserError) as e:
        activate([source])
    assert told in str(e.value)


def test_the_hash_is_that_of_the_text_alone():
    one, other = (PlugIn(source, (("mine.py", b"x = 1\n"),), "m") for source in ("a/mine.py", "b/mine.py"))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != PlugIn("a/mine.py", (("mine.py", b"x = 2\n"),), "m").fingerprint
