"""What breaks a run, found in its records: one file a detector."""
