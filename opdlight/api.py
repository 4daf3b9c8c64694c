"""The names of `from opdlight import …`: all that a program of one's own needs for what `opdlight.train` does."""

from opdlight.batch.collate import Collate
from opdlight.bounds import Bounds, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitFloat
from opdlight.callbacks import (
    Alarms,
    Checkpoints,
    DepthProfile,
    EngineMismatch,
    GradientNoise,
    HeldOutRecorder,
    ModelEntropy,
    ProbeCallback,
    PublicationCost,
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
from opdlight.errors import ConfigError, EngineError, EnvError, OpdError
from opdlight.evaluate.run import evaluate_tasks
from opdlight.losses import (
    DirectEstimate,
    EntropyAware,
    ImportanceWeighted,
    Loss,
    Needs,
    Remembers,
    SampledToken,
    SpecialTokenMask,
    SupportKind,
    SupportMatching,
    TurnWeighted,
)
from opdlight.losses.divergences import with_slope
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
from opdlight.models.loading import load_model
from opdlight.rollout import (
    ChatRenderer,
    Collector,
    Completion,
    Engine,
    RayEngine,
    Request,
    Sampling,
    ScriptedEngine,
    VLLMEngine,
    VLLMServerEngine,
    make_collector,
    open_collector,
)
from opdlight.rollout.source import RolloutSource
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.records import MetricsFile
from opdlight.sft.module import SupervisedFineTuning
from opdlight.system.quiet import quiet_libraries
from opdlight.types import RolloutRequest, Status, Support, SupportScores, TokenBatch, Trajectory, Turn

__all__ = [
    "Alarms",
    "Bounds",
    "ChatRenderer",
    "CheckpointFolder",
    "Checkpoints",
    "Collate",
    "Collector",
    "Completion",
    "ConfigError",
    "DepthProfile",
    "DirectEstimate",
    "Engine",
    "EngineError",
    "EngineMismatch",
    "EntropyAware",
    "EnvError",
    "FiniteFloat",
    "GradientNoise",
    "HeldOutRecorder",
    "ImportanceWeighted",
    "Loss",
    "MetricsFile",
    "ModelEntropy",
    "Needs",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OnPolicyData",
    "OnPolicyDistillation",
    "OpdError",
    "PositiveFloat",
    "PositiveInt",
    "Probe",
    "ProbeCallback",
    "ProbeResult",
    "PublicationCost",
    "RayEngine",
    "Remembers",
    "Request",
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
    "Support",
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
    "UnitFloat",
    "VLLMEngine",
    "VLLMServerEngine",
    "check_text_env",
    "evaluate_tasks",
    "learning_rate",
    "load_model",
    "make_collector",
    "open_collector",
    "quiet_libraries",
    "with_slope",
]
