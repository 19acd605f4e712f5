"""Code shared by all stages: options, logs, files, checkpoints, devices. Imports no other room."""
