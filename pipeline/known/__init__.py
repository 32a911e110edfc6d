"""What is known of the target video. It knows nothing of the model that fills in the rest."""
