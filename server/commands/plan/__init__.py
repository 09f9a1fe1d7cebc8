"""`tidegate precision plan`: what each precision of a model could serve, and how exact it is, before anything serves it."""
