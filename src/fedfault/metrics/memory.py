"""The peak memory of the process."""

from __future__ import annotations

import sys

import torch

from fedfault.registry import register
from fedfault.types.task import FinishedRound, Measurements, Probe


@register("probe", order=7)
def memory() -> Probe:
    """Peak memory of the process so far, in MB: on CUDA what tensors took there, elsewhere the resident set.

    It covers everything that the process has done, the loading of model and data included. There is nothing where the
    platform does not say.
    """

    def measure(m: FinishedRound) -> Measurements:
        if m.after.adapter.flat.is_cuda:
            return Measurements({"peak_memory_mb": torch.cuda.max_memory_allocated(m.after.adapter.flat.device) / 1e6})
        try:
            import resource
        except ImportError:  # Windows
            return Measurements()
        unit = 1 if sys.platform == "darwin" else 1024
        return Measurements({"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6})

    return Probe(measure, of_machine=True)
