"""A process of a job that is killed when it is told something: `python dying.py WHAT COMMAND...` as fedfault's COMMAND.

WHAT is a method of `parallel.distributed.Member`: prepare, train or score. Only the second process of a job dies.
"""

from __future__ import annotations

import os
import signal
import sys

from fedfault.cli import main
from fedfault.parallel import distributed

what, sys.argv = sys.argv[1], sys.argv[1:]
answer = distributed.Member.answer


def die(member: distributed.Member, order: distributed.Order) -> object:
    if order.what == what:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(member, order)


distributed.Member.answer = die
main()
