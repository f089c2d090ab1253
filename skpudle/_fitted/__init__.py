"""Find the fitted learner in a pipeline or search, and draw its atoms."""
