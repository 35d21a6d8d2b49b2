"""What every registered partition promises beyond the rules of `fedfault.testing`, or on more cases than those."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.registry import build, load_builders
from fedfault.seeds import rng
from fedfault.testing.decks import documents
from fedfault.types.corpus import Document
from fuzzed import fuzzed, options

pytestmark = pytest.mark.parametrize("name", load_builders("partition"))
MILDEST = {"label_skew": {"labels_per_client": 1}}  # options that one topic is enough for


def test_one_document_for_every_client_is_enough_if_topics_allow_it(name):
    made = build("partition", name, **MILDEST.get(name, {}))(documents([0]), 1, rng(0, "partition"))
    assert [len(own) for own in made.clients] == [1]


@fuzzed()
@given(
    data=st.data(),
    num_clients=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=9),
    texts=st.lists(st.text(max_size=40).filter(str.strip), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_any_documents_are_dealt_or_refused_with_a_reason(name, data, num_clients, sizes, texts, seed):
    """With some options, allowed or not."""
    builder = load_builders("partition")[name]
    try:
        partition = build("partition", name, **data.draw(options(builder)))
    except UserError:
        return
    topics = [f"t{k}" for k, size in enumerate(sizes) for _ in range(size)]
    given = [Document(texts[i % len(texts)], t, f"g{i % 5}") for i, t in enumerate(topics)]
    try:
        made = partition(given, num_clients, np.random.default_rng(seed))
    except UserError as refusal:
        assert len(str(refusal)) > 40  # noqa: PT017
        return
    assert sorted(np.concatenate(made.clients).tolist()) == list(range(len(topics)))
    assert min(map(len, made.clients)) >= 1
