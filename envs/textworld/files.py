"""Game files of one's own: compiled ones (.z8, with the .json that TextWorld writes beside it), or the .json alone."""

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from opdlight.envs.base import FIRST_HELD_OUT_SEED, on_side_of
from opdlight.envs.textworld.playthrough import Playthrough
from opdlight.envs.textworld.wording import tidy
from opdlight.envs.textworld.words import KNOWN_RULES, Play
from opdlight.errors import ConfigError

_loading = threading.Lock()
_STATUS_LINE = re.compile(r"\n>\s.*\Z", re.DOTALL)  # the prompt, and what a terminal would show at its top


class GameFiles(NamedTuple):
    """The files of training and of held-out seeds."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]

    def play(self, seed: int) -> Playthrough:
        """Start the game of the seed.

        Raises:
            ConfigError: if there is none on its side.
        """
        paths = self.held_out if seed >= FIRST_HELD_OUT_SEED else self.training
        if not paths:
            key = "held_out_games" if seed >= FIRST_HELD_OUT_SEED else "games"
            raise ConfigError.wrong(key, expected="a file of these seeds (one in four is held out)", got="none")
        path = paths[seed % len(paths)]
        with _loading:
            game = _load(path.with_suffix(".json"))
        return CompiledPlay(game, path) if path.suffix == ".z8" else Play(game)


def find_games(games: str | Sequence[str], held_out_games: str | Sequence[str] | None) -> GameFiles:
    """The files in folders or lists, sorted; without `held_out_games`, one in four of `games` by a hash of its .json.

    Raises:
        ConfigError: if a file is missing, is none of TextWorld's, or is on both sides.
    """
    training = _files("games", games)
    if held_out_games is None:
        held_out = tuple(p for p in training if on_side_of(FIRST_HELD_OUT_SEED, p.with_suffix(".json").read_text()))
        return GameFiles(tuple(path for path in training if path not in held_out), held_out)
    held_out = _files("held_out_games", held_out_games)
    if both := sorted({path.resolve() for path in training} & {path.resolve() for path in held_out}):
        raise ConfigError.wrong("held_out_games", expected="other files than `games`", got=str(both[0]))
    return GameFiles(training, held_out)


class CompiledPlay(Playthrough):
    """A playthrough whose words come from the compiled game, in the interpreter that TextWorld brings."""

    def __init__(self, game: Any, path: Path) -> None:
        from jericho import FrotzEnv

        super().__init__(game)
        self._machine = FrotzEnv(str(path))
        text = _own_words(self._machine.reset()[0])
        self.introduction = text[max(text.find("-= "), 0) :]  # without banner and goal

    def step(self, command: str) -> str | None:
        """Carry out a command in the compiled game, too, and give its words."""
        if command not in self._commands:
            return None
        self._read = _own_words(self._machine.step(command)[0])
        if self._read.startswith("Which do you mean"):  # two names that its parser cannot tell apart: nothing happened
            return self._read
        return super().step(command)

    def _say(self, command: str, action: Any, gained: int) -> str:
        return self._read


def _own_words(text: str) -> str:
    """What the game says, without status line and the interpreter's question at the end."""
    return tidy(_STATUS_LINE.sub("", text).partition("Would you like to RESTART")[0])


def _files(key: str, given: str | Sequence[str]) -> tuple[Path, ...]:
    names = [given] if isinstance(given, str) else list(given)
    paths: list[Path] = []
    for path in (Path(name).expanduser() for name in names):
        if not path.exists():
            raise ConfigError.wrong(key, expected="an existing folder or file", got=str(path))
        if path.is_dir():
            inside = sorted((*path.rglob("*.z8"), *path.rglob("*.json")))
            paths += [p for p in inside if p.suffix == ".z8" or not p.with_suffix(".z8").exists()]
        else:
            paths.append(path)
    if not paths:
        raise ConfigError.wrong(key, expected="a folder or a list with .z8 or .json files of TextWorld", got=given)
    for path in paths:
        if path.suffix not in (".z8", ".json"):
            raise ConfigError.wrong(key, expected="files that end in .z8 or .json", got=str(path))
        if not path.with_suffix(".json").is_file():
            expected = f"{path.stem}.json beside {path.name}, as tw-make writes it"
            raise ConfigError.wrong(key, expected=expected, got="none")
        if path.suffix == ".json":
            _check_rules(key, path)
    return tuple(paths)


def _check_rules(key: str, path: Path) -> None:
    """Raise ConfigError for a .json alone whose words only the compiled game knows."""
    with _loading:
        unknown = sorted(set(_load(path).kb.rules) - KNOWN_RULES)
    if unknown:
        expected = f"{path.with_suffix('.z8').name} beside a game with rules such as {unknown[0]!r}"
        raise ConfigError.wrong(key, expected=expected, got=str(path))


@lru_cache(maxsize=512)
def _load(path: Path) -> Any:
    import textworld

    try:
        return textworld.Game.load(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError.wrong("games", expected=f"a game of TextWorld ({error!r})", got=str(path)) from error
