"""TextWorld: generated text adventures. Needs the extra `alfworld`."""

from opdlight.envs.textworld.env import TextWorldEnv

__all__ = ["TextWorldEnv"]
