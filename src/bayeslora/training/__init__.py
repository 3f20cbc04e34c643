"""Training: the trainer and its loss, N of the ELBO, and optimizers for LoRA pairs."""
