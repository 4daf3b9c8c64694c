"""The data that flows through opdlight: trajectories of token ids, flat batches, supports and scores.

Letters: B rows, T row length, N loss positions (the student's own tokens that are trained on), K support size,
V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self

import torch
from torch import Tensor


class Status(StrEnum):
    """How a trajectory ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED_TURNS = "truncated_turns"
    TRUNCATED_TOKENS = "truncated_tokens"
    ENV_ERROR = "env_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt and the student's completion, as the engine received and sampled them."""

    prompt_ids: list[int]  # [P] every token before the completion, earlier turns included
    completion_ids: list[int]  # [C] sampled ids, the stop token included when it was sampled
    sampled_logprobs: list[float]  # [C] log π of the full distribution at temperature 1, before top-p (nats)
    finish_reason: Literal["stop", "length"]
    policy_version: int  # number of weight updates the engine had received
    reward: float  # of the environment, for this turn
    metrics: Mapping[str, float] = field(default_factory=dict)  # counters of the environment, for this turn

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.sampled_logprobs):
            raise ValueError(
                f"Expected one log-prob per completion token, but got {len(self.sampled_logprobs)} for "
                f"{len(self.completion_ids)} tokens."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode: the turns of one environment, from reset to its end."""

    task: str
    group: int  # trajectories of one group started from the same task seed
    seed: int  # environment seed
    turns: list[Turn]
    reward: float  # sum over turns
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)  # counters of the environment, summed over turns
    spelled_control_tokens: int = 0  # in texts of the environment; encoded as ordinary text


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Rows of tokens and the N loss positions in them. They are shifted and masked: no later code does that again."""

    input_ids: Tensor  # [B, T] int64, right-padded
    attention_mask: Tensor  # [B, T] bool, False on padding
    position_ids: Tensor  # [B, T] int64
    row_index: Tensor  # [N] row of the token
    col_index: Tensor  # [N] column whose hidden state predicts the token
    target_ids: Tensor  # [N] the student's token
    sampled_logprobs: Tensor  # [N] engine log-probs, float32
    turn_index: Tensor  # [N] turn within the trajectory, from 0
    token_position: Tensor  # [N] number of student tokens before it in the trajectory
    trajectory_index: Tensor  # [N] trajectory within this batch, which has all of it if the loss needs it whole
    task_index: Tensor  # [N] index into `tasks`
    group_advantage: (
        Tensor  # [N] (R − mean)/std of the trajectory's reward within its group, float32; 0 if all are equal
    )
    tasks: tuple[str, ...]
    global_tokens: int  # loss positions of the step, over all micro-batches and ranks
    rollout_logprobs: Tensor | None = (
        None  # [N] log π(y) of the student that rolled out; None if it has not been updated since
    )
    packed: bool = False  # models run the B rows as one row without padding, in which each attends to itself only

    @property
    def num_tokens(self) -> int:
        """N, the loss positions of this micro-batch."""
        return self.target_ids.numel()

    @property
    def model_tokens(self) -> int:
        """Tokens of this micro-batch for a model: B·T with the padding, or if `packed` those of the rows.

        What rows begin with together is counted in each, though a model may run it once.
        """
        return int(self.attention_mask.sum()) if self.packed else self.input_ids.numel()

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {n: t.to(device) for n in self.__slots__ if isinstance(t := getattr(self, n), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """The token ids at which models may be compared: all have a logit for the id, and it means the same token to all.

    >>> shared = SharedVocabulary(5, frozenset({2}))
    >>> len(shared), 1 in shared, 2 in shared, 7 in shared
    (4, True, False, False)
    """

    size: int  # ids from `size` on (padding of a head, tokens that one model added) are not shared
    left_out: frozenset[int] = frozenset()  # ids below `size` that mean different tokens

    def __len__(self) -> int:
        return self.size - len(self.left_out)

    def __contains__(self, token: int) -> bool:
        return token < self.size and token not in self.left_out

    def __and__(self, other: "SharedVocabulary") -> "SharedVocabulary":
        """The ids that are in both."""
        size = min(self.size, other.size)
        return SharedVocabulary(size, frozenset(i for i in self.left_out | other.left_out if i < size))

    def holds(self, ids: Tensor) -> Tensor:
        """Whether each of `ids` is shared; the same shape, bool."""
        return (ids < self.size) & ~torch.isin(ids, self._left_out(ids.device))

    def only(self, values: Tensor) -> Tensor:
        """The first `size` columns of `values` [n, V], with −∞ in the columns of ids that are left out."""
        values = values[:, : self.size]
        return values.index_fill(1, self._left_out(values.device), -torch.inf) if self.left_out else values

    def _left_out(self, device: torch.device) -> Tensor:
        return torch.tensor(sorted(self.left_out), dtype=torch.long, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """The K token ids at which the two models are compared, position by position."""

    token_ids: Tensor  # [N, K] int64
    teacher_logits: Tensor  # [N, K] divided by the temperature; log-probs where the teacher has no logits
    teacher_normaliser: Tensor | None  # [N] log Σ_v exp(z_v / temperature) over the full vocabulary; None if not needed
    valid: Tensor  # [N, K] bool, False on filler (ids there are legal but meaningless)

    @property
    def k(self) -> int:
        """K, the width of the support."""
        return self.token_ids.shape[-1]

    @property
    def teacher_logprobs(self) -> Tensor:
        """Log q [N, K], normalised over the teacher's full vocabulary; needs `teacher_normaliser`."""
        assert self.teacher_normaliser is not None
        return self.teacher_logits - self.teacher_normaliser.unsqueeze(1)

    def at(self, positions: Tensor) -> "Support":
        """The support of some of the positions [n]."""
        normaliser = self.teacher_normaliser
        return Support(
            token_ids=self.token_ids[positions],
            teacher_logits=self.teacher_logits[positions],
            teacher_normaliser=None if normaliser is None else normaliser[positions],
            valid=self.valid[positions],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScores:
    """What one model says at the n probed positions, at the rollout temperature, without gradient."""

    top_ids: Tensor  # [n, K] its most probable ids that both models share, best first
    top_logprobs: Tensor  # [n, K] normalised over its full vocabulary
    sampled: Tensor  # [n] of the student's token
    entropy: Tensor | None  # [n] −Σ_v p log p in nats; None from a teacher that does not tell
    at_other: Tensor  # [n, K] log-probs of the other model's most probable ids; NaN where a teacher does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores:
    """The scores of the frozen models that were asked for; at the rollout temperature, without gradient."""

    support: Support | None = None
    support_at: Callable[[Tensor], Support] | None = None  # instead: the support of some positions [n], made then
    sampled: Tensor | None = None  # [N] log q(y)
    entropy: Tensor | None = None  # [N] −Σ_v q log q in nats
    reference: Tensor | None = None  # [N] log p_ref(y)
    probe: ProbeScores | None = None  # at the positions that callbacks probe

    def at(self, positions: Tensor) -> "TeacherScores":
        """The scores at some of the positions [n], without the probe."""
        columns = {name: getattr(self, name) for name in ("sampled", "entropy", "reference")}
        support = self.support_at(positions) if self.support_at is not None else None
        if self.support is not None:
            support = self.support.at(positions)
        found: dict[str, Any] = {name: None if v is None else v[positions] for name, v in columns.items()}
        return TeacherScores(support=support, **found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportScores:
    """What a loss receives, [N, K] on the support and [N] for the sampled token: only what its `needs` ask for.

    Args:
        support: the token ids compared and what the teacher says of them; None if the loss needs no support.
        student_logits: [N, K] divided by the temperature already, with gradient; not normalised.
        student_normaliser: [N] log Σ_v exp(z_v / temperature) over the full vocabulary, with gradient.
        student_sampled: [N] log π(y) of the sampled token y, with gradient.
        teacher_sampled: [N] log q(y), detached.
        teacher_entropy: [N] −Σ_v q log q in nats, detached.
        reference_sampled: [N] log p_ref(y) of the student before training, detached.
    """

    support: Support | None
    student_logits: Tensor | None = None
    student_normaliser: Tensor | None = None
    student_sampled: Tensor | None = None
    teacher_sampled: Tensor | None = None
    teacher_entropy: Tensor | None = None
    reference_sampled: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """A trajectory to roll out."""

    task: str
    seed: int  # environment seed; the same (task, seed) is the same episode
    group: int  # requests of one group share task and seed and differ only in sampling
    sample: int = 0  # number within the group; the sampling seeds depend on it

    def to(self, device: torch.device | str) -> Self:
        """The request itself: it holds no tensors (Lightning moves what has this method to the trainer's device)."""
        return self
