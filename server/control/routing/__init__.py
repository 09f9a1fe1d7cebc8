"""Which versions answer, from what was said about it: weights, and the experiments that move them."""
