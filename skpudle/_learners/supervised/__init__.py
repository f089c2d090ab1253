"""Learners of a dictionary and a task: classes, or numbers."""
