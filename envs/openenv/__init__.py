"""Environments of the OpenEnv hub: a client of the server that plays them.

The server runs beside the trainer, as OpenEnv means it to: its packages need not fit those of the trainer.
"""
