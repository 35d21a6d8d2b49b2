"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]

Positive = Annotated[float, Field(gt=0)]

SINGLE = 3.4e38  # about the largest number in single precision, in which clients compute


def _check_single(value: float) -> float:
    if value > SINGLE:
        raise ValueError(f"{value:g} is too large for single precision, whose largest number is {SINGLE:g}")
    return value


Single = AfterValidator(_check_single)  # of what is multiplied with the numbers of a model as it is

Fraction = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Frozen; strict about types (an int may stand for a float); refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Named(BaseModel):
    """What may be given by its name alone, where everything else has its default."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Component(Named):
    """A registered component by name; its other keys are the keyword-only options of its builder."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str = Field(description="name of the component; its options stand beside it")

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})
