"""Secondary commands; nothing here is imported by anything else."""
