"""Readouts that learn: a Bayesian head on what a frozen model holds at each choice, in closed form.

The mathematics is free of models: `contrasts` (what a softmax can tell apart), `evidence` (scales of blocks and of the
noise), `regression` (a Gaussian process, and leave-one-out without a refit), `predictive` (probabilities of Gaussian
utilities), `label_noise` (temperature, wrong labels) and `novelty`. `hidden` reads the vectors off a model.
"""
