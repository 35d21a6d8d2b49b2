"""Formulas that several rooms use, on plain numbers and arrays."""
