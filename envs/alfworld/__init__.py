"""ALFWorld: household tasks in a text world. Needs the extra `alfworld`."""

from opdlight.envs.alfworld.env import ALFWorldEnv

__all__ = ["ALFWorldEnv"]
