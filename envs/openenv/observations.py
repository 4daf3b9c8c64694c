"""Observations of an OpenEnv environment as text: by a template of the config, or by a rule that fits many."""

import json
from collections.abc import Mapping
from typing import Any

from opdlight.envs.templates import PromptTemplate

LONGEST = 65_536  # characters; what is longer is cut, and no text space has more
CUT = " … (cut)"
NOTHING = "There is nothing to see."
_NOT_SHOWN = frozenset({"metadata", "tool_name", "done", "reward"})


class _Anything(dict[Any, Any]):
    """Stands for an observation that is not known yet: it has every key, and so have these."""

    def __missing__(self, key: Any) -> "_Anything":
        return _Anything()


def parse_template(text: str) -> PromptTemplate:
    """The template of the key `observation_template`; its slots are `observation`, `metadata`, `reward` and `turn`.

    Raises:
        ConfigError: as PromptTemplate does.
    """
    slots = {"observation": _Anything(), "metadata": _Anything(), "reward": 0.0, "turn": 0}
    return PromptTemplate(text, [slots], key="observation_template")


def default_text(observation: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    r"""The fields that say something: the only one alone, several as lines `name: value`, values in JSON unless text.

    Of a tool's result the text is shown; where no field says anything, the metadata.

    >>> default_text({"board": "..x", "hint": "", "left": 3}, {}), default_text({"text": "Go on."}, {"turn": 1})
    ('board: ..x\nleft: 3', 'Go on.')
    """
    for source in (observation, metadata):
        shown = {name: _value(value) for name, value in source.items() if name not in _NOT_SHOWN}
        told = {name: text for name, text in shown.items() if text.strip()}
        if len(told) == 1:
            return cut(next(iter(told.values())))
        if told:
            return cut("\n".join(f"{name}: {text}" for name, text in told.items()))
    return NOTHING


def cut(text: str) -> str:
    """At most LONGEST characters of a text, and never a blank one."""
    text = text if text.strip() else NOTHING
    return text if len(text) <= LONGEST else text[: LONGEST - len(CUT)] + CUT


def _value(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), list):  # the result of a tool, as MCP has it
        texts = [part["text"] for part in value["content"] if isinstance(part, dict) and part.get("type") == "text"]
        if texts:
            return "\n".join(map(str, texts))
    if isinstance(value, dict) and set(value) == {"error_type", "message"}:
        return str(value["message"])
    return json.dumps(value, ensure_ascii=False)
