"""What the adapter of sheaf-serve's backends knows of them."""
