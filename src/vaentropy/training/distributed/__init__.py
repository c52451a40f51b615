"""One training by several processes, by torch.distributed: their batches, their steps, their evaluations."""
