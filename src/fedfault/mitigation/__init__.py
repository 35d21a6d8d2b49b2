"""What helps a federation whose clients differ: clusters of similar clients, each with a model of its own."""
