"""How anything is trained: the loop, when it stops, its state on disk, several processes."""
