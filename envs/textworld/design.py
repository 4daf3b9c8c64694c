"""What the games of a task are to be like."""

from dataclasses import dataclass

GAMES = ("custom", "tw-simple", "tw-coin_collector", "tw-treasure_hunter")
LEVELS = {"tw-coin_collector": 300, "tw-treasure_hunter": 30}
REWARDS = ("dense", "balanced", "sparse")
OBJECTIVES = ("detailed", "brief", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The options of `tw-make`: those of the other kinds of games are not used."""

    game: str
    world_size: int  # rooms
    nb_objects: int  # at least
    quest_length: int  # commands that win
    level: int
    rewards: str
    objective: str

    @property
    def has_level(self) -> bool:
        """Whether the kind of game has levels."""
        return self.game in LEVELS
