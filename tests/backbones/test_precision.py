"""What `model.precision` becomes on this machine, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones import precision
from fedfault.backbones.load import load_backbone
from fedfault.backbones.precision import BIG, Rates, choose_precision, measure_rates

CPU, FAST, SLOW = torch.device("cpu"), Rates(fp32=40.0, bf16=90.0), Rates(fp32=56.0, bf16=1.0)


@pytest.fixture
def machine(monkeypatch):
    def be(rates: Rates) -> None:
        monkeypatch.setattr(precision, "measure_rates", lambda: rates)

    return be


def test_auto_is_what_the_machine_multiplies_faster_and_says_so(machine):
    said: list[str] = []
    machine(FAST)
    assert choose_precision("auto", BIG, CPU, said.append) == "bf16"
    machine(SLOW)
    assert choose_precision("auto", BIG, CPU, said.append) == "fp32"
    assert said == [
        "this CPU multiplies float32 at 40 GFLOP/s and bfloat16 at 90: model.precision=auto is bf16",
        "this CPU multiplies float32 at 56 GFLOP/s and bfloat16 at 1: model.precision=auto is fp32",
    ]


def test_a_wanted_bf16_that_is_slower_is_taken_and_told(machine):
    said: list[str] = []
    machine(FAST)
    assert choose_precision("bf16", 10, CPU, said.append) == "bf16"
    assert not said
    machine(SLOW)
    assert choose_precision("bf16", 10, CPU, said.append) == "bf16"
    assert said == [
        "model.precision=bf16 is slow here: this CPU multiplies float32 at 56 GFLOP/s and bfloat16 at 1 (56.0 times "
        "slower); auto would be fp32"
    ]


def test_a_small_model_and_a_wanted_fp32_need_no_measurement(monkeypatch):
    monkeypatch.setattr(precision, "measure_rates", None)
    assert choose_precision("auto", BIG - 1, CPU, print) == "fp32"
    assert choose_precision("fp32", BIG, CPU, print) == "fp32"
    assert choose_precision("auto", BIG, torch.device("mps"), print) == "fp32"


@pytest.mark.parametrize("itself", [True, False])
def test_a_gpu_that_emulates_bfloat16_has_not_got_it(monkeypatch, itself):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or itself)
    assert choose_precision("auto", 10, torch.device("cuda"), print) == ("bf16" if itself else "fp32")


def test_a_machine_is_measured_once_and_a_hopeless_type_only_shortly(monkeypatch):
    measure_rates.cache_clear()
    asked = []

    def seconds(m):
        if len(m) == precision.SIDE:
            asked.append(m.dtype)
        return 1.0 if m.dtype == torch.float32 else 50.0

    monkeypatch.setattr(precision, "_time_product", seconds)
    assert measure_rates() == measure_rates() == pytest.approx(Rates(2 * 1024**3 / 1e9, 2 * 1024**3 / 50e9))
    assert asked == [torch.float32, torch.bfloat16]
    measure_rates.cache_clear()


def test_a_real_machine_multiplies():
    assert min(measure_rates()) > 0


def test_loading_says_it(machine):
    said: list[str] = []
    machine(SLOW)
    assert load_backbone("micro", device="cpu", precision="bf16", say=said.append).precision == "bf16"
    assert said[0].startswith("model.precision=bf16 is slow here")
