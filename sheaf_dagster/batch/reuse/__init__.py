"""Answers of an earlier output for rows of equal content: what is known of it, found and put in place."""
