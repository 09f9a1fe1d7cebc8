"""Thin clients of the admin API that are short: what changed, and what is shed."""
