"""Rolling the student out: a Collector drives environments and an Engine."""

from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engine import Completion, Engine, Request, Sampling, ScriptedEngine
from opdlight.rollout.ray_engine import RayEngine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.rollout.server_engine import VLLMServerEngine
from opdlight.rollout.vllm_engine import VLLMEngine

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
]
