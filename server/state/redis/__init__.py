"""State in a Redis that the servers of a fleet share (one primary): documents, events, tallies, a lease, and news of changes."""
