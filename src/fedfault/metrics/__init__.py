"""Probes: tensors in, floats out."""
