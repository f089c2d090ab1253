"""Learn a dictionary for a task: classification or regression."""
