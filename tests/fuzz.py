"""Look for bytes that a reader fails on, guided by coverage: `python tests/fuzz.py TARGET [--seconds N]`.

Targets are those of tests/targets.py. Starts from tests/seeds/TARGET; a failure is shown with its bytes, which go into that
folder when the reader is mended. Needs atheris (`pip install atheris`), which has no build for every Python.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["fedfault"]):
    from targets import SEEDS, TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    with atheris.instrument_imports(include=["fedfault"]):
        TARGETS[args.target](b"0")  # for what it imports
    with tempfile.TemporaryDirectory() as found:  # what libFuzzer keeps on its way
        flags = [f"-max_total_time={args.seconds}", "-timeout=60", "-rss_limit_mb=4096", "-artifact_prefix=failure-"]
        atheris.Setup([sys.argv[0], *flags, found, str(SEEDS / args.target)], TARGETS[args.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
