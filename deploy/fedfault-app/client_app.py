"""The ClientApp of the fedfault that is installed at the site."""

from fedfault.flower.client import app

__all__ = ["app"]
