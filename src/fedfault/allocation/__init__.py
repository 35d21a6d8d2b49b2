"""What rank schedulers share: bounds, budgets and moving averages."""
