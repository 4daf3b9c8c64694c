"""Rollout engines, which sample the student's tokens."""
