"""ALFWorld: household tasks in a text world. Needs the extra `alfworld`."""

from envs.alfworld.env import ALFWorldEnv

__all__ = ["ALFWorldEnv"]
