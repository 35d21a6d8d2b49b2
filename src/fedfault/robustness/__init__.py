"""What robust aggregations share: clients' changes as points, in factors or in products, and steps made of them."""
