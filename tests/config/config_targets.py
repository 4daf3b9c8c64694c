"""Small targets for the config tests, and an entry point over them: `python -m config_targets <conf folder> …`."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opdlight.config import hydra_entry
from opdlight.config.values import Node
from opdlight.errors import ConfigError

if TYPE_CHECKING:
    from nowhere import Nothing


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    width: int
    name: str = "inner"


@dataclass(frozen=True, kw_only=True)
class Small:
    k: int
    scale: float = 1.0
    kind: Literal["first", "every"] = "first"
    fail: Literal["no", "config", "bug"] = "no"

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError.wrong("loss.k", expected="at least 0", got=self.k)


class Wide:
    def __init__(
        self,
        a: int,
        flag: bool = False,
        items: Sequence[int | str] = (),
        table: Mapping[str, float] | None = None,
        inner: Inner | None = None,
        parts: "list[Small] | None" = None,
        hook: Callable[[], None] | str | None = None,
    ) -> None: ...


class Unresolvable:
    def __init__(self, a: int, other: "Nothing | None" = None) -> None: ...


class Constant:
    pass


def open_ended(a: int, *rest: int, **more: Any) -> None: ...


NOT_CALLABLE = 3


@dataclass(frozen=True, kw_only=True)
class Rollout:
    groups: int
    group_size: int = 2


@dataclass(frozen=True, kw_only=True)
class Top:
    seed: int
    run_dir: str
    loss: Node
    rollout: Rollout
    extras: dict[str, Node] = field(default_factory=dict)
    again: int | None = None


def run(cfg: Any) -> float:
    """Print what arrived."""
    from hydra.utils import instantiate

    loss = instantiate(cfg.loss)
    if loss.fail == "config":
        raise ConfigError("the run is told to stop")
    if loss.fail == "bug":
        raise RuntimeError("a bug")
    print(f"ran k={loss.k} in {os.path.basename(os.getcwd())} writes to {cfg.run_dir}")
    return 0.0


if __name__ == "__main__":
    hydra_entry("main", Top, conf=Path(sys.argv.pop(1)))(run)()
