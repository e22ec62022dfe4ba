"""A row's way from a line to a request, and from a response to a line."""
