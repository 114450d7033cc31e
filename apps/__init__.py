"""Uses of a finished run: export it, talk to it, serve it, evaluate it. No stage imports this."""
