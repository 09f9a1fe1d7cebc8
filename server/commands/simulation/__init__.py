"""What `tidegate simulate` is made of: traces in, the real batcher under simulated time, and the words that choose what to try."""
