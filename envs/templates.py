"""Prompts word for word from a file: a Jinja template whose slots the environment fills.

A model that was trained on certain prompts is only known to act well on these, so their text is the user's to give.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from opdlight.errors import ConfigError, EnvError

# a line that holds only a block such as {% if … %} leaves no line behind
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


_GAME_TURN = r"""
{% if history %}
You have taken {{ history | length }} steps so far. The last {{ history[-2:] | length }} were:
{% for step in history[-2:] %}
[Observation {{ step.number }}: '{{ step.observation }}', Action {{ step.number }}: '{{ step.action }}']
{% endfor %}
{% endif %}
You are now at step {{ history | length + 1 }}. Your current observation is: {{ observation }}
Your admissible actions are:
['{{ admissible_actions | join("',\n'") }}']

First reason step by step about the situation, within <think> </think> tags. Then choose one admissible action and write it within <action> </action> tags.
"""  # noqa: E501


class Step(NamedTuple):
    """A past step, as a template sees it in the slot `history` of a task of several turns."""

    number: int  # from 1
    observation: str
    action: str  # as it was read; empty where the answer held none


class PromptTemplate:
    r"""A Jinja template with a fixed set of slots.

    Args:
        text: of the template. One newline at its very end is not part of the prompt: editors put it there.
        examples: slot → value, for the situations that the environment knows, such as its first turn and a later one;
            each is filled in at once, so that a mistake in the template is found before the first rollout.
        key: config key or argument that named it, for errors.
        required: slots that it must use, since a prompt without them would hide the task; it need not use the others.

    Raises:
        ConfigError: if the text is no template, names something that is no slot, lacks a required one, or cannot be
            filled.

    >>> PromptTemplate("Q: {{ question }}\n", [{"question": ""}]).render(question="1 + 1?")
    'Q: 1 + 1?'
    """

    def __init__(
        self,
        text: str,
        examples: Sequence[Mapping[str, Any]],
        *,
        key: str = "prompt_template",
        required: Collection[str] = (),
    ) -> None:
        try:
            used = meta.find_undeclared_variables(_JINJA.parse(text))
        except TemplateSyntaxError as error:
            expected = f"a Jinja template (line {error.lineno}: {error.message})"
            raise ConfigError.wrong(key, expected=expected, got=_line(text, error.lineno)) from error
        slots = {name for example in examples for name in example}
        for name in sorted(used - slots):
            near = difflib.get_close_matches(name, slots, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(slots))}"
            raise ConfigError.wrong(key, expected=f"a template with the slots of this environment ({hint})", got=name)
        for name in sorted(set(required) - used):
            raise ConfigError.wrong(key, expected=f"a template that uses the slot {name!r}", got=sorted(used))
        self._template, self._key = _JINJA.from_string(text), key
        self.examples, self.required = examples, required
        for example in examples:
            try:
                self.render(**example)
            except EnvError as error:
                raise ConfigError.wrong(key, expected=f"a template that can be filled ({error})", got="it") from error

    @classmethod
    def read(
        cls,
        path: str | Path,
        examples: Sequence[Mapping[str, Any]],
        *,
        key: str = "prompt_template",
        required: Collection[str] = (),
    ) -> "PromptTemplate":
        """The template in a UTF-8 file, whose path is relative to the folder in which the command was started.

        Raises:
            ConfigError: if there is no such file, and those of the class.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError.wrong(key, expected=f"a text file that can be read ({reason})", got=str(path)) from error
        return cls(text, examples, key=key, required=required)

    def render(self, **values: Any) -> str:
        """The prompt; `values` gives each slot.

        Raises:
            EnvError: if the template does with a value what cannot be done with it, such as a misspelt attribute.
        """
        try:
            return self._template.render(**values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise EnvError(f"`{self._key}` cannot be filled: {error}") from error


def game_template(opening: str, later: Mapping[str, Any]) -> PromptTemplate:
    """One turn of a text game as a complete prompt: task, last two steps, what is seen, what can be done.

    Args:
        opening: who the player is, and the slot `task`.
        later: the slots in a later turn, to try the template with.
    """
    return PromptTemplate(opening + _GAME_TURN, ({**later, "history": []}, later), required=["observation"])


def turn_template(own: PromptTemplate, prompt: str, path: str | None) -> PromptTemplate:
    """The template for the turns of an environment with a `paper` prompt: its `own`, or that in the file `path`.

    Raises:
        ConfigError: naming `prompt`, if a file is given beside another prompt, and those of `PromptTemplate.read`.
    """
    if path is None:
        return own
    if prompt != "paper":
        raise ConfigError.wrong("prompt", expected="'paper' beside `prompt_template`", got=prompt)
    return PromptTemplate.read(path, own.examples, required=own.required)


def _line(text: str, number: int) -> str:
    """Line `number` (from 1) of a text."""
    return "".join(text.splitlines()[number - 1 : number])
