"""Depth of a clip."""
