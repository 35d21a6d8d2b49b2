"""How a contract is checked: every broken rule is told, whatever was raised, and nothing of a test suite is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedfault.errors import UserError
from fedfault.partitions.iid import iid
from fedfault.testing import check, get_rules
from fedfault.testing.rules import RuleBroken, Subject


def test_every_broken_rule_is_told_with_its_sentence_and_what_was_done_instead():
    def lost():
        """A partition that has forgotten to return one."""
        raise ZeroDivisionError("nobody is there")

    with pytest.raises(RuleBroken) as e:
        check("partition", lost)
    told = str(e.value)
    assert told.startswith(f"{len(get_rules('partition')) - 1} of {len(get_rules('partition'))} rules")
    assert (
        "lost breaks the rule 'min_samples_is_honoured': The option `min_samples` is the least that any client gets."
        in told
    )
    assert "ZeroDivisionError: nobody is there" in told


def test_options_are_checked_as_a_configuration_would():
    with pytest.raises(RuleBroken, match="partition 'iid' has no option 'least'"):
        check("partition", iid, least=3)


def test_a_component_has_the_name_that_it_is_registered_under():
    from fedfault.corpora.glue import sst2

    assert Subject("corpus", sst2).name == "glue/sst2"
    assert Subject("corpus", lambda: None).name == "<lambda>"


def test_an_unknown_kind_is_told():
    with pytest.raises(UserError, match=r"no kind 'partitioner' of component.*known: algorithm, aggregation"):
        get_rules("partitioner")


@pytest.mark.long
def test_no_test_suite_is_needed():
    code = (
        "import sys; from fedfault.testing import MODULES, get_rules; [get_rules(kind) for kind in MODULES];"
        "assert not {'pytest', 'hypothesis', 'toys', 'tiny'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
