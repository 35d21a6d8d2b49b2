"""fedfault: a laboratory for federated fine-tuning of language models."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Before torch is imported, which then has it: threads that wait for one another turn in a loop for some microseconds, then
# sleep. By default they turn for milliseconds, so that beside other work a run holds cores without computing; threads that
# sleep at once take half as long again where to wake one is slow, as on virtual machines (docs/speed.md).
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "4000"  # of GNU's OpenMP, which heeds it and not the policy
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of others, as on a Mac

if TYPE_CHECKING:
    from fedfault.api.calls import (
        calibrate,
        check,
        compare,
        diagnose,
        evaluate,
        fork,
        list,
        open,
        resume,
        rounds,
        run,
        runs,
        study,
    )
    from fedfault.api.comparison import Comparison
    from fedfault.api.run import Run
    from fedfault.api.study import Study
    from fedfault.errors import UserError
    from fedfault.monitor import Monitor
    from fedfault.monitor.flower import Watched
    from fedfault.monitor.trainer import ClientCallback
    from fedfault.records import Finding, RoundRecord
    from fedfault.registry import build, register
    from fedfault.types.algorithm import State

__version__ = "0.1.0"
__all__ = [
    "ClientCallback",
    "Comparison",
    "Finding",
    "Monitor",
    "RoundRecord",
    "Run",
    "State",
    "Study",
    "UserError",
    "Watched",
    "build",
    "calibrate",
    "check",
    "compare",
    "diagnose",
    "evaluate",
    "fork",
    "list",
    "open",
    "register",
    "resume",
    "rounds",
    "run",
    "runs",
    "study",
]
_ELSEWHERE = {  # public name -> the module that has it, where that is not `api.calls`
    "ClientCallback": "monitor.trainer",
    "Comparison": "api.comparison",
    "Finding": "records",
    "Monitor": "monitor",
    "RoundRecord": "records",
    "Run": "api.run",
    "State": "types.algorithm",
    "Study": "api.study",
    "UserError": "errors",
    "Watched": "monitor.flower",
    "build": "registry",
    "register": "registry",
}


class _Package(ModuleType):
    """This package: its public names are imported when they are first asked for, as torch takes seconds.

    `runs`, `rounds` and `compare` are functions, and also rooms: Python would put the module in the place of the function
    when a room is imported. `from fedfault.runs import ...` finds the room, `fedfault.runs` is the function.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"fedfault.{_ELSEWHERE.get(name, 'api.calls')}"), name)
        super().__setattr__(name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> Any:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
