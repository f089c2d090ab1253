"""Train any model: loop, stopping, fit, checkpoints, a team of processes."""
