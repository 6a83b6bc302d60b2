"""Writes the golden files of the behaviour suite; see ../README.md for what they mean."""
