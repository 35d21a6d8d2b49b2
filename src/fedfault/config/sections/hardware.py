"""`tiers`, `deadline` and `clock`: simulated hardware."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedfault.config.sections.base import Positive, Section


class Tier(Section):
    """Hardware profiles, as a list or by name: clients 0, 1, ... have the first until its count is used up, then the next.

    As a mapping from names to the rest, other files and the command line can change them key by key.
    """

    name: str = Field(description="of the tier")
    count: Annotated[int, Field(ge=0)] = Field(description="clients that have it; all tiers add up to total_clients")
    compute_factor: Positive = Field(default=1.0, description="speed; with 0.5 training takes twice as long")
    memory_mb: Positive | None = Field(
        default=None, description="limits the rank of its clients; by default there is no limit"
    )
    bandwidth_up_mbps: Positive | None = Field(
        default=None, description="megabits a second to the server; by default uploads take no time"
    )
    bandwidth_down_mbps: Positive | None = Field(
        default=None, description="from the server; by default downloads take no time"
    )
    quantization: Literal["none", "8bit", "4bit"] | None = Field(
        default=None, description="of the backbone that its clients train on; by default model.quantization"
    )


class Deadline(Section):
    """When a round's updates are due, in simulated seconds, and what becomes of clients that are late."""

    enabled: bool = Field(default=True, description="false switches it off, whatever else it says")
    seconds: Positive | None = Field(
        default=None, description="after the start of a round, communication included; null: none"
    )
    straggler_policy: Literal["drop", "wait", "use_partial"] = Field(
        default="drop",
        description="drop: nothing of a late client counts; wait: for all; use_partial: it stops in time to send the steps "
        "that it has done",
    )

    @property
    def limit(self) -> float | None:
        """Seconds, or None for no deadline."""
        return self.seconds if self.enabled else None


class Clock(Section):
    """Where the simulated seconds of training come from. `clock: measured` is short for `clock: {mode: measured}`."""

    mode: Literal["modelled", "measured"] = Field(
        default="modelled",
        description="modelled: floating-point operations over `flops`, the same in every run; measured: what a token took "
        "in the last round here",
    )
    flops: Positive = Field(
        default=1e11, description="operations a second at compute_factor 1 when modelled: about two cores of a laptop"
    )
    trace: str | None = Field(
        default=None,
        description="CSV file of round, client, available, bandwidth: who comes and goes, and how fast; or diurnal: made-up "
        "days and nights, most clients being there at midnight, when the run begins",
    )
    day: Positive = Field(default=86400.0, description="simulated seconds of a day of the trace diurnal")
