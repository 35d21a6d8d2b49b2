"""The ServerApp of the fedfault that is installed where the SuperLink runs."""

from fedfault.flower.server import app

__all__ = ["app"]
