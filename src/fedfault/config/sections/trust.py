"""`privacy` and `attacks`: what is hidden, and who is hostile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfault.config.sections.base import Component, Count, Fraction, Positive, Section


class Privacy(Section):
    """Differential privacy of clients or of their examples, by noise; off without a unit. docs/privacy.md."""

    unit: Literal["client", "example"] | None = Field(
        default=None,
        description="what the models are to hide: whole clients, or single examples of them; null: nothing",
    )
    epsilon: Positive | None = Field(default=None, description="of all rounds together; the noise is solved for")
    noise_multiplier: Annotated[float, Field(ge=0.3, le=1000)] | None = Field(
        default=None, description="standard deviation of the noise over clip, in the place of epsilon"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="probability with which epsilon may not hold; below one over the number of units"
    )
    clip: Positive = Field(
        default=1.0, description="largest norm of what one unit contributes: a client's change, an example's gradient"
    )
    adaptive_clip: Fraction | None = Field(
        default=None, description="share of the clients whose changes should be within the clip, which follows it"
    )
    sampling: Literal["poisson", "fixed"] = Field(
        default="poisson",
        description="of clients for a round, or of examples for a step: each by itself, or always as many",
    )
    canaries: Annotated[int, Field(ge=0)] = Field(
        default=200, description="made-up clients, by which epsilon is bounded from below; 0: no audit"
    )
    secret: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="what the noise follows from; by default of the operating system, and kept in the manifest alone",
    )

    @model_validator(mode="after")
    def _about_a_unit(self) -> Privacy:
        given = self.model_fields_set - {"unit", "secret"}
        if self.unit is None:
            if wrong := sorted(name for name in given if getattr(self, name) != type(self).model_fields[name].default):
                raise ValueError(f"{wrong[0]} is set, but unit is not: give unit=client or unit=example")
            return self
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, one of them")
        if self.delta is None:
            raise ValueError("needs delta, below one over the number of clients or examples that are to be hidden")
        if self.unit == "example" and self.adaptive_clip is not None:
            raise ValueError("adaptive_clip is of unit=client; leave it out")
        return self


class AttackSettings(Component):
    """What hostile clients do, one after another: `attacks: [{name: sign_flip, by: 2}]`; none by default."""

    by: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        default=1, description="how many clients, drawn by the seed, the same ones for every attack; or their ids"
    )
    from_round: Count = Field(default=1, description="first round in which they attack")
