"""From a checked configuration to a federation that is ready to run."""
