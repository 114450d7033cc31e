"""How weights move: engine, loop, checkpoints, export."""
