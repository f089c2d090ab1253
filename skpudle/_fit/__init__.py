"""What all fits share: plan, phases, records, training by gradients, checkpoints, processes."""
