"""`fedfault run CONFIG [KEY=VALUE]...` under the name that experiments are published with.

python scripts/run.py --config configs/quickstart.yaml
python scripts/run.py --config quickstart data.partition=iid --overwrite
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fedfault.cli import main


def words(given: Sequence[str]) -> list[str]:
    """The same command for `fedfault`."""
    parser = argparse.ArgumentParser(
        description="Train, and write results/NAME with a report: `fedfault run CONFIG [KEY=VALUE]...`.",
        usage="%(prog)s --config CONFIG [KEY=VALUE]... [--overwrite] [--quiet]",
        epilog="All words but --config go to `fedfault run` as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a YAML file or the name of one that ships (quickstart)")
    found, others = parser.parse_known_args(given)
    return ["run", found.config, *others]


if __name__ == "__main__":
    sys.argv = ["fedfault", *words(sys.argv[1:])]
    main()
