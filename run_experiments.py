#!/usr/bin/env python3
"""Run many experiments and report on them: `python run_experiments.py --mode quick`. See `fedfault study`."""

import sys

from fedfault.cli import run_guarded
from fedfault.flags import run_experiments

if __name__ == "__main__":
    sys.exit(run_guarded(run_experiments))
