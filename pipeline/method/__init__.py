"""How the sampler is told what is known."""
