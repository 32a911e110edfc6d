"""Re-capture a video: depth, warp, latent mask, data consistency inside flow-matching sampling."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the input and the remedy."""
