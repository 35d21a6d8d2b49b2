"""Frozen models that carry the adapters of many clients at once: loaded, opened up, quantised, exported."""
