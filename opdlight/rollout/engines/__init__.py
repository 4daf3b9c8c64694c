"""Rollout engines: what samples the student's tokens."""
