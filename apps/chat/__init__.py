"""`tristage chat`: talk to a run's policies in the terminal."""
