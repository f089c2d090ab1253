"""Fitted learners, to look at: the learner in a pipeline or search, and pictures of its atoms."""
