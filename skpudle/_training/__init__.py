"""Training, whatever the model: loop, stopping, fit, checkpoints, a team of processes."""
