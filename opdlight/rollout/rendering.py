"""Chat messages → token ids, turn by turn, without ever tokenising again what the student sampled."""

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
from opdlight.rollout.control_tokens import OWN_MARKS, ControlTokens, StandIns
from opdlight.rollout.engines.base import Completion

OPEN, CLOSE = "<think>", "</think>"
STAND_IN = "\U0010ffff"  # no character, so no text holds it: what a template writes behind it is the template's own
RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"tools", "documents"}


class ChatRenderer:
    """Renders conversations with a tokenizer's own chat template.

    Args:
        tokenizer: with a chat template.
        arguments: what the template is given beside the messages, such as `enable_thinking`.
        key: config key of the arguments, for errors; before its `chat_template` it names the model.

    Raises:
        ConfigError: without a template, and for an argument that the template does not mention.
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
        """A conversation whose first user message is `observation`. See `Conversation` for `fresh_prompt`."""
        return Conversation(self, system_prompt, observation, fresh_prompt=fresh_prompt)

    def render(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        """The conversation as text, with `generation_prompt` up to where the assistant's next answer begins."""
        how: dict[str, Any] = {**self.arguments, "tokenize": False, "add_generation_prompt": generation_prompt}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **how))
        except TemplateError as error:
            roles = [m["role"] for m in messages]
            raise ConfigError(
                f"The chat template of `{self.owner}` cannot render the roles {roles}: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of template text. The template writes special tokens itself, so none are added here."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, completion: Completion) -> str:
        """The completion as text: special tokens are kept, but not the stop token that ended it."""
        ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def opening(self, messages: list[dict[str, str]], text: str) -> str:
        """The `<think>` that the prompt `text` of these messages opens for the assistant; empty if it opens none."""
        if OPEN not in text:
            return ""
        _, _, after = self.render([*messages[:-1], {**messages[-1], "content": STAND_IN}]).rpartition(STAND_IN)
        _, opened, rest = after.rpartition(OPEN) if text.endswith(after) else ("", "", "")
        return "" if CLOSE in rest else opened + rest

    @cached_property
    def turn_end(self) -> int | None:
        """The control token that the template writes after the assistant's words; None if it writes none there."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            _, _, after = self.render(messages, generation_prompt=False).rpartition("answer")
        except ConfigError:  # of a template that wants other roles nothing is known
            return None
        first = self.encode(after.lstrip())[:1]
        return first[0] if first and first[0] in self.control.contents else None

    def written(self, reply: str, conversation: "Conversation", end: int | None = None) -> list[int]:
        """Ids of a turn in which the assistant says `reply`, as a model would have to sample them, and of its `end`.

        The end is the template's, or the end of sequence where it has none. Where the prompt has opened a thought, the
        reply's own is its continuation, and a reply without one ends it.
        """
        if conversation.opening:
            thought = reply.lstrip()
            if thought.startswith(OPEN):
                reply = thought.removeprefix(OPEN).removeprefix(conversation.opening.removeprefix(OPEN))
            else:
                reply = f"\n{CLOSE}\n\n{reply}"
        stand_ins = StandIns()
        text, _ = self.control.escape(reply, stand_ins, spared=OWN_MARKS)
        ends = [i for i in (end, self.turn_end, self.tokenizer.eos_token_id) if i is not None]
        return [*self.control.encode(text, stand_ins), *ends[:1]]


class Conversation:
    """One trajectory's messages and the ids of its next prompt.

    While the rendered text only grows, the next prompt is
        previous prompt ids + completion ids + ids of the bridge,
    where the bridge is what the template puts between the completion and the next answer: the end of the assistant's
    turn, the observation, the start of the next answer. A stop token that was sampled is the first of these and is not
    repeated; after a completion cut by length the whole bridge, end-of-turn marker included, is the environment's.
    Where the template rewrites history (it strips <think>, trims blanks, or ends a turn with another token than the
    one sampled), everything is rendered again: the trajectory goes on in a new training row, and `splits` counts it.

    Control tokens are the template's alone: where an observation, a system prompt or, in a rewritten history, the
    assistant's own words spell one, they are encoded as ordinary text (the assistant's marks of thinking and tool calls
    are its own). `spelled` counts those of the environment.

    With `fresh_prompt` every observation is a complete prompt, so each turn starts over (and counts as a split).
    """

    def __init__(
        self, renderer: ChatRenderer, system_prompt: str | None, observation: str, *, fresh_prompt: bool
    ) -> None:
        self.renderer, self.fresh_prompt = renderer, fresh_prompt
        self.splits = self.spelled = 0
        self._stand_ins = StandIns()
        self._opening_messages = [] if system_prompt is None else [self._message("system", system_prompt)]
        self._begin(observation)

    def _message(self, role: str, content: str) -> dict[str, str]:
        escaped, count = self.renderer.control.escape(content, self._stand_ins)
        self.spelled += count
        return {"role": role, "content": escaped}

    def _begin(self, observation: str) -> None:
        self._messages = [*self._opening_messages, self._message("user", observation)]
        self._show(self.renderer.render(self._messages))
        self.prompt_ids = self._encode(self._text)

    def _show(self, text: str) -> None:
        self._text, self.opening = text, self.renderer.opening(self._messages, text)

    def _encode(self, text: str) -> list[int]:
        return self.renderer.control.encode(text, self._stand_ins)

    def said(self, completion: Completion) -> str:
        """The assistant's whole turn as text: the `<think>` that the prompt has opened, and the completion."""
        return self.opening + self.renderer.text(completion)

    def advance(self, completion: Completion, observation: str) -> list[int]:
        """The prompt ids of the next turn, after the student's `completion` and the environment's `observation`."""
        if self.fresh_prompt:
            self.splits += 1
            self._begin(observation)
            return self.prompt_ids
        answer, _ = self.renderer.control.escape(self.renderer.text(completion), self._stand_ins, spared=OWN_MARKS)
        before, user = self._text + answer, self._message("user", observation)
        # a template that opens thoughts either shows past ones as they are or writes their <think> itself
        ways = [self.opening + answer, answer] if self.opening else [answer]
        histories = [[*self._messages, {"role": "assistant", "content": way}, user] for way in ways]
        texts = [self.renderer.render(messages) for messages in histories]
        way = next((i for i, text in enumerate(texts) if text.startswith(before)), 0)
        self._messages = histories[way]
        self._show(texts[way])
        bridge = self._encode(self._text[len(before) :]) if self._text.startswith(before) else []
        stopped = completion.finish_reason == "stop" and bool(completion.token_ids)
        if not bridge or (stopped and bridge[0] != completion.token_ids[-1]):
            self.splits += 1
            self.prompt_ids = self._encode(self._text)
        else:
            self.prompt_ids = [*self.prompt_ids, *completion.token_ids, *bridge[stopped:]]
        return self.prompt_ids


class _Generation(Extension):
    """Lets Jinja parse the tag of transformers around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _arguments(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What a chat template reads beside what transformers and the renderer give it."""
    template = tokenizer.get_chat_template()
    environment = Environment(extensions=[_Generation, loopcontrols])  # it parses and renders nothing
    given = {"messages", "raise_exception", "strftime_now", *RESERVED, *tokenizer.special_tokens_map}
    return meta.find_undeclared_variables(environment.parse(template)) - given
