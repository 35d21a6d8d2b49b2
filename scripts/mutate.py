"""Would the tests notice? Removes one guard after the other, and runs the tests that hold it: they have to fail.

    python scripts/mutate.py [NAME ...] [--list]

Each mutation is a row of the matrix in docs/reliability.md, a file of the package, a piece of it, and what stands there once
the guard is gone. The package is copied to a temporary folder and changed there. Prints a line a mutation; status 1 if one
survives. tests/test_scripts.py holds that every piece is still in its file, once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """A guard and its removal, with the tests that have to fail then."""

    row: int
    file: str  # below src/fedfault
    guard: str
    without: str
    tests: str  # as pytest takes them, by blanks


MUTATIONS = {
    "half a file is left": Mutation(
        3, "storage.py", "            scratch.unlink()", "            pass",
        "tests/test_storage.py::test_a_disk_that_fills_up_leaves_the_old_file_and_an_error_with_its_name",
    ),
    "a file is written in place": Mutation(
        3, "storage.py", "    scratch = _name_scratch(path)\n", "    scratch = path\n",
        "tests/test_storage.py::test_a_disk_that_fills_up_leaves_the_old_file_and_an_error_with_its_name",
    ),
    "a refusal of the system is a traceback": Mutation(
        3, "cli/__init__.py", "        if e.filename is None:  # not", "        if True:  # not",
        "tests/cli/test_run_guarded.py::test_an_error_of_the_system_is_told_by_every_command",
    ),
    "a checkpoint is believed": Mutation(
        4, "runs/state.py", "if hashlib.sha256(data).hexdigest() != about.sha256:", "if False:",
        "tests/runs/test_folder.py::test_a_damaged_checkpoint_is_passed_over_with_a_warning",
    ),
    "two processes write to one run": Mutation(
        5, "runs/files.py", "with filelock.FileLock(folder / LOCK, timeout=INSTANT):", "if True:",
        "tests/runs/test_folder.py::test_two_processes_cannot_write_to_one_run",
    ),
    "records of any types are read": Mutation(
        4, "records.py", "        raise TypeError(f\"{place} is", "        return value\n        raise TypeError(f\"{place} is",
        "tests/runs/test_types_of_records.py",
    ),
    "idle rounds never end a run": Mutation(
        9, "flower/nodes.py", "if self.idle >= PATIENCE:", "if False:",
        "tests/flower/test_faults.py::test_a_run_ends_after_three_rounds_in_a_row_that_change_nothing",
    ),
    "the text of an exception leaves the site": Mutation(
        10, "flower/client.py", 'f"{type(e).__name__} at the client; its log says more"', "repr(e)",
        "tests/flower/test_faults.py::test_the_text_of_an_exception_stays_at_the_site",
    ),
    "updates are not looked at": Mutation(
        11, "rounds/integrity.py", "if bool(rows.sum().isfinite()):", "if True:",
        "tests/rounds/test_integrity.py::test_a_client_that_is_not_finite_is_left_out_and_named",
    ),
    "lost rounds go on": Mutation(
        11, "session/training.py", "if lost and lost >= min(LOST, num_rounds):", "if False:",
        "tests/session/test_lost_rounds.py",
    ),
    "numbers of a site are not looked at": Mutation(
        11, "flower/payload.py", "if bad := int((~np.isfinite(out)).sum()):", "if bad := 0:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "any shape will do": Mutation(
        12, "flower/payload.py",
        'if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", dtype, shape):', "if False:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "any names will do": Mutation(
        12, "flower/payload.py", "if set(record) != set(found):", "if set(found) - set(record):",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "any length will do": Mutation(
        13, "flower/payload.py", "if len(array.data) != size:", "if False:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "a header is believed": Mutation(
        14, "flower/payload.py", "if not array.data.startswith(header):", "if False:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "a weight is believed": Mutation(
        15, "flower/nodes.py", 'if out["num-examples"] != weight:', "if False:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "a norm has no limit": Mutation(
        16, "flower/nodes.py", "if self.max_update_norm is not None and moved > self.max_update_norm:", "if False:",
        "tests/flower/test_faults.py::test_a_poisoned_update_is_refused_by_its_norm",
    ),
    "an old update counts": Mutation(
        16, "flower/nodes.py", 'if said.get("round") != asked.round:', "if False:",
        "tests/flower/test_faults.py::test_a_bad_update_is_refused_with_the_client_and_its_node_named",
    ),
    "a client may come twice": Mutation(
        16, "flower/nodes.py", "if len(nodes) > 1 or (here in listed and here not in nodes):", "if False:",
        "tests/flower/test_faults.py::test_two_nodes_that_are_the_same_client_are_both_refused",
    ),
    "clients add up in the order of the draw": Mutation(
        18, "rounds/exchange.py", "clients, layout = sorted(clients), state.adapter.layout",
        "clients, layout = list(clients), state.adapter.layout",
        "tests/rounds/test_exchange.py::test_the_order_in_which_clients_are_drawn_does_not_matter "
        "tests/session/test_determinism.py::test_the_order_in_which_clients_are_drawn_changes_no_bit",
    ),
    "the last of two equal keys counts": Mutation(
        19, "config/files.py", "        if name in first:", "        if False:",
        "tests/config/test_config_files.py::test_a_file_that_cannot_be_used_names_the_place",
    ),
    "any depth is read": Mutation(
        19, "config/files.py", "        if self.depth == DEEPEST:", "        if False:",
        "tests/config/test_config_files.py::test_a_file_that_cannot_be_used_names_the_place",
    ),
    "a fork may name any file": Mutation(
        20, "runs/read.py", "folder / Path(records).name", "folder / records",
        "tests/runs/test_read.py::test_a_forks_file_is_looked_for_in_the_run_folder_alone",
    ),
    "a page shows markup": Mutation(
        22, "report/page.py", "autoescape=html,", "autoescape=False,",
        "tests/report/test_render.py::test_names_are_escaped",
    ),
    "a card shows markup": Mutation(
        22, "session/card.py", "        text=write_inline,", "        text=str,",
        "tests/session/test_card_words.py::test_a_name_of_several_lines_stays_on_one_and_shows_as_it_is",
    ),
    "half a character is text": Mutation(
        23, "reading/files.py", r"""if "\\u" in text and not _has_whole_characters(found):""", "if False:",
        "tests/test_fuzz.py tests/reading/test_files.py",
    ),
    "gradients that are all zero are learned from": Mutation(
        24, "rounds/integrity.py",
        "if bool(done.loss[worked].any()) and not bool(done.grad_norm[worked].any()):", "if False:",
        "tests/rounds/test_integrity.py::test_clients_whose_gradients_are_all_zero_learn_nothing",
    ),
    "the Hub is asked in any case": Mutation(
        25, "reading/hub.py", "    if constants.HF_HUB_OFFLINE:\n        return False\n", "",
        "tests/reading/test_hub.py::test_offline_mode_asks_nobody",
    ),
    "a tracker stops the run": Mutation(
        29, "session/trackers.py", "        except (Exception, SystemExit) as e:", "        except ZeroDivisionError as e:",
        "tests/session/test_trackers.py::test_a_tracker_that_fails_is_switched_off_with_one_line_and_the_others_go_on",
    ),
    "a tracker is waited for": Mutation(
        29, "session/trackers.py", "    if not answer.done():", "    thread.join(5)\n    if False:",
        "tests/session/test_trackers.py::test_a_tracker_that_does_not_answer_is_left_behind",
    ),
}  # fmt: skip


def run_tests(package: Path, tests: str) -> str:
    """Run some tests against a copy of the package; returns what pytest says of the first that fails, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # no tests found, or an error of pytest's own
        raise SystemExit(f"{' '.join(command)} could not be run:\n{done.stdout}{done.stderr}")
    return done.stdout if done.returncode else ""


def try_mutation(mutation: Mutation) -> bool:
    """Remove a guard in a copy of the package; returns whether a test noticed."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "src" / "fedfault"
        shutil.copytree(ROOT / "src" / "fedfault", package, ignore=shutil.ignore_patterns("__pycache__"))
        (package.parents[1] / "configs").symlink_to(ROOT / "configs")
        file = package / mutation.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutation.guard) != 1:
            raise SystemExit(f"src/fedfault/{mutation.file} has {mutation.guard!r} {text.count(mutation.guard)} times")
        file.write_text(text.replace(mutation.guard, mutation.without), encoding="utf-8")
        return bool(run_tests(package, mutation.tests))


def main() -> int:
    """Try the mutations that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="list the mutations and try none")
    args = parser.parse_args()
    chosen = {name: MUTATIONS[name] for name in args.names or MUTATIONS}
    if args.list:
        print("\n".join(f"{m.row:>3}  {name}" for name, m in chosen.items()))
        return 0
    tests = dict.fromkeys(test for m in chosen.values() for test in m.tests.split())
    if said := run_tests(ROOT / "src" / "fedfault", " ".join(tests)):
        raise SystemExit(f"a test fails as it is; mend that first:\n{said}")
    survived = []
    for name, mutation in chosen.items():
        clock = time.monotonic()
        noticed = try_mutation(mutation)
        survived += [] if noticed else [name]
        print(
            f"row {mutation.row:>2}  {'noticed' if noticed else 'SURVIVED':<8}  {name}  {time.monotonic() - clock:.0f} s"
        )
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} mutations noticed, in {len({m.row for m in chosen.values()})} rows"
    )
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
