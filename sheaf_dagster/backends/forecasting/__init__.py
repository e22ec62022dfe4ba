"""What the statistical forecaster is made of: its models, and forecasts from them."""
