"""What runs of every kind share: folders, checkpoints, the notes of a run, the guard against divergence."""
