"""The command that lists, shows, plays and writes tasks."""
