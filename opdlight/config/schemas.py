"""What the top level of each entry point's config holds."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from opdlight.bounds import Bounds, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, UnitFloat
from opdlight.config.values import Node

AtLeastTwo = Annotated[int, Bounds(at_least=2)]
Batches = PositiveInt | Annotated[float, Bounds(above=0, at_most=1)]  # of Lightning: so many, or a share


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerNumbers:
    """What a distillation needs of Lightning's numbers."""

    max_steps: PositiveInt
    max_epochs: PositiveInt
    devices: PositiveInt | Literal[-1] | list[NonNegativeInt] | str
    num_nodes: PositiveInt
    num_sanity_val_steps: NonNegativeInt | Literal[-1] | None
    check_val_every_n_epoch: PositiveInt | None
    val_check_interval: Batches | None
    log_every_n_steps: NonNegativeInt | None
    limit_train_batches: Batches | None
    limit_val_batches: NonNegativeInt | UnitFloat | None
    accumulate_grad_batches: Literal[1]
    min_steps: NonNegativeInt | None
    min_epochs: NonNegativeInt | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerNumbers:
    """What optimizers of torch have in common; each checks the rest itself when it is built."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    betas: list[Annotated[float, Bounds(at_least=0, below=1)]]
    eps: NonNegativeFloat
    momentum: UnitFloat


Trainer = Annotated[Node, TrainerNumbers]
Optimizer = Annotated[Node, OptimizerNumbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How much is rolled out for one update."""

    groups: PositiveInt
    group_size: PositiveInt
    mini_batches: PositiveInt
    env_threads: PositiveInt
    env_workers: NonNegativeInt | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A student, the teachers by task, and what depends on their size."""

    student: Node
    teachers: dict[str, str]
    dtype: Literal["float32", "bfloat16"]
    compute_dtype: Literal["float32", "bfloat16"]
    max_model_len: PositiveInt
    learning_rate: PositiveFloat
    micro_batch_tokens: PositiveInt
    trust_remote_code: bool
    attn_implementation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationsConfig:
    """Where `opdlight.sft` takes its demonstrations from."""

    file: str | None
    episodes: PositiveInt
    detours: Annotated[float, Bounds(at_least=0, below=1)]
    workers: PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every entry point has."""

    seed: Seed
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
    trainer: Trainer
    callbacks: dict[str, Node]
    probe: Node
    max_not_finite: PositiveInt
    staleness: Literal[0, 1]
    resume: str | None
    teacher_placement: Literal["replicated", "sharded", "offloaded"]
    optimizer: Optimizer
    schedule: Node
    micro_batch_tokens: PositiveInt
    packing: bool | Literal["auto"]
    max_grad_norm: PositiveFloat
    logger: dict[str, Node]
    doctor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """The top level of conf/doctor.yaml: that of conf/train.yaml and how to examine it."""

    quick: bool
    plan_gib: PositiveFloat | None
    out: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig(RunConfig):
    """The top level of conf/sft.yaml."""

    demonstrations: DemonstrationsConfig
    batch_size: PositiveInt
    trainer: Trainer
    optimizer: Optimizer
    schedule: Node
    micro_batch_tokens: PositiveInt
    packing: bool | Literal["auto"]
    max_grad_norm: PositiveFloat


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
    demonstrations: PositiveInt
    sft_updates: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    opd_updates: NonNegativeInt
    groups: PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureModesConfig(RunConfig):
    """The top level of conf/failure_modes.yaml."""

    engine: Node
    trainer: Trainer
    episodes: PositiveInt
    env_threads: PositiveInt
    env_workers: NonNegativeInt | Literal["auto"]
    k: AtLeastTwo
    top_p: Annotated[float, Bounds(above=0, at_most=1)]
    buckets: PositiveInt
    ngram: PositiveInt
    draws: PositiveInt
    special: SpecialTokensConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The top level of conf/evaluate.yaml."""

    samples: PositiveInt | None
    sampling: Node
    engine: Node
    env_threads: PositiveInt
    env_workers: NonNegativeInt | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySensitivityConfig:
    """The smaller passes of `opdlight.lab.toy`: what each of them changes in the setting."""

    iterations: AtLeastTwo
    gammas: list[UnitFloat]
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """The top level of conf/toy.yaml."""

    seeds: list[Seed]
    gammas: list[UnitFloat]
    iterations: AtLeastTwo
    window: AtLeastTwo
    setting: Node
    sensitivity: ToySensitivityConfig | None
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorsConfig(RunConfig):
    """The top level of conf/estimators.yaml."""

    vocabulary: AtLeastTwo
    k: AtLeastTwo
    gap: NonNegativeFloat
    lengths: list[PositiveInt]
    seeds: list[Seed]
    sequences: AtLeastTwo
    episodes: NonNegativeInt
    trajectory_k: AtLeastTwo
    env_threads: PositiveInt
    env_workers: NonNegativeInt | Literal["auto"]
    engine: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesSettingConfig:
    """One setting of `opdlight.lab.tables`: what is trained, and which arms are compared there."""

    overrides: list[str]
    arms: list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesConfig:
    """The top level of conf/tables.yaml, with a study of conf/study/."""

    seeds: list[Seed]
    jobs: PositiveInt
    baseline: str
    only: list[str] | None
    settings: dict[str, TablesSettingConfig]
    arms: dict[str, list[str]]
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """The top level of conf/report.yaml."""

    run: str | list[str]
    baseline: str | None
    out: str | None
    trajectories: NonNegativeInt
