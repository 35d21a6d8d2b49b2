"""`python -m fedfault` is `fedfault`."""

from fedfault.cli import main

main()
