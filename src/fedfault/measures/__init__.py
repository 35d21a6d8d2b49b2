"""Formulas that several rooms use: fairness, scores of labels, skew and punctuality of plain numbers, ranks of spectra."""
