"""Tasks as Gymnasium environments that speak text."""

import difflib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from opdlight.errors import ConfigError, NoExpertError

FIRST_HELD_OUT_SEED = 10**9  # training seeds lie below, held-out seeds from here on
_QUOTES = " \n\t\"'`\u2018\u2019\u201c\u201d"
HELD_OUT_SHARE = 4  # one content in this many is kept for held-out seeds


def on_side_of(seed: int, content: str) -> bool:
    """True if an episode of `seed` may show `content`: a hash gives every content to training or to held-out seeds.

    An env that redraws until this holds never trains on a question that it is evaluated on, however few there are.
    """
    return (zlib.crc32(content.encode()) % HELD_OUT_SHARE == 0) == (seed >= FIRST_HELD_OUT_SEED)


def redraw(seed: int, attempt: int) -> int:
    """The seed of the `attempt`-th draw for `seed`: itself at first, then a 31-bit hash of both."""
    return seed if attempt == 0 else zlib.crc32(f"{seed}/{attempt}".encode()) >> 1


def after_thinking(text: str) -> str | None:
    """The text after the last `</think>`; all of it if there is no thinking; None if the thinking is never closed."""
    _, _, rest = text.rpartition("</think>")
    if "<think>" in rest:
        return None
    return rest


def read_action(text: str, *, tags: bool = False) -> str | None:
    """The action in a completion, lower-case; None if there is none. All multi-turn games read actions with it.

    It is in the last `<action>…</action>` after the thinking; without `tags` the plain text after the thinking is one.
    Case, extra blanks, quotes around it and a final full stop are ignored.

    >>> read_action("<think>Go.</think><action>Move  Left.</action>"), read_action("'go to cabinet 1'.")
    ('move left', 'go to cabinet 1')
    """
    rest = after_thinking(text)
    if rest is None:
        return None
    before, closed, _ = rest.rpartition("</action>")
    _, opened, tagged = before.rpartition("<action>")
    if not (closed and opened) and (tags or "<action>" in rest):
        return None
    action = tagged.partition("</action>")[0] if closed and opened else rest
    return " ".join(action.strip().strip(_QUOTES).removesuffix(".").strip(_QUOTES).lower().split()) or None


def unknown_name(key: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `known`; it names the nearest one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"a known name (did you mean {near[0]!r}?)" if near else f"one of {', '.join(names)}"
    return ConfigError.wrong(key, expected=hint, got=got)


class UnicodeText(spaces.Space[str]):
    """Any Unicode string of at most `max_length` characters (Gymnasium's own Text space knows alphanumerics only)."""

    def __init__(self, max_length: int = 65_536, seed: int | None = None) -> None:
        self.max_length = max_length
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string, Unicode beyond ASCII included."""
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz 0123456789\\{}<>=+-éß中→"))
        length = int(self.np_random.integers(0, min(self.max_length, 24) + 1))
        return "".join(self.np_random.choice(letters, size=length))

    def contains(self, x: Any) -> bool:
        """True for a string that UTF-8 can encode and that is not too long."""
        if not isinstance(x, str) or len(x) > self.max_length:
            return False
        return not any("\ud800" <= c <= "\udfff" for c in x)

    def __repr__(self) -> str:
        return f"UnicodeText(max_length={self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What `python -m opdlight.tasks` lists of an environment with certain arguments.

    Args:
        source: where its episodes come from: "generated" (from the seed), the name of a data set, "original files", …
        licence: of these and of the package that plays them.
        expert: whether there is one.
        finite: whether it has a finite set of episodes; None: not known before an environment is made.
        missing: what it needs and this machine does not have, in a few words each, such as "$WEBSHOP_DATA".
        slow: what takes long when an environment is made, such as "downloads the rows"; empty if nothing does.
    """

    source: str
    licence: str
    expert: bool
    finite: bool | None = None
    missing: tuple[str, ...] = ()
    slow: str = ""


class TextEnv(gymnasium.Env[str, str]):
    """A task: observations and actions are strings.

    `reset(seed=…)` must make the whole episode a function of the seed and the actions. `step` never raises on a bad
    action: it costs a step and is counted in `info["metrics"]`, a flat dict of floats, summed over the episode. An env
    of several turns counts every action with `actions.action_counts`.
    When an episode ends, `info["success"]` says whether the task was solved; `terminated` means the task itself ended,
    `truncated` that a limit cut it. Rewards are 0 or 1 at the end unless a task says otherwise.

    An env over a finite set says how many episodes each side has: so many consecutive seeds from 0 on show every
    training episode once, and from `FIRST_HELD_OUT_SEED` on every held-out one; then they come again. Training then
    walks through them in a new order each epoch.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium declares it so
    system_prompt: str | None = None  # the conversation begins with it
    training_episodes: int | None = None  # how many there are; None: a new one for every seed; 0: only held-out ones
    held_out_episodes: int | None = None
    max_turns: int = 1  # every episode is over after so many steps; an env of several turns sets it
    fresh_prompt: bool = False  # True: each observation is a complete prompt and the conversation starts anew
    hidden_state: bool = False  # True: what differs between seeds is not seen in the first observation
    # for `about`, which lists the task:
    source: str = ""  # where its episodes come from; "generated": a new one for every seed
    licence: str = ""  # of these and of the package that plays them
    packages: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()

    def expert_action(self) -> str:
        """The text an expert would answer now; raises NoExpertError where there is none."""
        raise NoExpertError(f"{type(self).__name__} has no expert. Implement expert_action() to demonstrate the task.")

    @classmethod
    def about(cls, **arguments: Any) -> About:
        """What to list of the environment that has these arguments, which may be incomplete.

        It makes no environment, imports none of its packages and downloads nothing. An env whose episodes depend on its
        arguments overrides it.
        """
        absent = [extra for module, extra in cls.packages.items() if find_spec(module) is None]
        return About(
            source=cls.source,
            licence=cls.licence,
            expert=cls.expert_action is not TextEnv.expert_action,
            finite=False if cls.source == "generated" else None,
            missing=tuple(f"extra {extra}" for extra in dict.fromkeys(absent)),
        )

    def episode_seed(self, seed: int | None) -> int:
        """The seed of an episode: that of `reset`, after `super().reset(seed=seed)`; else one of training is drawn."""
        return int(self.np_random.integers(FIRST_HELD_OUT_SEED)) if seed is None else seed

    def reply(self, command: str) -> str:
        """The text of an answer that plays `command`, in the form that the prompt asks for; here the command alone."""
        return command

    def prepare(self, seed: int) -> None:
        """A hint that `reset(seed=seed)` follows, in this env or another of its class: build what is slow. Optional."""
