"""A year of New York departures by route, forecast a week ahead, day by day."""
