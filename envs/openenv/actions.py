"""From the student's text to an action of an OpenEnv environment, by the schema that its server publishes."""

import json
import re
from abc import ABC, abstractmethod
from typing import Any

from opdlight.envs.base import after_thinking, unknown_name
from opdlight.envs.openenv.server import Description, Tool
from opdlight.errors import ConfigError

_FENCED = re.compile(r"```[\w+-]*\n(.*?)\n?```", flags=re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", flags=re.DOTALL)


class UnparsableError(Exception):
    """The text holds no action; the message tells the student so."""


class InadmissibleError(Exception):
    """The text holds an action that the environment does not have; the message tells the student so."""


class Reader(ABC):
    """Reads the actions of one form."""

    instructions: str  # tells the student how to act

    @abstractmethod
    def read(self, text: str) -> dict[str, Any]:
        """The data of a step message; raises UnparsableError or InadmissibleError."""


def reader_of(description: Description, field: str | None) -> Reader:
    """The reader for the actions of a server.

    An environment with tools takes calls of them. In any other the student's text is the field of the action that is
    named, or the only field, or the only required one; where several are required it is the whole action, as JSON.

    Args:
        description: what the server says.
        field: of the action that is the student's text; None: by the schema.

    Raises:
        ConfigError: naming `action_field`, if the action has no such field.
    """
    if description.tools is not None:
        if field is not None:
            raise ConfigError.wrong("action_field", expected="null, because the actions are calls of tools", got=field)
        return ToolCalls(description.tools)
    fields = {name: schema for name, schema in description.action["properties"].items() if name != "metadata"}
    if field is not None and field not in fields:
        raise unknown_name("action_field", field, fields)
    required = [name for name in description.action.get("required", ()) if name in fields]
    named = [field] if field else list(fields) if len(fields) == 1 else required
    return OneField(named[0], fields[named[0]]) if len(named) == 1 else JSONObject(fields)


class OneField(Reader):
    """The text is a field of the action: as it stands if that is a string, else as JSON, such as a number."""

    def __init__(self, name: str, schema: dict[str, Any]) -> None:
        self.name = name
        kinds = {schema.get("type"), *(option.get("type") for option in schema.get("anyOf", ()))} - {None, "null"}
        self.is_text = not kinds or "string" in kinds
        self.kind = " or ".join(sorted(map(str, kinds)))
        about = f" ({schema['description']})" if schema.get("description") else ""
        what = "the text" if self.is_text else f"a value of type {self.kind}"
        self.instructions = f"Every turn, answer with your action alone, {what} for `{name}`{about}."

    def read(self, text: str) -> dict[str, Any]:
        """The action with this one field."""
        action = _action_text(text)
        return {self.name: action if self.is_text else _json(action, f"a value of type {self.kind}")}


class JSONObject(Reader):
    """The text is the whole action, a JSON object."""

    def __init__(self, fields: dict[str, Any]) -> None:
        schema = json.dumps(fields, ensure_ascii=False)
        self.instructions = f"Every turn, answer with your action alone, a JSON object with these fields: {schema}"

    def read(self, text: str) -> dict[str, Any]:
        """The object."""
        return _object(_action_text(text))


class ToolCalls(Reader):
    """The text calls one tool: a JSON object with name and arguments, alone or between <tool_call> tags in a text."""

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        self.names = [tool.name for tool in tools]
        listed = (
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema} for tool in tools
        )
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed)
        # without the tags, which are control tokens of some models and would be encoded as ordinary text here
        self.instructions = (
            "You have these tools, one a line:\n"
            f"{lines}\n"
            'Every turn, call one of them: answer with a JSON object such as {"name": "…", "arguments": {"…": "…"}}.'
        )

    def read(self, text: str) -> dict[str, Any]:
        """The action that calls the tool."""
        calls = _TOOL_CALL.findall(after_thinking(text) or "")
        if len(calls) > 1:
            raise UnparsableError("Call one tool a turn.")
        call = _object(calls[0] if calls else _action_text(text))
        name, arguments = call.get("name"), call.get("arguments", {})
        if isinstance(arguments, str):  # as OpenAI's format has them
            arguments = _object(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise UnparsableError('A call has a "name" and an object of "arguments".')
        if name not in self.names:
            raise InadmissibleError(f"There is no tool {name!r}.")
        return {"type": "call_tool", "tool_name": name, "arguments": arguments}


def _action_text(text: str) -> str:
    """What follows the thinking, without a code fence around it or <action> tags."""
    rest = after_thinking(text)
    if rest is None:
        raise UnparsableError("The thinking does not end.")
    before, closed, _ = rest.rpartition("</action>")
    if closed and "<action>" in before:
        rest = before.rpartition("<action>")[2]
    fenced = _FENCED.fullmatch(rest.strip())
    action = fenced[1] if fenced else rest.strip()
    if not action:
        raise UnparsableError("The answer is empty.")
    return action


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnparsableError(f"The answer is not {what}.") from error


def _object(text: str) -> dict[str, Any]:
    fenced = _FENCED.fullmatch(text.strip())
    found = _json(fenced[1] if fenced else text, "a JSON object")
    if not isinstance(found, dict):
        raise UnparsableError("The answer is not a JSON object.")
    return found
