"""What an experiment costs and counts while requests pass: in the event loop, nothing of it where no experiment runs."""
