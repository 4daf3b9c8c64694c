"""From chat messages to token ids, turn by turn; tokens that the student sampled are never tokenised again."""

import inspect
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from opdlight.config.values import hint
from opdlight.errors import ConfigError
from opdlight.rollout.control_tokens import MODEL_MARKS, ControlTokens, Placeholders
from opdlight.rollout.engines.base import Completion

OPEN, CLOSE = "<think>", "</think>"
MARK = "\U0010ffff"  # a noncharacter, which occurs in no text: what follows it was written by the template
# arguments that transformers or the renderer gives the template
RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"tools", "documents"}


class ChatRenderer:
    """Renders conversations with the chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        arguments: further arguments of the template, such as `enable_thinking`.
        key: config key of `arguments`, for errors; without its ending `chat_template` it is the key of the model.

    Raises:
        ConfigError: if there is no template, or if it does not use one of the arguments.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        arguments: Mapping[str, Any] | None = None,
        key: str = "model.student.chat_template",
    ) -> None:
        self.owner = re.sub("[._]chat_template$", "", key)
        if not tokenizer.chat_template:
            raise ConfigError.wrong(
                self.owner, expected="a model whose tokenizer has a chat template", got=tokenizer.name_or_path
            )
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self.control = ControlTokens(tokenizer)
        names = set(re.findall(r"[A-Za-z_]\w*", str(tokenizer.chat_template)))
        for name in self.arguments:
            if name in RESERVED:
                raise ConfigError(f"Unknown key `{key}.{name}`: the renderer itself sets it.")
            if name not in names:
                raise ConfigError(
                    f"Unknown key `{key}.{name}`: the chat template of {tokenizer.name_or_path!r} does not use it. "
                    + hint(name, _arguments(tokenizer), prefix=f"{key}.")
                )

    def start(self, system_prompt: str | None, observation: str, *, fresh_prompt: bool = False) -> "Conversation":
        """Begin a `Conversation` whose first user message is `observation`."""
        return Conversation(self, system_prompt, observation, fresh_prompt=fresh_prompt)

    def render(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        """The conversation as text; with `generation_prompt` it ends where the assistant's next answer begins.

        Raises:
            ConfigError: if the template refuses the messages.
        """
        how: dict[str, Any] = {**self.arguments, "tokenize": False, "add_generation_prompt": generation_prompt}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **how))
        except TemplateError as error:
            roles = [m["role"] for m in messages]
            raise ConfigError(
                f"The chat template of `{self.owner}` cannot render the roles {roles}: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered text; the template has written the special tokens, so none are added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, completion: Completion) -> str:
        """The completion as text, special tokens included, but without the stop token at its end."""
        ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def opened_thought(self, messages: list[dict[str, str]], text: str) -> str:
        """The `<think>` at the end of the prompt `text`, rendered from `messages`; empty if the template wrote none."""
        if OPEN not in text:
            return ""
        _, _, after = self.render([*messages[:-1], {**messages[-1], "content": MARK}]).rpartition(MARK)
        _, opened, rest = after.rpartition(OPEN) if text.endswith(after) else ("", "", "")
        return "" if CLOSE in rest else opened + rest

    @cached_property
    def turn_end(self) -> int | None:
        """The control token with which the template ends the assistant's turn; None if there is none."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            _, _, after = self.render(messages, generation_prompt=False).rpartition("answer")
        except ConfigError:  # the template needs other roles
            return None
        first = self.encode(after.lstrip())[:1]
        return first[0] if first and first[0] in self.control.contents else None

    def encode_reply(self, reply: str, conversation: "Conversation", end: int | None = None) -> list[int]:
        """The ids that a model would have to sample to answer `reply` in this conversation, its `end` token included.

        By default the end is the template's, or the end of sequence where the template has none. If the prompt ends
        with an opened thought, a thought at the beginning of the reply continues it, and a reply without one closes it.
        """
        if conversation.opened_thought:
            thought = reply.lstrip()
            if thought.startswith(OPEN):
                reply = thought.removeprefix(OPEN).removeprefix(conversation.opened_thought.removeprefix(OPEN))
            else:
                reply = f"\n{CLOSE}\n\n{reply}"
        placeholders = Placeholders()
        text, _ = self.control.escape(reply, placeholders, spared=MODEL_MARKS)
        ends = [i for i in (end, self.turn_end, self.tokenizer.eos_token_id) if i is not None]
        return [*self.control.encode(text, placeholders), *ends[:1]]


class Conversation:
    """The messages of one trajectory, and the ids of its next prompt.

    As long as each rendered text begins with the one before, the next prompt is
        previous prompt ids + completion ids + ids of the bridge,
    where the bridge is what the template writes between the completion and the next answer: the end of the assistant's
    turn, the observation, the start of the next answer. If the student sampled a stop token, it is the first token of
    the bridge and is not repeated; after a completion cut by length the bridge keeps its end-of-turn token.
    If the template rewrites earlier turns (it strips <think>, trims blanks, or ends a turn with another token than the
    sampled one), the prompt is encoded anew from the rendered text: the trajectory continues in a new training row, and
    `splits` counts these.

    Only the template writes control tokens. One that is spelled in an observation, a system prompt or, in a rewritten
    history, an answer of the assistant is encoded as ordinary text, except the marks of thinking and tool calls in an
    answer. `spelled` counts those in observations and system prompts.

    Args:
        renderer: renders the messages.
        system_prompt: of the environment, if it has one.
        observation: the first user message.
        fresh_prompt: every observation is a complete prompt, so each turn begins a new conversation and counts as a
            split.
    """

    def __init__(
        self, renderer: ChatRenderer, system_prompt: str | None, observation: str, *, fresh_prompt: bool
    ) -> None:
        self.renderer, self.fresh_prompt = renderer, fresh_prompt
        self.splits = self.spelled = 0
        self._placeholders = Placeholders()
        self._opening_messages = [] if system_prompt is None else [self._message("system", system_prompt)]
        self._begin(observation)

    def _message(self, role: str, content: str) -> dict[str, str]:
        escaped, count = self.renderer.control.escape(content, self._placeholders)
        self.spelled += count
        return {"role": role, "content": escaped}

    def _begin(self, observation: str) -> None:
        self._messages = [*self._opening_messages, self._message("user", observation)]
        self._set_text(self.renderer.render(self._messages))
        self.prompt_ids = self._encode(self._text)

    def _set_text(self, text: str) -> None:
        self._text, self.opened_thought = text, self.renderer.opened_thought(self._messages, text)

    def _encode(self, text: str) -> list[int]:
        return self.renderer.control.encode(text, self._placeholders)

    def answer_text(self, completion: Completion) -> str:
        """The assistant's turn as text: the thought that the prompt has opened, if any, and the completion."""
        return self.opened_thought + self.renderer.decode(completion)

    def advance(self, completion: Completion, observation: str) -> list[int]:
        """The prompt ids of the next turn, after the student's `completion` and the environment's `observation`."""
        if self.fresh_prompt:
            self.splits += 1
            self._begin(observation)
            return self.prompt_ids
        answer, _ = self.renderer.control.escape(
            self.renderer.decode(completion), self._placeholders, spared=MODEL_MARKS
        )
        before, user = self._text + answer, self._message("user", observation)
        # a template that opens a thought may or may not write its <think> again when it renders the past turn
        answers = [self.opened_thought + answer, answer] if self.opened_thought else [answer]
        histories = [[*self._messages, {"role": "assistant", "content": content}, user] for content in answers]
        texts = [self.renderer.render(messages) for messages in histories]
        chosen = next((i for i, text in enumerate(texts) if text.startswith(before)), 0)
        self._messages = histories[chosen]
        self._set_text(texts[chosen])
        bridge = self._encode(self._text[len(before) :]) if self._text.startswith(before) else []
        stopped = completion.finish_reason == "stop" and bool(completion.token_ids)
        if not bridge or (stopped and bridge[0] != completion.token_ids[-1]):
            self.splits += 1
            self.prompt_ids = self._encode(self._text)
        else:
            self.prompt_ids = [*self.prompt_ids, *completion.token_ids, *bridge[stopped:]]
        return self.prompt_ids


class _Generation(Extension):
    """Lets Jinja parse the tag `generation`, with which transformers marks the assistant's words."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _arguments(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The variables that a chat template reads, without those that transformers or the renderer sets."""
    template = tokenizer.get_chat_template()
    environment = Environment(extensions=[_Generation, loopcontrols])  # only parses
    given = {"messages", "raise_exception", "strftime_now", *RESERVED, *tokenizer.special_tokens_map}
    return meta.find_undeclared_variables(environment.parse(template)) - given
