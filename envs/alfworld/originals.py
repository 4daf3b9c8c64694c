"""ALFWorld's own games, as `alfworld-download` leaves them below $ALFWORLD_DATA."""

import json
import os
from functools import lru_cache
from pathlib import Path

from opdlight.envs.alfworld.game import GameFile
from opdlight.errors import ConfigError

SPLITS = ("train", "valid_seen", "valid_unseen")
GAME, TRAJECTORY = "game.tw-pddl", "traj_data.json"


def split_folder(split: str) -> Path:
    """Where the games of a split lie, below $ALFWORLD_DATA."""
    return Path(os.environ.get("ALFWORLD_DATA", "~/.cache/alfworld")).expanduser() / "json_2.1.1" / split


def find_games(split: str, task_types: tuple[str, ...]) -> tuple[Path, ...]:
    """The folders of the solvable games of these task types, sorted; raises ConfigError if there are none."""
    root = split_folder(split)
    games = _solvable_games(root, task_types)
    if not games:
        expected = f"a folder with json_2.1.1/{split}/…/{GAME} of these task types (run alfworld-download)"
        raise ConfigError.wrong("ALFWORLD_DATA", expected=expected, got=str(root))
    return games


def read_game(folder: Path) -> GameFile:
    """Read one game folder."""
    game = json.loads((folder / GAME).read_text())
    trajectory = json.loads((folder / TRAJECTORY).read_text())
    return GameFile(
        domain=game["pddl_domain"],
        grammar=game["grammar"],
        problem=game["pddl_problem"],
        task_type=trajectory["task_type"],
        targets={key: value for key, value in trajectory["pddl_params"].items() if isinstance(value, str)},
    )


@lru_cache(maxsize=16)
def _solvable_games(root: Path, task_types: tuple[str, ...]) -> tuple[Path, ...]:
    """ALFWorld's own selection: neither movable receptacles nor slicing, known to be solvable."""
    return tuple(
        path.parent
        for path in sorted(root.rglob(GAME))
        if "movable" not in str(path)
        and "Sliced" not in str(path)
        and json.loads((path.parent / TRAJECTORY).read_text())["task_type"] in task_types
        and json.loads(path.read_text()).get("solvable")
    )
