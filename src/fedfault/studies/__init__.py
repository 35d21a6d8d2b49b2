"""Studies: many runs that differ in a stated way, hypotheses about them, and the answers with their uncertainty."""
