"""What corpora share: reading files and the Hub, repeated texts, validation parts."""
