"""One model behind `vllm serve`: what it says about rows of ids, and whether it is still the same model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opdlight.errors import ServerError
from opdlight.models.server_reply import Answer, Question, read_answer
from opdlight.system.vllm_http import VLLMServer, find_model

SAMPLE = "What is 12 + 7? The answer is 19. Go to the table, then take the red key."
SAMPLE_TOKENS, SAMPLE_K = 24, 8
OTHER_MODEL = 0.1  # mean difference on the sample, in nats, from which on it is another model; bfloat16 is far below


class ServedModel:
    """A model that a server has, identified by what it says about a sample text.

    Args:
        servers: one of them serves the model.
        folder: of the model, or its Hub name.
        name: as the config has it, for errors.
        tokenizer: of the model.
        width: number of its logits.

    Raises:
        ServerError: if the server is away or uses another tokenizer.
        ConfigError: naming `teacher.url`, if it serves other models.
    """

    def __init__(
        self,
        servers: Sequence[VLLMServer],
        folder: str,
        *,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        width: int,
    ) -> None:
        # context: tokens of a row, the generated one included
        self.server, self._served, self.context = find_model(servers, folder)
        self.name, self.width = name, width
        ids = self._sample_ids(tokenizer)
        self.sample = Question(ids=ids, columns=torch.arange(len(ids) - 1), k=SAMPLE_K)
        self.names_ids = self._can_name_ids()
        self._first = self.ask(self.sample)

    def ask(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            ServerError: if the row is too long for the server, or its reply is not what was asked for.
        """
        if len(question.ids) >= self.context:
            raise ServerError(
                f"A row has {len(question.ids)} tokens, but {self.server.url} takes {self.context - 1}: start it "
                f"with --max-model-len {len(question.ids) + 1}, or lower trajectory_tokens of the task."
            )
        reply = self.server.generate(question.ids, self._served, **question.sampling())
        if reply.get("model") != self._served:
            raise self.server.wrong_reply(f"scores of the model {self._served!r}", reply.get("model"))
        return read_answer(reply, question, self.width, self.server.wrong_reply)

    def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to several questions. The sample is sent with them to see that the model is the same.

        Raises:
            ServerError: also if another model answers than at the start.
        """
        now, *answers = self.server.map(self.ask, [self.sample, *questions])
        difference = self._first.difference(now)
        if difference > OTHER_MODEL:
            raise ServerError(
                f"{self.server.url} answers with another model than at the start: the log-probs of the same "
                f"{len(self.sample.ids)} tokens differ by {difference:.2f} nats in the mean. Restart it with "
                f"{self.name!r}, and the run."
            )
        return answers

    def _sample_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of the sample text, which tokenizer and server must agree on."""
        own = list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
        body: dict[str, Any] = {"model": self._served, "prompt": SAMPLE, "add_special_tokens": False}
        reply = self.server.post("/tokenize", body)
        served = reply.get("tokens") if isinstance(reply, dict) else reply
        if served != own:
            raise ServerError(
                f"{self.server.url} splits {SAMPLE[:20]!r} … into the ids {str(served)[:60]} …, the tokenizer of "
                f"{self.name!r} into {str(own)[:60]} …: the server has another vocabulary."
            )
        return own[:SAMPLE_TOKENS]

    def _can_name_ids(self) -> bool:
        """Does the server score ids that it is sent? Its answer to the shortest such question tells."""
        named = torch.zeros((1, 1), dtype=torch.long)
        try:
            self.ask(Question(ids=self.sample.ids[:2], columns=torch.zeros(1, dtype=torch.long), named=named))
        except ServerError as error:
            if error.status != 400:
                raise
            return False
        return True
