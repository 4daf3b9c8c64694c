"""Chat messages → token ids, turn by turn, without ever tokenising again what the student sampled."""

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from opdlight.errors import ConfigError
from opdlight.rollout.engine import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatRenderer:
    """Renders conversations with a tokenizer's own chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise ConfigError.wrong(
                "model.student", expected="a model whose tokenizer has a chat template", got=tokenizer.name_or_path
            )
        self.tokenizer = tokenizer

    def start(self, system_prompt: str | None, observation: str, *, fresh_prompt: bool = False) -> "Conversation":
        """A conversation whose first user message is `observation`. See `Conversation` for `fresh_prompt`."""
        return Conversation(self, system_prompt, observation, fresh_prompt=fresh_prompt)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation as text, up to where the assistant's next answer begins."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = [m["role"] for m in messages]
            raise ConfigError(
                f"The chat template of `model.student` cannot render the roles {roles}: {error}"
            ) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of template text. The template writes special tokens itself, so none are added here."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, completion: Completion) -> str:
        """The completion as text: special tokens are kept, but not the stop token that ended it."""
        ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Conversation:
    """One trajectory's messages and the ids of its next prompt.

    While the rendered text only grows, the next prompt is
        previous prompt ids + completion ids + ids of the bridge,
    where the bridge is what the template puts between the completion and the next answer: the end of the assistant's
    turn, the observation, the start of the next answer. A stop token that was sampled is the first of these and is not
    repeated; after a completion cut by length the whole bridge, end-of-turn marker included, is the environment's.
    Where the template rewrites history (it strips <think>, trims blanks, or ends a turn with another token than the
    one sampled), everything is rendered again: the trajectory goes on in a new training row, and `splits` counts it.

    With `fresh_prompt` every observation is a complete prompt, so each turn starts over (and counts as a split).
    """

    def __init__(
        self, renderer: ChatRenderer, system_prompt: str | None, observation: str, *, fresh_prompt: bool
    ) -> None:
        self.renderer, self.fresh_prompt = renderer, fresh_prompt
        self.splits = 0
        self._opening = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._begin(observation)

    def _begin(self, observation: str) -> None:
        self._messages = [*self._opening, {"role": "user", "content": observation}]
        self._text = self.renderer.render(self._messages)
        self.prompt_ids = self.renderer.encode(self._text)

    def advance(self, completion: Completion, observation: str) -> list[int]:
        """The prompt ids of the next turn, after the student's `completion` and the environment's `observation`."""
        if self.fresh_prompt:
            self.splits += 1
            self._begin(observation)
            return self.prompt_ids
        answer = self.renderer.text(completion)
        self._messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": observation}]
        before, self._text = self._text + answer, self.renderer.render(self._messages)
        bridge = self.renderer.encode(self._text[len(before) :]) if self._text.startswith(before) else []
        stopped = completion.finish_reason == "stop" and bool(completion.token_ids)
        if not bridge or (stopped and bridge[0] != completion.token_ids[-1]):
            self.splits += 1
            self.prompt_ids = self.renderer.encode(self._text)
        else:
            self.prompt_ids = [*self.prompt_ids, *completion.token_ids, *bridge[stopped:]]
        return self.prompt_ids
