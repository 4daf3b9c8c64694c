"""What models are asked about a micro-batch, and what every teacher offers."""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlight.losses import Needs, SupportKind
from opdlight.types import SharedVocabulary, TeacherScores, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """What is asked about the N loss positions of a micro-batch.

    The last two fields are the student's part: `Scorer` fills them in before the teachers are asked.
    """

    needs: Needs  # of the loss
    shared: SharedVocabulary  # the ids that a support or a top-K may hold
    temperature: float = 1.0  # of the rollouts; divides the logits of both models
    top_p: float = 1.0  # of the rollouts; for a loss whose `needs.top_p` is set
    probe_at: Tensor | None = None  # [n] loss positions that callbacks probe, ascending; None: they probe none
    probe_k: int = 0  # size of both models' top-K there
    support_later: bool = False  # a teacher may give `TeacherScores.support_at` instead of `support`, and should
    student_ids: Tensor | None = None  # [N, K] the student's top-K, where it chooses the support
    probe_student_ids: Tensor | None = None  # [n, K] the student's top-K at the probed positions, best first

    @property
    def asks_teacher(self) -> bool:
        """False if no teacher has to be run at all."""
        needs = self.needs
        return needs.support is not None or needs.sampled or needs.teacher_entropy or self.probe_at is not None

    @property
    def full_vocabulary(self) -> bool:
        """True if the models are compared on every shared id."""
        return self.needs.support is SupportKind.FULL_VOCABULARY

    def at(self, positions: Tensor) -> Self:
        """The same request about some of the loss positions [m], ascending."""
        part = self
        if self.student_ids is not None:
            part = replace(part, student_ids=self.student_ids[positions])
        if self.probe_at is not None and self.probe_student_ids is not None:
            inside = torch.isin(self.probe_at, positions)
            part = replace(
                part,
                probe_at=torch.searchsorted(positions, self.probe_at[inside]),
                probe_student_ids=self.probe_student_ids[inside],
            )
        return part


class BatchScorer(Protocol):
    """Whatever scores a micro-batch: one teacher, or several that share its rows (`Teachers`)."""

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        """What `request` asks for and nothing else, without gradient.

        Log-probs are at `request.temperature` and normalised over the teacher's full width; the ids of a support and of
        a top-K are `request.shared` ones.
        """


class TeacherModel(BatchScorer, Protocol):
    """A frozen model that scores the student's tokens. `Teacher` and `ServerTeacher` are two of them.

    One that is also an `nn.Module` is moved with the training module, but is part of no state dict and no optimizer.
    """

    name: str  # as the config has it
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel  # its config and names; the weights may be on the meta device

    @property
    def width(self) -> int:
        """Number of logits; may exceed what the tokenizer knows."""

    @property
    def device(self) -> torch.device:
        """Where its batches must be."""

    def check(self, request: ScoreRequest) -> None:
        """Raise ConfigError, naming the key, if it cannot give what a run will ask for."""

    def shard(self, mesh: DeviceMesh, *, offload: bool) -> None:
        """Divide the weights over the ranks of `mesh`; with `offload` each rank's share is in the CPU's memory.

        From then on all ranks must call `score` or `touch` together.

        Raises:
            ConfigError: naming `teacher_placement`, if it cannot be divided.
        """

    def touch(self, batch: TokenBatch) -> None:
        """Gather the weights as `score` does and drop the result, for ranks that have no row of this teacher."""

    def stats(self) -> dict[str, float]:
        """Counters since the start, by name."""
