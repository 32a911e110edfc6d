"""The object to be replaced, in every frame. True is the object."""
