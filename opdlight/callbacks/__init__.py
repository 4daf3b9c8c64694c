"""Lightning callbacks: everything that watches a run."""

from opdlight.callbacks.alarms import Alarms, Rule
from opdlight.callbacks.balance import SignalBalance
from opdlight.callbacks.checkpoints import Checkpoints
from opdlight.callbacks.coverage import TeacherSupportCoverage
from opdlight.callbacks.entropy import ModelEntropy
from opdlight.callbacks.gap import TeacherGap
from opdlight.callbacks.gradient import GradientNoise
from opdlight.callbacks.held_out import HeldOutRecorder
from opdlight.callbacks.mismatch import EngineMismatch
from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.callbacks.profile import DepthProfile
from opdlight.callbacks.progress import StageProgress
from opdlight.callbacks.publication import PublicationCost
from opdlight.callbacks.rollouts import RolloutMetrics
from opdlight.callbacks.servers import ServerFaults
from opdlight.callbacks.throughput import Throughput
from opdlight.callbacks.token_gaps import TokenGaps
from opdlight.callbacks.trajectories import TrajectoryRecorder

__all__ = [
    "Alarms",
    "Checkpoints",
    "DepthProfile",
    "EngineMismatch",
    "GradientNoise",
    "HeldOutRecorder",
    "ModelEntropy",
    "ProbeCallback",
    "PublicationCost",
    "RolloutMetrics",
    "Rule",
    "ServerFaults",
    "SignalBalance",
    "StageProgress",
    "TeacherGap",
    "TeacherSupportCoverage",
    "Throughput",
    "TokenGaps",
    "TrajectoryRecorder",
]
