"""Which version of a model answers, by weights and rules: canaries, experiments, shadows, and what they are judged by."""
