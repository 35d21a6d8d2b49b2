#!/usr/bin/env python3
"""Train one federation: `python train.py --algorithm fedavg --partition topic_skew --num-rounds 50`. See `fedfault run`."""

import sys

from fedfault.cli import run_guarded
from fedfault.flags import train

if __name__ == "__main__":
    sys.exit(run_guarded(train))
