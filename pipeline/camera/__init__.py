"""Cameras: paths, moves, and the files that hold them."""
