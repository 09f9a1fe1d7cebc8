"""Trained models, the demo and the configurations that README shows."""
