"""The procedural world, whose true second view is known."""
