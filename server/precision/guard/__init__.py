"""Compares live answers with FP32's: what to look at and when, what it comes to, and the answers that mustn't leave as they are."""
