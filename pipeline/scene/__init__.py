"""Scene encoders: from the frames of a clip to latent states of the scene."""
