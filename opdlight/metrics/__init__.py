"""Metrics of success and of tokens, and the glossary of every logged key."""
