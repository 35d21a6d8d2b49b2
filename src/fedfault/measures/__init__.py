"""Formulas on plain numbers that several rooms use: fairness, scores of labels, skew, spectra, punctuality."""
