"""The frozen models that score the student's tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from opdlight.losses import Needs, make_support
from opdlight.models.backbone import check_head, divide, head_of, hidden_at
from opdlight.models.lm_head import (
    LMHead,
    entropy,
    log_normaliser,
    support_values,
    token_logprobs,
    top_k,
    top_k_and_token,
    view,
)
from opdlight.models.loading import load_model, load_tokenizer
from opdlight.types import Look, SharedVocabulary, TeacherScores, TokenBatch


class FrozenModel(nn.Module):
    """A model whose forward is `hidden_at`: the one way in, so that a divided one is put together."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """`hidden_at` the loss positions."""
        return hidden_at(self.model, batch)


class Teacher(nn.Module):
    """A frozen causal LM (or a LoRA adapter on one): always in eval mode, never in a state dict or an optimizer.

    Args:
        model: model or adapter folder, `lab/<name>` or Hub name.
        dtype: "float32" or "bfloat16".
        trust_remote_code: run the code that the model brings with it (`auto_map`).
    """

    def __init__(self, model: str, dtype: str = "float32", trust_remote_code: bool = False) -> None:
        super().__init__()
        self.name = model
        self.tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        loaded = load_model(model, dtype, trust_remote_code=trust_remote_code).eval().requires_grad_(False)
        check_head(loaded)
        self._hidden_from_torch = (
            FrozenModel(loaded),
        )  # in a tuple it is no submodule: checkpoints and optimizers do not see it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._hidden_from_torch[0]._apply(fn)  # .to(device) must still reach it
        super()._apply(fn, recurse)
        return self

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self._hidden_from_torch[0].model

    def head(self) -> LMHead:
        """The LM head."""
        return head_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where its batches must lie."""
        return self.head().weight.device

    def stats(self) -> dict[str, float]:
        """Counters since the start, of a teacher that can fail for a while."""
        return {}

    def check(self, needs: Needs, *, temperature: float, shared: SharedVocabulary, look_k: int) -> None:
        """Raise ConfigError if it cannot give what a run will ask: `needs`, and `look_k` ids where callbacks look."""

    def shard(self, mesh: DeviceMesh, *, offload: bool) -> None:
        """Divide the weights over the ranks of `mesh`; from now on every rank must score when one does, or `touch`."""
        frozen = self._hidden_from_torch[0]
        if not isinstance(frozen, FSDPModule):
            divide(frozen, frozen.model, mesh, offload=offload)

    @torch.no_grad()
    def touch(self, batch: TokenBatch) -> None:
        """Take part in another rank's scoring: a forward pass of one token, for nothing."""
        one = {name: getattr(batch, name)[:1, :1] for name in ("input_ids", "attention_mask", "position_ids")}
        none = {name: getattr(batch, name)[:0] for name in ("row_index", "col_index")}
        self._hidden_from_torch[0](replace(batch, **one, **none))
        self._rest()

    def _rest(self) -> None:
        frozen = self._hidden_from_torch[0]
        if isinstance(frozen, FSDPModule):
            frozen.reshard()

    @torch.no_grad()
    def score(
        self,
        batch: TokenBatch,
        *,
        needs: Needs,
        chosen: Tensor | None,
        temperature: float,
        shared: SharedVocabulary,
        look: Look | None = None,
    ) -> TeacherScores:
        """The top-K or the vocabulary that `needs` names, log-probs of the sampled tokens, the entropy: what is asked.

        Log-probs are at `temperature` and normalised over the teacher's full width; ids are `shared` ones. `chosen`
        [N, K] are ids that the student has named; None lets the teacher choose. `look`: where callbacks look.
        """
        if needs.support is None and not needs.sampled and not needs.teacher_entropy and look is None:
            return TeacherScores()
        found = self._score(self._hidden_from_torch[0](batch), batch, needs, chosen, temperature, shared, look)
        self._rest()
        return found

    def _score(
        self,
        hidden: Tensor,
        batch: TokenBatch,
        needs: Needs,
        chosen: Tensor | None,
        temperature: float,
        shared: SharedVocabulary,
        look: Look | None,
    ) -> TeacherScores:
        head = self.head()
        seen = None
        if look is not None:
            seen = view(
                hidden[look.at],
                head,
                look.student_ids.shape[1],
                token_ids=batch.target_ids[look.at],
                other_ids=look.student_ids,
                temperature=temperature,
                shared=shared,
            )
        wavering = entropy(hidden, head, temperature=temperature) if needs.teacher_entropy else None
        token, normaliser, ids = None, None, chosen
        whole, normalised = needs.support == "full_vocabulary", needs.normaliser or needs.support == "teacher_nucleus"
        if needs.support is not None and not whole and chosen is None:
            if needs.sampled or normalised:
                ids, normaliser, token = top_k_and_token(
                    hidden, head, needs.k, batch.target_ids, temperature=temperature, shared=shared
                )
            else:
                ids = top_k(hidden, head, needs.k, shared=shared)
        if needs.sampled and token is None:
            token = token_logprobs(hidden, head, batch.target_ids, temperature)
        if normalised and normaliser is None:
            normaliser = log_normaliser(hidden, head, temperature)

        def on(support_ids: Tensor) -> tuple[Tensor, Tensor | None]:
            return support_values(hidden, head, support_ids, temperature, whole=whole), normaliser

        support = None if needs.support is None else make_support(needs, ids, batch.target_ids, shared, on)
        token = token if needs.sampled else None
        return TeacherScores(support=support, sampled=token, entropy=wavering, view=seen)
