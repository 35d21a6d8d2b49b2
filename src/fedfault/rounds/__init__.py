"""The parts of a round: broadcast, local training of the cohort, aggregation, checks."""
