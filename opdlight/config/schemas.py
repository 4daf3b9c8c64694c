"""What the top level of each entry point's config holds."""

from dataclasses import dataclass
from typing import Any, Literal

from opdlight.config.values import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How much is rolled out for one update."""

    groups: int
    group_size: int
    mini_batches: int
    env_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A student, the teachers by task, and what depends on their size."""

    student: Node
    teachers: dict[str, str]
    dtype: Literal["float32", "bfloat16"]
    max_model_len: int
    learning_rate: float
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationsConfig:
    """Where `opdlight.sft` takes its demonstrations from."""

    file: str | None
    episodes: int
    detours: float
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every entry point has."""

    seed: int
    run_dir: str
    task: Node
    model: ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(RunConfig):
    """The top level of conf/train.yaml."""

    rollout: RolloutConfig
    sampling: Node
    evaluation: Node
    evaluate_teachers: bool
    teacher: Node
    loss: Node
    mask: Node
    engine: Node
    trainer: Node
    callbacks: dict[str, Node]
    reader: Node
    max_not_finite: int
    staleness: Literal[0, 1]
    resume: str | None
    teacher_placement: Literal["replicated", "sharded", "offloaded"]
    optimizer: Node
    schedule: Node
    micro_batch_tokens: int
    max_grad_norm: float
    logger: dict[str, Node]
    doctor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """The top level of conf/doctor.yaml: that of conf/train.yaml and how to examine it."""

    quick: bool
    out: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig(RunConfig):
    """The top level of conf/sft.yaml."""

    demonstrations: DemonstrationsConfig
    batch_size: int
    trainer: Node
    optimizer: Node
    schedule: Node
    micro_batch_tokens: int
    max_grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherStudentConfig:
    """A student without some tokens, and the mask for what it writes differently."""

    dropped: list[str]
    mask: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokensConfig:
    """The third part of `opdlight.lab.failure_modes`: students that write some tokens differently."""

    task: str
    end: str
    students: dict[str, OtherStudentConfig]
    demonstrations: int
    sft_updates: int
    batch_size: int
    learning_rate: float
    opd_updates: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureModesConfig(RunConfig):
    """The top level of conf/failure_modes.yaml."""

    engine: Node
    trainer: Node
    episodes: int
    env_threads: int
    k: int
    top_p: float
    buckets: int
    ngram: int
    draws: int
    special: SpecialTokensConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The top level of conf/evaluate.yaml."""

    samples: int | None
    sampling: Node
    engine: Node
    env_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySensitivityConfig:
    """The smaller passes of `opdlight.lab.toy`: what each of them changes in the setting."""

    iterations: int
    gammas: list[float]
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """The top level of conf/toy.yaml."""

    seeds: list[int]
    gammas: list[float]
    iterations: int
    window: int
    setting: Node
    sensitivity: ToySensitivityConfig | None
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorsConfig(RunConfig):
    """The top level of conf/estimators.yaml."""

    vocabulary: int
    k: int
    gap: float
    lengths: list[int]
    seeds: list[int]
    sequences: int
    episodes: int
    trajectory_k: int
    env_threads: int
    engine: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """The top level of conf/report.yaml."""

    run: str | list[str]
    out: str | None
    trajectories: int
