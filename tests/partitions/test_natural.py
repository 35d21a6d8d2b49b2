import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.partitions.natural import natural
from fedfault.types.corpus import Document


def of_groups(**sizes):
    return [Document(f"text {i}", "t", group) for group, n in sizes.items() for i in range(n)]


def groups(given, deal):
    return [sorted({given[i].group for i in own}) for own in deal.clients]


def test_as_many_clients_as_groups_have_one_each():
    given = of_groups(anna=5, ben=3, cleo=9)
    deal = natural()(given, 3, np.random.default_rng(0))
    assert sorted(groups(given, deal)) == [["anna"], ["ben"], ["cleo"]]
    assert [[name] for name in deal.names] == groups(given, deal)


def test_fewer_clients_join_groups_to_even_sizes():
    """Largest first to the emptiest: 9 | 7, 6 to the 7, 4 to the 9, which makes 13 and 13."""
    given = of_groups(a=9, b=7, c=6, d=4)
    deal = natural()(given, 2, np.random.default_rng(0))
    assert sorted(groups(given, deal)) == [["a", "d"], ["b", "c"]]
    assert deal.notes == ("4 groups at 2 clients, each of them whole",)
    assert [name.split(", ") for name in deal.names] == groups(given, deal)


def test_more_clients_than_groups_is_explained():
    with pytest.raises(UserError, match=r"2 group\(s\) \(a, b\) for 3 clients.*total_clients=2 or less"):
        natural()(of_groups(a=9, b=7), 3, np.random.default_rng(0))


def test_documents_without_groups_are_explained():
    with pytest.raises(UserError, match=r"no groups; name a column.*data\.group_column"):
        natural()([Document("x", "t"), Document("y", "t")], 2, np.random.default_rng(0))


def test_documents_of_which_some_have_no_group_are_counted_and_the_first_is_named():
    given = [*of_groups(anna=5, ben=3), Document("Nobody wrote this.", "t"), Document("Nor that.", "t")]
    with pytest.raises(UserError, match=r"2 of 10 documents have no group, the first is 'Nobody wrote.*group_column"):
        natural()(given, 2, np.random.default_rng(0))


def test_a_group_that_is_too_small_is_explained():
    with pytest.raises(UserError, match=r"smallest of 2 clients has 2 documents, not 5.*min_samples of at most 2"):
        natural(min_samples=5)(of_groups(a=9, b=2), 2, np.random.default_rng(0))


def test_which_client_gets_which_group_depends_on_the_seed():
    given = of_groups(a=1, b=2, c=3)
    firsts = {groups(given, natural()(given, 3, np.random.default_rng(s)))[0][0] for s in range(30)}
    assert firsts == {"a", "b", "c"}
