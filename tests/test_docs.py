"""The code in the docs runs."""

import re
from pathlib import Path

import pytest

from fedfault import registry
from fedfault.config.loading import load
from fedfault.registry import build, builders, read_declarations
from fedfault.setup import equipment
from fedfault.types.algorithm import Algorithm

ADDING = Path(__file__).parents[1] / "docs" / "adding.md"


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_an_algorithm_runs_with_its_test():
    builders("algorithm")  # those of the folder first
    algorithm, test, _ = blocks(ADDING)
    code = [line for line in algorithm.splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
    assert len(code) < 20
    try:
        exec(compile(algorithm, "docs/adding.md", "exec"), {})
        assert isinstance(build("algorithm", "halfway", step=0.3), Algorithm)
        names: dict = {}
        exec(compile(test, "docs/adding.md", "exec"), names)
        tests = [run for name, run in names.items() if name.startswith("test_")]
        assert len(tests) == 3
        for run in tests:
            run()
    finally:
        registry._BUILDERS["algorithm"].pop("halfway", None)


def test_the_example_of_an_aggregation_is_a_newcomer_that_the_contracts_run():
    _, _, aggregation = blocks(ADDING)
    file = Path(__file__).parent / "newcomers" / "coordinate_median.py"
    assert aggregation.splitlines()[1:] == file.read_text(encoding="utf-8").splitlines()[2:]


def test_the_configurations_in_the_page_about_deployment_are_valid(tmp_path):
    pages = re.findall(r"```yaml\n(.*?)```", ADDING.with_name("deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    for i, text in enumerate(pages):
        (tmp_path / f"{i}.yaml").write_text(text)
        equipment.check_equipment(load(tmp_path / f"{i}.yaml").experiment)
    assert pages


PAGES = [ADDING, ADDING.with_name("deploy.md")]
LINKS = [
    (page, link) for page in PAGES for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS or [(ADDING, "configuration.md")], ids=str)
def test_links_lead_somewhere(page, link):
    assert (page.parent / link).exists()


MEASURED = ADDING.with_name("metrics.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", builders("probe"))
def test_the_page_about_metrics_has_a_row_for_every_probe(name):
    off = "" if read_declarations("probe")[name].facts.get("on", True) else " (off)"
    start = f"| `{name}`{off} |"
    assert any(line.startswith(start) for line in MEASURED), f"docs/metrics.md lacks a row {start} with its numbers"


@pytest.mark.parametrize("name", builders("detector"))
def test_the_page_about_metrics_says_what_every_detector_reads_and_what_a_run_does_at_its_alarm(name):
    detector = build("detector", name)
    remedies = ", else ".join(f"`{remedy}`" for remedy in detector.remedies) or "–"
    row = f"| `{name}` | {remedies} | {'yes' if detector.wants_clusters else '–'} |"
    assert row in MEASURED, f"docs/metrics.md lacks the row {row}"
    assert sum(line.startswith(f"| `{name}` |") for line in MEASURED) >= 2, "docs/metrics.md lacks its statistic"


def test_the_page_about_metrics_says_which_detectors_controls_do_not_calibrate():
    theirs = [f"`{name}`" for name in builders("detector") if not build("detector", name).calibrated]
    assert f"(all but {' and '.join(theirs)})" in "\n".join(MEASURED)
