"""What `fedfault list` prints; the rest of the preview is tested where it is printed, in tests/cli."""

import re

import pytest

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.registry import FOLDERS, load_builders
from fedfault.setup.preview import describe_components, preview

NAMES = [(kind, name) for kind in FOLDERS for name in load_builders(kind)]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=map(" ".join, NAMES))
def test_every_component_is_shown_as_people_write_it(kind, name):
    text = describe_components(name)
    assert f"{kind} {name}\n" in text
    for source in ("Annotated", "Field(", "Literal", "Optional", " | ", "None", "True", "False", "<class"):
        assert source not in text.rpartition("\noptions")[2]


def test_options_stand_below_the_section_that_takes_them():
    _, _, options = describe_components("fixed").partition("options in federation.scheduler:\n")
    assert options.splitlines() == [
        "  rank: int >= 1, or null = null",
        "      the rank of all clients",
        "  ranks: list of int >= 1, or null = null",
        "      the rank of clients 0, 1, ...",
    ]


def test_a_word_that_is_a_kind_and_a_component_shows_both():
    text = describe_components("aggregation")
    assert text.startswith("aggregation:\n")
    assert "\n\nprobe aggregation\n" in text


def test_a_word_that_is_neither_gets_a_suggestion():
    with pytest.raises(UserError, match="no kind or component called 'fedproxx'; did you mean 'fedprox'"):
        describe_components("fedproxx")


def test_a_calibration_that_is_not_there_is_refused_as_in_a_run():
    with pytest.raises(
        UserError, match=r"detectors.calibration=atuo: No such file or directory; give packaged, auto, none"
    ):
        preview(load("quickstart", ["detectors.calibration=atuo"]))


@pytest.mark.long
def test_documents_are_counted_after_max_samples():
    first, *_ = preview(load("quickstart", ["data.max_samples=50"])).splitlines()
    assert "registers: 50 (data.max_samples, of 785) training and 87 validation documents" in first
    first, *_ = preview(load("quickstart", [])).splitlines()
    assert "registers: 785 training and 87 validation documents" in first


@pytest.mark.long
def test_work_is_counted_in_rows_of_a_round_and_of_the_run():
    """Three clients a round take 15 steps of 8 blocks, in 12 rounds; of epochs the mean client's texts count."""
    assert "trains on about 360 blocks a round, 4,320 in all" in preview(load("quickstart", []))
    whole = ["data.task_type=classification", "training.local_steps=null", "training.local_epochs=2"]
    text = preview(load("quickstart", [*whole, "federation.participation_rate=1.0", "federation.num_rounds=3"]))
    held = sum(int(line.split()[2].replace(",", "")) for line in text.splitlines() if re.match(r" +\d+ +\d", line))
    assert f"trains on about {2 * held:,} examples a round, {6 * held:,} in all" in text
