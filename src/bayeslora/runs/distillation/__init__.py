"""A run that no single pass can serve (an ensemble, draws of a posterior, a linearised model) as one plain LoRA."""
