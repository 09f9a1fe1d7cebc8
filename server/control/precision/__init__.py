"""Which precision of a model answers: what was chosen, what is resident, how one takes the place of another."""
