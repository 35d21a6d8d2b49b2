"""`model`: the backbone, and what of it is trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedfault.config.changes import spell_value
from fedfault.config.sections.base import Count, Positive, Section, Single


class Lora(Section):
    """LoRA: W + s B A on the target modules, where s is alpha / r_max (Hu et al., arXiv 2106.09685)."""

    r_max: Count = Field(default=8, description="rank of the factors")
    r_min: Count = Field(default=1, description="smallest rank that a scheduler may assign")
    alpha: Annotated[Positive, Single] = Field(default=16.0, description="scale of the update, see scaling")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="on the input of the adapters, in training"
    )
    target_modules: list[str] | str | None = Field(
        default=None,
        description="names or their ends in a list, all-linear, or a regular expression of whole names; by default queries "
        "and values, or what PEFT has for the architecture",
    )
    scaling: Literal["alpha/r", "alpha/sqrt(r)"] = Field(
        default="alpha/r", description="of the update, where r is r_max; alpha/sqrt(r) is rsLoRA (arXiv 2312.03732)"
    )
    init: Literal["uniform", "gaussian", "pissa", "olora"] = Field(
        default="uniform",
        description="where factors start: A at random and B zero, or the largest components of W (PiSSA, arXiv 2404.02948) "
        "or the first of its QR (OLoRA, arXiv 2406.01775), of which the rest is then frozen in its place",
    )
    rank_pattern: dict[str, Count] = Field(
        default={}, description="ranks of some modules, {name or end or regular expression: rank}; r_max for the others"
    )
    alpha_pattern: dict[str, Annotated[Positive, Single]] = Field(default={}, description="alpha of some modules alike")

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and re.fullmatch(r"[\w.]+", value) else value  # no pattern: a name

    @model_validator(mode="after")
    def _ordered(self) -> Lora:
        if self.r_min > self.r_max:
            raise ValueError(f"r_min {self.r_min} is above r_max {self.r_max}; ranks need 1 <= r_min <= r_max")
        return self


class Partial(Section):
    """What `trainable: partial` trains in full, a copy per client."""

    last_blocks: Annotated[int, Field(ge=0)] = Field(default=1, description="how many transformer blocks, from the top")
    modules: list[str] = Field(
        default=[], description="further modules by name or name ending, e.g. model.norm, lm_head"
    )


class Model(Section):
    """The backbone and what of it is trained."""

    name: str = Field(
        default="micro", description="micro (packaged), a Hub id (ORG/NAME or ORG/NAME@REVISION), or a folder"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="of the linear layers of the frozen backbone, by bitsandbytes"
    )
    trainable: Literal["lora", "partial"] = Field(default="lora", description="adapters, or some layers in full")
    lora: Lora = Lora()
    partial: Partial = Partial()
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=64, description="tokens in a block; of a conversation 512 by default"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the frozen backbone; auto: what this machine multiplies faster"
    )
    chat_template: str = Field(
        default="auto",
        description="of instruction data: auto (the tokenizer's own, else alpaca), alpaca, chatml, plain, or a Jinja file",
    )

    @model_validator(mode="after")
    def _started(self) -> Model:
        if self.lora.init in ("pissa", "olora") and self.quantization != "none":
            raise ValueError(
                f"lora.init={self.lora.init} leaves the rest of every weight to the base, which quantization="
                f"{self.quantization} would round anew; use quantization=none or init=uniform"
            )
        return self

    @model_validator(mode="after")
    def _in_use(self) -> Model:
        other: Literal["lora", "partial"] = "partial" if self.trainable == "lora" else "lora"
        section = getattr(self, other)
        for name, field in type(section).model_fields.items():
            if (value := getattr(section, name)) != field.default:
                raise ValueError(
                    f"{other}.{name}={spell_value(value)} is not used with trainable={self.trainable}; leave it out (its "
                    f"default is {spell_value(field.default)}), or set trainable={other}"
                )
        return self
