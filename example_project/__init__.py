"""How long flights from New York are in the air, by route, forecast a week ahead, day by day."""
