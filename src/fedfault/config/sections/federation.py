"""`federation`: clients, rounds, algorithm, aggregation and who takes part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfault.config.sections.base import Component, Count, Fraction, Named, Positive, Section


class Asynchronous(Section, Named):
    """A server that takes updates in as they come, on the simulated clock; null: rounds wait for their cohort."""

    name: Literal["fedbuff", "fedasync"] = Field(
        description="fedbuff: adds the mean change of a buffer of updates (arXiv 2106.06639); fedasync: mixes each model in "
        "(arXiv 1903.03934)"
    )
    buffer: Count | None = Field(
        default=None,
        description="updates that make a round; by default half of the clients at work for fedbuff, and 1 for fedasync",
    )
    rate: Fraction | None = Field(
        default=None, description="of the server: by default 1 for fedbuff, and 0.6 for fedasync, which mixes by it"
    )
    staleness: Literal["constant", "polynomial", "hinge"] = Field(
        default="polynomial",
        description="what an update counts whose model was s rounds old: 1, (1 + s)^-exponent, or 1 up to s = grace and "
        "then 1 / (slope (s - grace) + 1)",
    )
    exponent: Positive = Field(default=0.5, description="of polynomial")
    slope: Positive = Field(default=10.0, description="of hinge")
    grace: Annotated[int, Field(ge=0)] = Field(default=4, description="of hinge, in rounds")

    @model_validator(mode="after")
    def _fitting(self) -> Asynchronous:
        if self.name == "fedasync" and self.buffer not in (None, 1):
            raise ValueError(
                f"buffer={self.buffer} is fedbuff's: fedasync takes every update in by itself; leave it out"
            )
        unused = {"polynomial": ("slope", "grace"), "hinge": ("exponent",), "constant": ("exponent", "slope", "grace")}
        if given := [key for key in unused[self.staleness] if key in self.model_fields_set]:
            fields = type(self).model_fields
            if wrong := [key for key in given if getattr(self, key) != fields[key].default]:
                raise ValueError(f"{wrong[0]} is not used with staleness={self.staleness}; leave it out")
        return self

    def count_updates(self, at_work: int) -> int:
        """Updates that make a round when so many clients are at work at once."""
        return 1 if self.name == "fedasync" else self.buffer or max(1, at_work // 2)


class Federation(Section):
    """Who trains when, and what the server does."""

    total_clients: Count = Field(default=10, description="clients in the federation")
    clients_per_round: Count | None = Field(
        default=None, description="clients drawn in a round; with asynchronous those that are at work at once"
    )
    participation_rate: Fraction | None = Field(
        default=None, description="the same as a share; by default all take part"
    )
    num_rounds: Count = Field(default=12, description="rounds of the run")
    centralised: bool = Field(
        default=False,
        description="all training data in one place: one client has them, and as many steps as the clients of a round would",
    )
    asynchronous: Asynchronous | None = Field(
        default=None, description="by name: how updates are taken in as they come; null: rounds wait for their cohort"
    )
    algorithm: Component = Field(
        default=Component(name="fedavg"), description="by name; its options stand beside the name"
    )
    aggregation: Component = Field(default=Component(name="fedit"), description="how LoRA adapters become one")
    scheduler: Component = Field(default=Component(name="fixed"), description="which rank each client trains with")
    weighting: Literal["tokens", "samples", "uniform"] = Field(default="tokens", description="of clients in the mean")
    selection: Component = Field(
        default=Component(name="uniform"),
        description="who takes part: uniform, where the mean over rounds counts large clients for less than their weight; "
        "size, with the mean corrected for it, which is unbiased; or by what clients report, which is biased",
    )
    bad_updates: Literal["drop", "stop"] = Field(
        default="drop", description="what becomes of a client whose update is not finite, and of the run"
    )
    on_failure: Literal["continue", "stop", "rollback", "cluster"] = Field(
        default="continue",
        description="at an alarm: go on, stop, go back to the best round with a remedy, or, at one of drift or fairness, "
        "with a model for each cluster of clients",
    )

    @model_validator(mode="after")
    def _one_participation(self) -> Federation:
        if self.clients_per_round is not None and self.participation_rate is not None:
            raise ValueError("give clients_per_round or participation_rate, not both")
        if self.clients_per_round is not None and self.clients_per_round > self.total_clients:
            raise ValueError(
                f"clients_per_round {self.clients_per_round} is more than total_clients {self.total_clients}"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """Clients that train in a round: at least one."""
        if self.clients_per_round is not None:
            return self.clients_per_round
        return max(1, round((self.participation_rate or 1.0) * self.total_clients))

    @property
    def updates_per_round(self) -> int:
        """Updates that the server takes in in a round, if all arrive."""
        return self.cohort_size if self.asynchronous is None else self.asynchronous.count_updates(self.cohort_size)
