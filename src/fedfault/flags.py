"""The flags of `train.py` and `run_experiments.py`, the scripts at the root: each is a setting by another name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fedfault.errors import UserError

SHARED = {  # what both scripts take
    "--model": ("model.name", "micro (packaged), a Hub id, or a folder"),
    "--dataset": ("data.dataset", "the corpus, see `fedfault list corpus`"),
    "--num-clients": ("federation.total_clients", "clients in the federation"),
    "--seed": ("seed", "every random choice follows from it; of a study, its first seed"),
    "--device": ("device", "auto, cpu, cuda, mps"),
}
TRAIN = {
    "--algorithm": ("federation.algorithm", "fedavg, fedprox, scaffold, ...; see `fedfault list algorithm`"),
    "--partition": ("data.partition", "iid, topic_skew, style_skew, token_skew, ...; see `fedfault list partition`"),
    "--alpha": ("data.alpha", "Dirichlet concentration of topic_skew: lower is more skewed"),
    "--num-rounds": ("federation.num_rounds", "rounds of the run"),
    "--mu": ("federated.mu", "strength of FedProx"),
}


def make_parser(about: str, flags: dict[str, tuple[str, str]]) -> argparse.ArgumentParser:
    """Make a parser of these flags, and of `key=value` settings in any place."""
    made = argparse.ArgumentParser(description=about, allow_abbrev=False)
    for flag, (key, help_) in flags.items():
        made.add_argument(flag, metavar="VALUE", help=f"{help_} ({key})")
    made.add_argument("--results-dir", metavar="DIR", help="results go to a folder in it")
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="any setting, as for `fedfault run`")
    return made


def parse_words(made: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the words of a command. Raises `UserError`, which says what was meant, for a flag that it does not have."""
    given, rest = made.parse_known_intermixed_args(words)
    if not rest:
        return given
    from fedfault.config.explain import explain_flag

    known = [flag for action in made._actions for flag in action.option_strings]
    raise UserError(explain_flag(rest[0].partition("=")[0], known))


def collect_settings(given: argparse.Namespace, flags: dict[str, tuple[str, str]]) -> list[str]:
    """List the given flags as `key=value` settings, then the settings that were written out, which win."""
    values = {key: getattr(given, flag[2:].replace("-", "_")) for flag, (key, _) in flags.items()}
    return [*(f"{key}={value}" for key, value in values.items() if value is not None), *given.settings]


def train(words: Sequence[str] | None = None) -> None:
    """Make one run: the command line of `train.py`."""
    flags = {**TRAIN, **SHARED}
    made = make_parser("Train one federation; without --config micro on registers, as configs/train.yaml says.", flags)
    made.add_argument("--config", metavar="FILE", help="a YAML file, for example configs/default.yaml")
    given = parse_words(made, words)
    texts = collect_settings(given, flags)
    if given.results_dir is not None:
        texts.append(f"logging.results_dir={given.results_dir}")
    from fedfault.cli.training import run_once
    from fedfault.config.layers import parse_command_line
    from fedfault.config.loading import choose_start

    run_once(given.config or choose_start(parse_command_line(texts), "train"), texts)


def run_experiments(words: Sequence[str] | None = None) -> int:
    """Run one of the shipped studies, or write the reports of all that have been run: that of `run_experiments.py`."""
    from fedfault.cli.words import JOBS
    from fedfault.config.shipped import list_studies
    from fedfault.processes import check_command
    from fedfault.studies import doors

    check_command("study")
    made = make_parser("Run a study of many runs; go on where it was stopped; write its report.", SHARED)
    made.add_argument(
        "--mode", choices=[*list_studies(), "analyze"], default="quick", help="the study, or reports of all"
    )
    made.add_argument("--jobs", default="1", metavar="N|auto", help=JOBS)
    given = parse_words(made, words)
    if given.mode == "analyze":
        doors.write_reports(given.results_dir or "results")
        return 0
    jobs = doors.parse_jobs(given.jobs)
    return doors.run_study(given.mode, collect_settings(given, SHARED), results_dir=given.results_dir, jobs=jobs)
