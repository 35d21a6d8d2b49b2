"""Documents of a single topic cannot differ in topics: who asks for that is told, instead of getting IID clients."""

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.seeds import rng
from fedfault.types.corpus import Document

ALIKE = [Document(f"Text number {i}.", "text") for i in range(40)]
BY_TOPIC = [("topic_skew", {}), ("topic_isolation", {}), ("label_skew", {"labels_per_client": 1})]
BY_TOPIC += [("topic_skew", {"convention": "balanced"}), ("style_skew", {"criterion": "source"})]


@pytest.mark.parametrize(("name", "options"), BY_TOPIC)
def test_a_partition_by_topics_refuses_documents_of_one_topic(name, options):
    with pytest.raises(UserError, match=f"{name}.*all 40 documents have the same topic, 'text'") as told:
        build("partition", name, **options)(ALIKE, 4, rng(0, "partition"))
    assert "what works: data.topic_column=COLUMN" in str(told.value)
    assert "text files in a sub-folder for each topic" in str(told.value)
    assert "quantity_skew" in str(told.value)


@pytest.mark.parametrize(("name", "options"), BY_TOPIC)
def test_a_lone_client_has_nobody_to_differ_from(name, options):
    (whole,) = build("partition", name, **options)(ALIKE, 1, rng(0, "partition")).clients
    assert np.array_equal(whole, np.arange(40))


def test_sources_are_groups_where_there_are_some():
    grouped = [d._replace(group=f"site {i % 2}") for i, d in enumerate(ALIKE)]
    deal = build("partition", "style_skew", criterion="source")(grouped, 2, rng(0, "partition"))
    assert sorted(map(len, deal.clients)) == [20, 20]


@pytest.mark.parametrize("name", ["iid", "quantity_skew", "style_skew", "token_skew"])
def test_the_partitions_that_the_refusal_names_need_no_topics(name):
    assert len(build("partition", name)(ALIKE, 4, rng(0, "partition")).clients) == 4
