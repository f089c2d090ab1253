"""What all pictures share: figures, grids of atoms, and the learner in a pipeline or search."""
