"""A frozen teacher behind `vllm serve`: the scores of `Teacher` by HTTP; its weights are never loaded here.

One request a row asks for all that is wanted of it: the teacher's top-K at every position (`prompt_logprobs`), and the
log-probs of ids that the student named (`prompt_logprob_token_ids`). Servers that run vLLM's first model runner (every
CPU) lack the latter; where the loss cannot do without, they are asked for all V log-probs of each position, as they are
for the full vocabulary and the entropy.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from opdlight.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from opdlight.errors import ConfigError, ServerError
from opdlight.losses import Needs, make_support
from opdlight.models.loading import load_skeleton, load_tokenizer, resolve_model
from opdlight.models.server_reply import Answer, Question, read_answer
from opdlight.models.teacher import FrozenModel, Teacher
from opdlight.system.vllm_http import VLLMServer, find_model
from opdlight.types import Look, SharedVocabulary, TeacherScores, TokenBatch, View

PROBE = "What is 12 + 7? The answer is 19. Go to the table, then take the red key."
PROBE_TOKENS, PROBE_K = 24, 8
OTHER_MODEL = 0.1  # mean difference on the probe, in nats, from which on it is another model; bfloat16 stays far below
SPARE = 8  # ids outside the shared vocabulary that may stand among a teacher's top-K


class ServerTeacher(Teacher):
    """A teacher whose tokenizer and config lie here and whose weights lie behind `vllm serve --enable-scale-out`.

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
        nn.Module.__init__(self)
        self.name, self.tokenizer = model, load_tokenizer(model, trust_remote_code=trust_remote_code)
        skeleton = load_skeleton(model, trust_remote_code=trust_remote_code)
        self._hidden_from_torch = (FrozenModel(skeleton),)
        how: Any = {"concurrency": concurrency, "timeout": timeout, "retries": retries, "api_key_env": api_key_env}
        servers = [VLLMServer(u, "teacher", **how) for u in ([url] if isinstance(url, str) else url)]
        self._server, self._served, self._context = find_model(servers, resolve_model(model))
        config, room = skeleton.config.get_text_config(), self._context - 1  # one is for the token that it generates
        config.max_position_embeddings = min(getattr(config, "max_position_embeddings", None) or room, room)
        ids = self._probe_ids()
        self._probe = Question(ids=ids, columns=torch.arange(len(ids) - 1), k=PROBE_K)
        self._names_ids = self._can_name_ids()
        self._first = self._ask(self._probe)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        nn.Module._apply(self, fn, recurse)  # no weight is here that could move
        return self

    @property
    def device(self) -> torch.device:
        """Where a batch may lie: anywhere."""
        return torch.device("cpu")

    def shard(self, mesh: DeviceMesh, *, offload: bool) -> None:
        """There is nothing to divide."""
        got = "offloaded" if offload else "sharded"
        raise ConfigError.wrong("teacher_placement", expected="replicated beside teacher=vllm_server", got=got)

    def stats(self) -> dict[str, float]:
        """Attempts that were repeated, and seconds of waiting, since the start."""
        return self._server.stats()

    def check(self, needs: Needs, *, temperature: float, shared: SharedVocabulary, look_k: int) -> None:
        """Ask the server once for all that a run will ask of it.

        Raises:
            ConfigError: naming the key that asks for what the server does not give.
        """
        if temperature != 1:
            expected = "1 beside teacher=vllm_server, whose log-probs are at temperature 1"
            raise ConfigError.wrong("sampling.temperature", expected=expected, got=temperature)
        chosen = needs.k if _student_chooses(needs) else 0
        named = self._probe.columns.new_zeros((len(self._probe.columns), chosen + look_k)) if chosen + look_k else None
        question = self._question(self._probe.ids, self._probe.columns, needs, named, shared=shared, look_k=look_k)
        try:
            self._ask(question)
        except ServerError as error:
            if error.status != 400:
                raise
            most = -1 if question.whole else max(question.k, chosen + look_k)
            other = ", or use a loss on the teacher's top-K" if question.whole else ""
            raise ConfigError(
                f"The teacher's server does not give what `loss` and `reader` need. {error} "
                f"Start it with --max-logprobs {most}{other}."
            ) from error

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
        """As `Teacher.score`, at temperature 1 only.

        Where the server does not tell, the view's entropy is None and its log-probs of the student's ids are NaN.
        """
        if needs.support is None and not needs.sampled and not needs.teacher_entropy and look is None:
            return TeacherScores()
        if temperature != 1:
            raise ValueError(f"Expected `temperature` to be 1, but got {temperature}.")
        look_k = 0 if look is None else look.student_ids.shape[1]
        found = self._look_up(batch, needs, chosen, shared, look, look_k)
        k = max(_own_k(needs), look_k)
        top_ids, top = found.top(k, shared)
        if bool(torch.isneginf(top).any()):
            raise ServerError(
                f"Fewer than {k} of the most probable ids that {self._server.url} names are among the {len(shared)} "
                "that both models share. Use a smaller loss.k and reader.k."
            )
        support = None
        if needs.support is not None:
            ids = top_ids[:, : needs.k] if chosen is None else chosen

            def told(support_ids: Tensor) -> tuple[Tensor, Tensor]:  # log-probs, which are logits of normaliser 0
                own = support_ids == batch.target_ids.unsqueeze(1)
                logprobs = torch.where(own, found.sampled.unsqueeze(1), found.at(support_ids))
                return logprobs, torch.zeros_like(found.sampled)

            support = make_support(
                needs, None if needs.support == "full_vocabulary" else ids, batch.target_ids, shared, told
            )
        entropy, view = found.entropy(), None
        if look is not None:
            view = View(
                top_ids=top_ids[look.at, :look_k],
                top_logprobs=top[look.at, :look_k],
                sampled=found.sampled[look.at],
                entropy=None if entropy is None else entropy[look.at],
                at_other=found.pick(look.at).at(look.student_ids),
            )
        return TeacherScores(
            support=support,
            sampled=found.sampled if needs.sampled else None,
            entropy=entropy if needs.teacher_entropy else None,
            view=view,
        )

    def _look_up(
        self,
        batch: TokenBatch,
        needs: Needs,
        chosen: Tensor | None,
        shared: SharedVocabulary,
        look: Look | None,
        look_k: int,
    ) -> Answer:
        """What the server says at the N positions; the probe travels along and tells whether it is the same model."""
        named = chosen
        if look is not None:
            seen = look.student_ids.new_full((batch.num_tokens, look_k), -1)
            seen[look.at] = look.student_ids
            named = seen if chosen is None else torch.cat([chosen, seen], 1)
        named = None if named is None else named.cpu()
        columns, row_index, ids = batch.col_index.cpu(), batch.row_index.cpu(), batch.input_ids.cpu()
        places, questions = [], [self._probe]
        for row in row_index.unique().tolist():
            at = (row_index == row).nonzero().squeeze(1)
            tokens = ids[row, : int(columns[at].max()) + 2].tolist()
            mine = None if named is None else named[at]
            questions.append(self._question(tokens, columns[at], needs, mine, shared=shared, look_k=look_k))
            places.append(at)
        probe, *answers = self._server.map(self._ask, questions)
        self._check_unchanged(probe)
        device = batch.input_ids.device
        if not answers:
            return Answer.empty(self.head().width, device)
        return Answer.join(answers, torch.argsort(torch.cat(places)), device)

    def _question(
        self,
        ids: list[int],
        columns: Tensor,
        needs: Needs,
        named: Tensor | None,
        *,
        shared: SharedVocabulary,
        look_k: int,
    ) -> Question:
        width, k = self.head().width, max(_own_k(needs), look_k)
        if k > len(shared):
            raise ConfigError.wrong("loss.k", expected=f"from 1 to the {len(shared)} ids both models share", got=k)
        whole = needs.support == "full_vocabulary" or needs.teacher_entropy
        if whole or (_student_chooses(needs) and not self._names_ids):
            return Question(ids=ids, columns=columns, whole=True)
        spare = min(SPARE, width - len(shared)) if k else 0
        return Question(ids=ids, columns=columns, k=k + spare, named=named if self._names_ids else None)

    def _ask(self, question: Question) -> Answer:
        if len(question.ids) >= self._context:
            raise ServerError(
                f"A row has {len(question.ids)} tokens, but {self._server.url} takes {self._context - 1}: start it "
                f"with --max-model-len {len(question.ids) + 1}, or lower trajectory_tokens of the task."
            )
        reply = self._server.generate(question.ids, self._served, **question.sampling())
        if reply.get("model") != self._served:
            raise self._server.wrong_reply(f"scores of the model {self._served!r}", reply.get("model"))
        return read_answer(reply, question, self.head().width, self._server.wrong_reply)

    def _probe_ids(self) -> list[int]:
        """The ids of a text, by the teacher's tokenizer and by the server's."""
        own = list(self.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        body = {"model": self._served, "prompt": PROBE, "add_special_tokens": False}
        reply = self._server.post("/tokenize", body)
        served = reply.get("tokens") if isinstance(reply, dict) else reply
        if served != own:
            raise ServerError(
                f"{self._server.url} splits {PROBE[:20]!r} … into the ids {str(served)[:60]} …, the tokenizer of "
                f"{self.name!r} into {str(own)[:60]} …: the server has another vocabulary."
            )
        return own[:PROBE_TOKENS]

    def _can_name_ids(self) -> bool:
        """Does the server score ids that it is sent? Its answer to the shortest such question tells."""
        named = torch.zeros((1, 1), dtype=torch.long)
        try:
            self._ask(Question(ids=self._probe.ids[:2], columns=torch.zeros(1, dtype=torch.long), named=named))
        except ServerError as error:
            if error.status != 400:
                raise
            return False
        return True

    def _check_unchanged(self, now: Answer) -> None:
        """Raise ServerError if another model answers than at the start."""
        difference = self._first.difference(now)
        if difference > OTHER_MODEL:
            raise ServerError(
                f"{self._server.url} answers with another model than at the start: the log-probs of the same "
                f"{len(self._probe.ids)} tokens differ by {difference:.2f} nats in the mean. Restart it with "
                f"{self.name!r}, and the run."
            )


def _student_chooses(needs: Needs) -> bool:
    return needs.support is not None and needs.support.startswith("student_")


def _own_k(needs: Needs) -> int:
    """How many ids the teacher itself names for the loss."""
    return 0 if needs.support in (None, "full_vocabulary") or _student_chooses(needs) else needs.k
