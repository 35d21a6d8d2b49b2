"""From records to findings and a verdict. Needs no torch."""
