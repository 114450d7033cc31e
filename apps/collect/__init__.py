"""People in the loop: pages on which they rank, rate, compare and write answers."""
