"""The drift guard in the server: whom it watches, where its reference lives, what an alarm leads to."""
