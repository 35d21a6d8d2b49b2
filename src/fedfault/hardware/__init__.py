"""Simulated hardware: tiers, time, deadlines, and who comes and goes."""
