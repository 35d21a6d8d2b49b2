"""What partitioners share: who owns each document."""
