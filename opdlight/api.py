"""The names of `from opdlight import …`: all that a program of one's own needs for what `opdlight.train` does."""

from opdlight.batch.collate import Collate
from opdlight.callbacks import (
    Alarms,
    Checkpoints,
    DepthProfile,
    EngineMismatch,
    GradientNoise,
    ModelEntropy,
    ProbeCallback,
    RolloutMetrics,
    Rule,
    ServerFaults,
    SignalBalance,
    StageProgress,
    TeacherGap,
    TeacherSupportCoverage,
    Throughput,
    TokenGaps,
    TrajectoryRecorder,
)
from opdlight.data import Task, TaskMixture
from opdlight.data.requests import OnPolicyData
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.schedules import learning_rate
from opdlight.distillation.sharded import ShardedStrategy
from opdlight.distillation.step import Step
from opdlight.envs.base import TextEnv
from opdlight.envs.conformance import check_text_env
from opdlight.errors import ConfigError, OpdError
from opdlight.evaluate.run import evaluate_tasks
from opdlight.losses import (
    DirectEstimate,
    EntropyAware,
    ImportanceWeighted,
    Loss,
    Needs,
    SampledToken,
    SpecialTokenMask,
    SupportKind,
    SupportMatching,
    TurnWeighted,
)
from opdlight.metrics.success import Result
from opdlight.models import (
    Probe,
    ProbeResult,
    Scorer,
    ScoreRequest,
    ServerTeacher,
    Student,
    Teacher,
    TeacherModel,
    Teachers,
)
from opdlight.rollout import (
    ChatRenderer,
    Collector,
    Engine,
    RayEngine,
    Sampling,
    ScriptedEngine,
    VLLMEngine,
    VLLMServerEngine,
    make_collector,
    open_collector,
)
from opdlight.rollout.source import RolloutSource
from opdlight.run_folder.checkpoints import CheckpointFolder
from opdlight.run_folder.records import MetricsFile
from opdlight.sft.module import SupervisedFineTuning
from opdlight.system.quiet import quiet_libraries
from opdlight.types import RolloutRequest, Status, SupportScores, TokenBatch, Trajectory, Turn

__all__ = [
    "Alarms",
    "ChatRenderer",
    "CheckpointFolder",
    "Checkpoints",
    "Collate",
    "Collector",
    "ConfigError",
    "DepthProfile",
    "DirectEstimate",
    "Engine",
    "EngineMismatch",
    "EntropyAware",
    "GradientNoise",
    "ImportanceWeighted",
    "Loss",
    "MetricsFile",
    "ModelEntropy",
    "Needs",
    "OnPolicyData",
    "OnPolicyDistillation",
    "OpdError",
    "Probe",
    "ProbeCallback",
    "ProbeResult",
    "RayEngine",
    "Result",
    "RolloutMetrics",
    "RolloutRequest",
    "RolloutSource",
    "Rule",
    "SampledToken",
    "Sampling",
    "ScoreRequest",
    "Scorer",
    "ScriptedEngine",
    "ServerFaults",
    "ServerTeacher",
    "ShardedStrategy",
    "SignalBalance",
    "SpecialTokenMask",
    "StageProgress",
    "Status",
    "Step",
    "Student",
    "SupervisedFineTuning",
    "SupportKind",
    "SupportMatching",
    "SupportScores",
    "Task",
    "TaskMixture",
    "Teacher",
    "TeacherGap",
    "TeacherModel",
    "TeacherSupportCoverage",
    "Teachers",
    "TextEnv",
    "Throughput",
    "TokenBatch",
    "TokenGaps",
    "Trajectory",
    "TrajectoryRecorder",
    "Turn",
    "TurnWeighted",
    "VLLMEngine",
    "VLLMServerEngine",
    "check_text_env",
    "evaluate_tasks",
    "learning_rate",
    "make_collector",
    "open_collector",
    "quiet_libraries",
]
