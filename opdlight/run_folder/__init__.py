"""The folder of a run: config, versions, checkpoints, loggers, growing records and the summary."""
