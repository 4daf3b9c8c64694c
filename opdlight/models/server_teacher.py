"""A frozen teacher behind `vllm serve`: the scores of `Teacher` by HTTP; its weights are never loaded here.

One request a row asks for all that is wanted of it: the teacher's top-K at every position (`prompt_logprobs`), and the
log-probs of ids that the student named (`prompt_logprob_token_ids`). Servers that run vLLM's first model runner (every
CPU) lack the latter; where the loss needs such log-probs, they are asked for all V of each position, as they are for
the full vocabulary and the entropy.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from opdlight.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from opdlight.errors import ConfigError, ServerError
from opdlight.losses import Needs, make_support
from opdlight.models.backbone import head_of
from opdlight.models.base import ScoreRequest
from opdlight.models.loading import load_skeleton, load_tokenizer, resolve_model
from opdlight.models.served_model import ServedModel
from opdlight.models.server_reply import Answer, Question
from opdlight.system.vllm_http import VLLMServer
from opdlight.types import ProbeScores, Support, TeacherScores, TokenBatch

SPARE = 8  # ids outside the shared vocabulary that may stand among a teacher's top-K


class ServerTeacher:
    """A teacher whose tokenizer and config are here and whose weights are behind `vllm serve --enable-scale-out`.

    A `TeacherModel`.

    Args:
        model: folder or Hub name. The server serves it under this name or the end of it, or from this path.
        url: of the server; or of several, one of which serves the model.
        concurrency: rows that are under way at once.
        timeout: seconds until an attempt counts as failed.
        retries: further attempts after one that failed; 8 wait for about two minutes in all.
        api_key_env: environment variable with the key of `vllm serve --api-key`.
        trust_remote_code: run the code that the model brings with it (`auto_map`).

    Raises:
        ServerError: if the server is away or uses another tokenizer.
        ConfigError: naming `teacher.url`, if it serves other models.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str | list[str],
        concurrency: PositiveInt = 32,
        timeout: PositiveFloat = 120.0,
        retries: NonNegativeInt = 8,
        api_key_env: str = "VLLM_API_KEY",
        trust_remote_code: bool = False,
    ) -> None:
        self.name, self.tokenizer = model, load_tokenizer(model, trust_remote_code=trust_remote_code)
        self.model = load_skeleton(model, trust_remote_code=trust_remote_code)
        how: Any = {"concurrency": concurrency, "timeout": timeout, "retries": retries, "api_key_env": api_key_env}
        servers = [VLLMServer(u, "teacher", **how) for u in ([url] if isinstance(url, str) else url)]
        self._served = ServedModel(
            servers, resolve_model(model), name=model, tokenizer=self.tokenizer, width=self.width
        )
        config, room = self.model.config.get_text_config(), self._served.context - 1  # one is for the generated token
        config.max_position_embeddings = min(getattr(config, "max_position_embeddings", None) or room, room)

    @property
    def width(self) -> int:
        """Number of logits; may exceed what the tokenizer knows."""
        return head_of(self.model).width

    @property
    def device(self) -> torch.device:
        """Where a batch may be: anywhere."""
        return torch.device("cpu")

    def shard(self, mesh: DeviceMesh, *, offload: bool) -> None:
        """There is nothing to divide."""
        got = "offloaded" if offload else "sharded"
        raise ConfigError.wrong("teacher_placement", expected="replicated beside teacher=vllm_server", got=got)

    def touch(self, batch: TokenBatch) -> None:
        """It is never divided, so no rank waits for another."""

    def stats(self) -> dict[str, float]:
        """Attempts that were repeated, and seconds of waiting, since the start."""
        return self._served.server.stats()

    def check(self, request: ScoreRequest) -> None:
        """Ask the server once for all that a run will ask of it.

        Raises:
            ConfigError: naming the key that asks for what the server does not give.
        """
        if request.temperature != 1:
            expected = "1 beside teacher=vllm_server, whose log-probs are at temperature 1"
            raise ConfigError.wrong("sampling.temperature", expected=expected, got=request.temperature)
        sample = self._served.sample
        named = (request.needs.k if request.needs.chosen_by == "student" else 0) + request.probe_k
        ids = sample.columns.new_zeros((len(sample.columns), named)) if named else None
        question = self._question(sample.ids, sample.columns, request, ids, request.probe_k)
        try:
            self._served.ask(question)
        except ServerError as error:
            if error.status != 400:
                raise
            most = -1 if question.full_vocabulary else max(question.k, named)
            other = ", or use a loss on the teacher's top-K" if question.full_vocabulary else ""
            raise ConfigError(
                f"The teacher's server does not give what `loss` and `probe` need. {error} "
                f"Start it with --max-logprobs {most}{other}."
            ) from error

    @torch.no_grad()
    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        """See `BatchScorer.score`; at temperature 1 only.

        Where the server does not tell, the probe's entropy is None and its log-probs of the student's ids are NaN.
        """
        if not request.asks_teacher:
            return TeacherScores()
        if request.temperature != 1:
            raise ValueError(f"Expected `temperature` to be 1, but got {request.temperature}.")
        needs, probe_at, probe_ids = request.needs, request.probe_at, request.probe_student_ids
        probe_k = 0 if probe_ids is None else probe_ids.shape[1]
        found = self._ask(batch, request, probe_k)
        k = max(_teacher_k(needs), probe_k)
        top_ids, top = found.top(k, request.shared)
        if bool(torch.isneginf(top).any()):
            raise ServerError(
                f"Fewer than {k} of the most probable ids that {self._served.server.url} names are among the "
                f"{len(request.shared)} that both models share. Use a smaller loss.k and probe.k."
            )
        entropy, probe = found.entropy(), None
        if probe_at is not None and probe_ids is not None:
            probe = ProbeScores(
                top_ids=top_ids[probe_at, :probe_k],
                top_logprobs=top[probe_at, :probe_k],
                sampled=found.sampled[probe_at],
                entropy=None if entropy is None else entropy[probe_at],
                at_other=found.pick(probe_at).at(probe_ids),
            )
        return TeacherScores(
            support=_support(found, batch, request, top_ids),
            sampled=found.sampled if needs.sampled else None,
            entropy=entropy if needs.teacher_entropy else None,
            probe=probe,
        )

    def _ask(self, batch: TokenBatch, request: ScoreRequest, probe_k: int) -> Answer:
        """What the server says at the N loss positions."""
        named = request.student_ids
        if request.probe_at is not None and request.probe_student_ids is not None:
            probed = request.probe_student_ids.new_full((batch.num_tokens, probe_k), -1)
            probed[request.probe_at] = request.probe_student_ids
            named = probed if named is None else torch.cat([named, probed], 1)
        named = None if named is None else named.cpu()
        columns, row_index, ids = batch.col_index.cpu(), batch.row_index.cpu(), batch.input_ids.cpu()
        places, questions = [], []
        for row in row_index.unique().tolist():
            at = (row_index == row).nonzero().squeeze(1)
            tokens = ids[row, : int(columns[at].max()) + 2].tolist()
            mine = None if named is None else named[at]
            questions.append(self._question(tokens, columns[at], request, mine, probe_k))
            places.append(at)
        answers = self._served.ask_all(questions)
        device = batch.input_ids.device
        if not answers:
            return Answer.empty(self.width, device)
        return Answer.join(answers, torch.argsort(torch.cat(places)), device)

    def _question(
        self, ids: list[int], columns: Tensor, request: ScoreRequest, named: Tensor | None, probe_k: int
    ) -> Question:
        needs, shared, k = request.needs, request.shared, max(_teacher_k(request.needs), probe_k)
        if k > len(shared):
            raise ConfigError.wrong("loss.k", expected=f"from 1 to the {len(shared)} ids both models share", got=k)
        names_ids = self._served.names_ids
        if request.full_vocabulary or needs.teacher_entropy or (needs.chosen_by == "student" and not names_ids):
            return Question(ids=ids, columns=columns, full_vocabulary=True)
        spare = min(SPARE, self.width - len(shared)) if k else 0
        return Question(ids=ids, columns=columns, k=k + spare, named=named if names_ids else None)


def _support(found: Answer, batch: TokenBatch, request: ScoreRequest, top_ids: Tensor) -> Support | None:
    needs = request.needs
    if needs.support is None:
        return None
    ids = top_ids[:, : needs.k] if needs.chosen_by == "teacher" else request.student_ids

    def told(support_ids: Tensor) -> tuple[Tensor, Tensor]:  # log-probs, which are logits of normaliser 0
        is_sampled = support_ids == batch.target_ids.unsqueeze(1)
        logprobs = torch.where(is_sampled, found.sampled.unsqueeze(1), found.at(support_ids))
        return logprobs, torch.zeros_like(found.sampled)

    return make_support(needs, ids, batch.target_ids, request.shared, told)


def _teacher_k(needs: Needs) -> int:
    """How many ids the teacher itself chooses for the loss."""
    return needs.k if needs.chosen_by == "teacher" else 0
