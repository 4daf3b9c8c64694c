"""Answers of a model as actions of a Gymnasium action space, and back."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import EnumType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from opdlight.envs.base import UnicodeText, after_thinking, read_action
from opdlight.errors import ConfigError

KEY = "adapter.actions"


class Actions(ABC):
    """How the actions of a space are said."""

    rule: str  # what to do, after "Every turn, "
    names: tuple[str, ...] | None = None  # all actions, where they are few enough to be listed

    @abstractmethod
    def read(self, text: str) -> Any | None:
        """The action that an answer names; None if it names none."""

    @abstractmethod
    def name(self, action: Any) -> str:
        """The answer that stands for an action."""


def is_text(space: spaces.Space[Any]) -> bool:
    """True for a space of strings: Gymnasium's `Text`, opdlight's, or one with the data type str."""
    kind = None if space.dtype is None else np.dtype(space.dtype).kind
    return isinstance(space, spaces.Text | UnicodeText) or kind == "U"


def described(space: spaces.Space[Any]) -> str:
    """A space in a few words, without its bounds."""
    if isinstance(space, spaces.Dict):
        return f"a Dict of {', '.join(map(str, space))}"
    return f"a {type(space).__name__} of shape {space.shape}" if space.shape else str(space)


def actions_of(env: gymnasium.Env[Any, Any], names: Sequence[Any] | None) -> Actions:
    """The actions of `env` in words.

    Args:
        env: whose action space they are.
        names: of the actions of a `Discrete` space in order, None for those that are left out; for `MultiDiscrete` a
            list for each part. None: an Enum `actions` of the env names them, or they are text.

    Raises:
        ConfigError: if the names do not fit the space, or actions of this kind cannot be said.
    """
    space, who = env.action_space, type(env.unwrapped).__name__
    if is_text(space):
        if names is not None:
            raise ConfigError.wrong(KEY, expected=f"null, because the actions of {who} are text", got=names)
        return TextActions(space)
    if isinstance(space, spaces.Discrete):
        names = _enumerated(env.unwrapped, space) if names is None else names
        if names is None or len(names) != space.n or not all(isinstance(n, str | None) for n in names):
            expected = f"the names of the {space.n} actions of {who} in order (null leaves one out)"
            raise ConfigError.wrong(KEY, expected=expected, got=names)
        first = int(space.start)
        return NamedActions({_checked(n): first + i for i, n in enumerate(names) if n is not None}, names)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes = space.nvec.tolist()
        if names is None or [_size(part) for part in names] != sizes:
            expected = f"{len(sizes)} lists with the names of {', '.join(map(str, sizes))} actions, as {who} has them"
            raise ConfigError.wrong(KEY, expected=expected, got=names)
        return CombinedActions(space, names)
    raise ConfigError(
        f"The actions of {who} are {described(space)}, which cannot be said in words: opdlight plays Text, Discrete "
        "and MultiDiscrete of one dimension. Put a gymnasium.ActionWrapper around it, or write a TextEnv."
    )


class TextActions(Actions):
    """Texts: what follows the thinking, without blanks around it, if the space contains it."""

    def __init__(self, space: spaces.Space[str]) -> None:
        self.space = space
        self.rule = "answer with a text."
        if isinstance(space, spaces.Text):
            charset = "".join(sorted(space.character_set))
            self.rule = f"answer with {space.min_length} to {space.max_length} of these characters: {charset}"

    def read(self, text: str) -> str | None:
        """The text, if it is one of the space."""
        answer = after_thinking(text)
        return answer.strip() if answer is not None and self.space.contains(answer.strip()) else None

    def name(self, action: str) -> str:
        """The text itself."""
        return action


class NamedActions(Actions):
    """Actions of a `Discrete` space by name."""

    def __init__(self, numbers: dict[str, int], given: Sequence[str | None]) -> None:
        self.numbers = numbers
        self.names = tuple(numbers)
        if not numbers or len(numbers) < sum(name is not None for name in given):
            raise ConfigError.wrong(KEY, expected="one name or more, and no name twice", got=list(given))
        self.rule = f"answer with exactly one of these actions: {', '.join(self.names)}."

    def read(self, text: str) -> int | None:
        """The number of the action."""
        return self.numbers.get(read_action(text) or "")

    def name(self, action: Any) -> str:
        """The name of a number."""
        return next(name for name, number in self.numbers.items() if number == int(action))


class CombinedActions(Actions):
    """Actions of a `MultiDiscrete` space: a name for each part, separated by commas."""

    def __init__(self, space: spaces.MultiDiscrete, names: Sequence[Sequence[str]]) -> None:
        self.parts = [tuple(map(_checked, part)) for part in names]
        self.start, self.dtype = space.start, space.dtype
        if any(len(set(part)) < len(part) for part in self.parts) or "," in "".join(itertools.chain(*self.parts)):
            raise ConfigError.wrong(KEY, expected="no name twice in a list, and none with a comma", got=names)
        lists = "; ".join(", ".join(part) for part in self.parts)
        example = ", ".join(part[0] for part in self.parts)
        self.rule = f"answer with one of each of these, separated by commas, such as `{example}`: {lists}."

    def read(self, text: str) -> np.ndarray[Any, Any] | None:
        """The numbers of the named parts."""
        said = [word.strip() for word in (read_action(text) or "").split(",")]
        if len(said) != len(self.parts) or any(w not in part for w, part in zip(said, self.parts, strict=True)):
            return None
        numbers = [part.index(word) for word, part in zip(said, self.parts, strict=True)]
        return np.asarray(numbers + self.start, dtype=self.dtype)

    def name(self, action: Any) -> str:
        """The names of the parts, separated by commas."""
        numbers = (np.asarray(action) - self.start).tolist()
        return ", ".join(part[number] for part, number in zip(self.parts, numbers, strict=True))


def _checked(name: str) -> str:
    """A name as `read_action` reads it, so that it is found again."""
    read = read_action(name)
    if read is None:
        raise ConfigError.wrong(KEY, expected="names that an answer can spell", got=name)
    return read


def _size(part: object) -> int | None:
    """The number of names in a list; None if it is no list of names."""
    return len(part) if isinstance(part, list | tuple) and all(isinstance(name, str) for name in part) else None


def _enumerated(env: gymnasium.Env[Any, Any], space: spaces.Discrete) -> list[str] | None:
    """The names of the Enum `actions` that an env such as MiniGrid has, in the order of the space; None without one."""
    members = getattr(env, "actions", None)
    if not isinstance(members, EnumType):
        return None
    by_number = {m.value: name.lower().replace("_", " ") for name, m in dict[str, Any](members.__members__).items()}
    numbers = range(int(space.start), int(space.start + space.n))
    return [by_number[n] for n in numbers] if set(numbers) <= set(by_number) else None
