"""What training needs around the method: the run's state and checkpoints, schedule, logs, validation, adaptation."""
