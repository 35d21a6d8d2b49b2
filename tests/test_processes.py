"""What a process knows of its place among those that torchrun has started."""

from __future__ import annotations

import pytest
import torch

from fedfault import processes
from fedfault.backbones.load import choose_device
from fedfault.errors import UserError
from fedfault.processes import ProcessInfo, check_command, share_cores, this_process


@pytest.fixture
def launched(monkeypatch):
    """Be one of several processes."""

    def be(*numbers: int) -> None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        for name, number in zip(names, numbers, strict=True):
            monkeypatch.setenv(name, str(number))

    return be


def test_a_process_that_torchrun_did_not_start_is_the_only_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some batch systems leave it behind
    assert this_process() == ProcessInfo(0, 1, 0, 1)
    check_command("study")


def test_what_several_processes_cannot_share_is_refused(launched):
    launched(0, 3, 0, 1)
    check_command("run")
    check_command("resume")
    with pytest.raises(
        UserError, match=r"fedfault study under torchrun: its 3 processes can share run and resume only"
    ):
        check_command("study")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(launched, monkeypatch):
    tried = []

    def ones(size, device):
        tried.append(device)
        raise RuntimeError("no such device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    for numbers, name in [
        ((5, 8, 1, 4), "auto"),
        ((5, 8, 1, 4), "cuda"),
        ((5, 8, 1, 4), "cpu"),
        ((1, 2, 0, 1), "auto"),
    ]:
        launched(*numbers)
        with pytest.raises(UserError):
            choose_device(name)
    assert tried == ["cuda:1", "cuda:1", "cpu", "cuda"]
    launched(5, 8, 1, 4)
    with pytest.raises(UserError, match=r"the 4 processes of this machine take a GPU each.*give device=cuda,"):
        choose_device("cuda:0")


@pytest.mark.parametrize(("cores", "beside", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_cores_are_shared_by_those_who_work_beside_one_another(monkeypatch, cores, beside, threads):
    given = []
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    share_cores(beside)
    assert given == [threads]
