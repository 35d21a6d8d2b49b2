"""What happens in a round: broadcast, local training of the cohort, aggregation, checks."""
