"""What every stage shares: options, logs, files, checkpoints, devices. Imports nothing else of the kit."""
