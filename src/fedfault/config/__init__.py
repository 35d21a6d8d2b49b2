"""YAML files with `_base_` inheritance, `key=value` overrides and short keys become one checked `Experiment`."""

from fedfault.config.loading import load

__all__ = ["load"]
