"""How weights are trained: engine, loop, checkpoints, export."""
