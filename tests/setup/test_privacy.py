"""What a private run is refused for, and how one is built."""

from __future__ import annotations

import pytest

from fedfault.config.loading import load
from fedfault.errors import UserError
from fedfault.privacy.accounting import find_epsilon
from fedfault.registry import build
from fedfault.setup.combinations import check_parts
from fedfault.setup.privacy import check_gradients, draw_secret, hide
from fedfault.testing.toys import LowRank, federation

PRIVATE = ("federation.weighting=uniform", "privacy.unit=client", "privacy.epsilon=8", "privacy.delta=0.01")
EXAMPLES = ("federation.weighting=uniform", "privacy.unit=example", "privacy.epsilon=8", "privacy.delta=1e-4")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["privacy.epsilon=8"], "epsilon is set, but unit is not"),
        (["privacy.unit=client", "privacy.delta=0.01"], "give epsilon or noise_multiplier"),
        (["privacy.unit=client", "privacy.epsilon=1"], "needs delta"),
        ([*EXAMPLES, "privacy.adaptive_clip=0.5"], "adaptive_clip is of unit=client"),
        (["privacy.unit=client", "privacy.noise_multiplier=0.1", "privacy.delta=0.01"], "0.3"),
    ],
)
def test_a_section_that_does_not_say_what_it_means_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        load("quickstart", changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([*PRIVATE, "federation.weighting=tokens"], "use federation.weighting=uniform"),
        ([*PRIVATE, "privacy.delta=0.1"], "one of 10 clients to be published as it is; give less than 1/10"),
        ([*PRIVATE, "federation.algorithm=scaffold"], "the mean of the clients' control variates is sent as it is"),
        ([*PRIVATE, "federation.algorithm=ifca"], "which of the models a client moves is sent as it is"),
        ([*PRIVATE, "federation.algorithm=fednova"], "does not say that it stands this"),
        ([*PRIVATE, "federation.algorithm.unbiased=true"], "counts who was drawn"),
        ([*PRIVATE, "federation.aggregation=hetlora"], "use fedit, ffa_lora or rolora"),
        ([*PRIVATE, "federation.aggregation=flora"], "use fedit, ffa_lora or rolora"),
        ([*PRIVATE, "federation.aggregation=fedsa_lora"], "use fedit, ffa_lora or rolora"),
        ([*PRIVATE, "federation.aggregation=coordinate_median"], "use fedit, ffa_lora or rolora"),
        ([*PRIVATE, "federation.bad_updates=stop"], "use federation.bad_updates=drop"),
        ([*PRIVATE, "federation.on_failure=rollback"], "trains on the same data again"),
        ([*PRIVATE, "federation.selection=size"], "use federation.selection=uniform"),
        ([*PRIVATE, "federation.centralised=true"], "leave one of them out"),
        ([*PRIVATE, "detectors.calibration=auto"], "use packaged or none"),
        ([*PRIVATE, "deadline.seconds=60"], "who is late would tell"),
        ([*EXAMPLES, "training.local_steps=null"], "use training.local_steps"),
        ([*EXAMPLES, "federation.algorithm=moon"], "its contrast is about batches"),
        ([*EXAMPLES, "federation.algorithm=scaffold"], "control variates are gradients"),
    ],
)
def test_what_would_tell_more_than_is_accounted_for_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        check_parts(load("quickstart", changes).experiment)


@pytest.mark.parametrize("method", ["fedit", "ffa_lora", "rolora"])
@pytest.mark.parametrize("settings", [PRIVATE, EXAMPLES], ids=["clients", "examples"])
def test_what_needs_the_average_alone_is_allowed(settings, method):
    check_parts(load("quickstart", [*settings, f"federation.aggregation={method}"]).experiment)


def hide_low_rank(*changes: str, **more):
    exp = load("quickstart", changes).experiment
    return hide(federation(LowRank(), num_rounds=4, **more), exp)


@pytest.mark.slow
@pytest.mark.long
def test_noise_is_solved_for_all_rounds_together():
    fed = hide_low_rank("privacy.unit=client", "privacy.epsilon=5", "privacy.delta=0.01", cohort_size=3)
    assert fed.budget.times == (0, 1, 2, 3, 4)
    assert fed.budget.release[1:] == (3, 6, "poisson")
    assert 4.9 < fed.budget.spend(4) <= 5.0


@pytest.mark.long
def test_steps_are_counted_of_whoever_trains_most_at_the_rate_of_the_smallest_client():
    """Clients have 10, 13, ... examples; in some rounds 3 of 6 take two steps of 4 examples each."""
    fed = hide_low_rank(
        "privacy.unit=example", "privacy.noise_multiplier=1", "privacy.delta=0.001", cohort_size=3, work={"steps": 2}
    )
    taken = [sum(2 for t in range(1, 5) if k in fed.cohort(t)) for k in range(6)]
    assert fed.budget.times[-1] == max(taken)
    assert fed.budget.release == (1.0, 4, 10, "poisson")
    for k, times in enumerate(taken):
        own = fed.budget.release._replace(of=10 + 3 * k)
        assert find_epsilon(own, times, 0.001) <= fed.budget.spend(4)


def test_a_delta_that_gives_one_example_away_is_refused():
    with pytest.raises(UserError, match=r"one of 105 examples to be published as it is; give less than 1/105"):
        hide_low_rank("privacy.unit=example", "privacy.noise_multiplier=1", "privacy.delta=0.01")


@pytest.mark.long
def test_only_public_probes_are_left():
    probes = {name: build("probe", name) for name in ("updates", "gradients", "ranks", "aggregation", "representation")}
    fed = hide_low_rank("privacy.unit=client", "privacy.epsilon=5", "privacy.delta=0.01", probes=probes)
    assert set(fed.probes) == {"ranks"}


def test_every_run_has_a_secret_of_its_own_unless_it_is_given():
    exp = load("quickstart", PRIVATE).experiment
    one, other = draw_secret(exp), draw_secret(exp)
    assert one != other
    assert load("quickstart", [*PRIVATE, *one]).experiment.privacy.secret
    assert draw_secret(load("quickstart", [*PRIVATE, "privacy.secret=abc"]).experiment) == []
    assert draw_secret(load("quickstart").experiment) == []


def test_broken_gradients_are_refused_before_training():
    class Mixed(LowRank):
        def grad(self, params, step):
            loss, gradient, tokens = super().grad(params, step)
            return loss, gradient.mean(0, keepdim=True).expand_as(gradient), tokens

    fed = hide_low_rank("privacy.unit=example", "privacy.noise_multiplier=1", "privacy.delta=0.001")
    check_gradients(fed)
    with pytest.raises(UserError, match=r"privacy is refused: gradients of single examples are wrong"):
        check_gradients(fed, Mixed())
