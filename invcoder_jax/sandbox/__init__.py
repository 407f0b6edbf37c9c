"""Where model-written code runs: nowhere else."""
