"""The frozen video diffusion model."""
