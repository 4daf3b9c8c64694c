"""Rollouts: a Collector connects environments with an Engine and returns trajectories."""

from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Completion, Engine, Request, Sampling
from opdlight.rollout.engines.ray_pool import RayEngine
from opdlight.rollout.engines.scripted import ScriptedEngine
from opdlight.rollout.engines.served import VLLMServerEngine
from opdlight.rollout.engines.vllm import VLLMEngine
from opdlight.rollout.opening import count_workers, make_collector, open_collector, open_engine
from opdlight.rollout.rendering import ChatRenderer

__all__ = [
    "ChatRenderer",
    "Collector",
    "Completion",
    "Engine",
    "Limits",
    "RayEngine",
    "Request",
    "Sampling",
    "ScriptedEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "count_workers",
    "make_collector",
    "open_collector",
    "open_engine",
]
