"""A frozen model on this machine that scores the student's tokens."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from opdlight.losses import SupportKind, make_support
from opdlight.models.attention import use_attention
from opdlight.models.backbone import check_head, divide, head_of, hidden_at
from opdlight.models.base import ScoreRequest
from opdlight.models.lm_head import LMHead, support_values
from opdlight.models.loading import load_model, load_tokenizer
from opdlight.models.one_pass import OwnScores, logprobs_at, one_pass
from opdlight.types import ProbeScores, Support, TeacherScores, TokenBatch


class Teacher(nn.Module):
    """A frozen causal LM, or a LoRA adapter merged into one. A `TeacherModel`.

    It is in eval mode and stays so inside `Teachers`, which also keeps it out of state dicts and optimizers.

    Args:
        model: model or adapter folder, `lab/<name>` or Hub name.
        dtype: "float32" or "bfloat16".
        trust_remote_code: run the code that the model brings with it (`auto_map`).
        attn_implementation: of transformers, such as "flash_attention_2"; None: its own choice.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        self.name = model
        self.tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        self.model = load_model(model, dtype, trust_remote_code=trust_remote_code).eval().requires_grad_(False)
        use_attention(self.model, attn_implementation, dtype)
        check_head(self.model)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Final hidden states [N, d] at the loss positions. FSDP gathers the weights around this call."""
        return hidden_at(self.model, batch)

    def head(self) -> LMHead:
        """The LM head."""
        return head_of(self.model)

    @property
    def width(self) -> int:
        """Number of logits; may exceed what the tokenizer knows."""
        return self.head().width

    @property
    def device(self) -> torch.device:
        """Where its batches must be."""
        return self.head().weight.device

    def stats(self) -> dict[str, float]:
        """None: nothing is counted of a local model."""
        return {}

    def check(self, request: ScoreRequest) -> None:
        """A local model gives whatever is asked for."""

    def shard(self, mesh: DeviceMesh, *, offload: bool) -> None:
        """Divide the weights over the ranks of `mesh` (FSDP2); then all ranks must `score` or `touch` together."""
        if not isinstance(self, FSDPModule):
            divide(self, self.model, mesh, offload=offload)

    @torch.no_grad()
    def touch(self, batch: TokenBatch) -> None:
        """Run the forward pass on a single token and drop the result, so that the ranks that score can gather."""
        one = {name: getattr(batch, name)[:1, :1] for name in ("input_ids", "attention_mask", "position_ids")}
        none = {name: getattr(batch, name)[:0] for name in ("row_index", "col_index")}
        self(replace(batch, **one, **none))
        self._free_gathered()

    def _free_gathered(self) -> None:
        """Free what FSDP gathered of embedding and head, which stay gathered after the forward pass."""
        if isinstance(self, FSDPModule):
            self.reshard()

    @torch.no_grad()
    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        """See `BatchScorer.score`."""
        if not request.asks_teacher:
            return TeacherScores()
        hidden, head = self(batch), self.head()
        if request.support_later and isinstance(self, FSDPModule):  # it is used after what is gathered has been freed
            head = head.copy()
        found = teacher_scores(hidden, head, batch.target_ids, request)
        self._free_gathered()
        return found


@torch.no_grad()
def teacher_scores(hidden: Tensor, head: LMHead, target_ids: Tensor, request: ScoreRequest) -> TeacherScores:
    """What `request` asks of a teacher, from its hidden states [N, d]; the sampled tokens are `target_ids` [N].

    No pass over the vocabulary is made twice: see `one_pass`.
    """
    needs, temperature, shared = request.needs, request.temperature, request.shared
    found = one_pass(
        hidden,
        head,
        target_ids,
        shared=shared,
        temperature=temperature,
        k=needs.k if needs.chosen_by == "teacher" else 0,
        normaliser=needs.normaliser or needs.sampled or needs.support is SupportKind.TEACHER_NUCLEUS,
        entropy=needs.teacher_entropy,
        probe_at=request.probe_at,
        probe_k=0 if request.probe_student_ids is None else request.probe_student_ids.shape[1],
    )
    ids = request.student_ids if found.top_ids is None else found.top_ids
    normaliser = found.normaliser

    @torch.no_grad()
    def support_at(at: Tensor | slice) -> Support:
        def values(support_ids: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = support_values(hidden[at], head, support_ids, temperature, full_vocabulary=request.full_vocabulary)
            return logits, None if normaliser is None else normaliser[at]

        return make_support(needs, None if ids is None else ids[at], target_ids[at], shared, values)

    asked, later = needs.support is not None, request.support_later
    return TeacherScores(
        support=support_at(slice(None)) if asked and not later else None,
        support_at=support_at if asked and later else None,
        sampled=found.sampled if needs.sampled else None,
        entropy=found.entropy,
        probe=None if found.probe is None else _probe(found.probe, hidden, head, request),
    )


def _probe(own: OwnScores, hidden: Tensor, head: LMHead, request: ScoreRequest) -> ProbeScores:
    assert request.probe_student_ids is not None
    return ProbeScores(
        top_ids=own.top_ids,
        top_logprobs=own.top_logprobs,
        sampled=own.sampled,
        entropy=own.entropy,
        at_other=logprobs_at(own, hidden[request.probe_at], head, request.probe_student_ids, request.temperature),
    )
