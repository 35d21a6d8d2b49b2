"""Differential privacy of clients or of their examples: noise, what it is worth, and whether that holds."""
