"""An environment behind an OpenEnv server as a text environment."""

import logging
import threading
import weakref
from dataclasses import replace
from typing import Any, Literal

from opdlight.bounds import FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt
from opdlight.envs.actions import action_counts
from opdlight.envs.base import FIRST_HELD_OUT_SEED, About, TextEnv, unknown_name
from opdlight.envs.openenv.actions import InadmissibleError, Reader, UnparsableError, reader_of
from opdlight.envs.openenv.observations import cut, default_text, parse_template
from opdlight.envs.openenv.server import check_url, describe, number_of_tasks
from opdlight.envs.openenv.session import Refused, Session, Unavailable, retry
from opdlight.envs.templates import PromptTemplate
from opdlight.errors import ConfigError, EnvError

SYSTEM_PROMPT = "{{ description }}\n\n{{ instructions }}"
REMEMBERED = 4096  # first observations that are kept to see whether the environment obeys its seed
_TOOL_REFUSALS = ("tool_not_found", "invalid_args")  # of OpenEnv's ToolErrorType: the call, not the tool, is at fault
log = logging.getLogger(__name__)


class OpenEnvEnv(TextEnv):
    """An environment of the OpenEnv hub, played through its server at `url`; each episode is a session of its own.

    The student's text becomes an action by the schema that the server publishes: a call of one of its tools, the text
    of the only (or the only required) field, or a JSON object of all fields; `action_field` names the field of the text
    instead. Text that is none, or that the environment refuses, costs a turn and is counted.
    `observation_template`: Jinja text of what the student sees, with the slots `observation`, `metadata` (dicts of the
    server), `reward` and `turn` (0: of the reset); null: the fields that say something (observations.py).
    `system_prompt`: Jinja text with the slots `description` (of the server) and `instructions` (how to act, with the
    tools); null: both.
    Rewards are those of the server, 0 where it gives none. The server ends the episode, and success is a reward of at
    least `success_reward` then: of the last step (success_by="last_reward") or summed over the episode
    (success_by="return"). With `ends_at_success` reaching it ends the episode, for servers that never do.
    `reset` holds further arguments of the server's reset. Its seed is that of the episode. An environment that ignores
    it cannot be played twice alike: a warning says so where a seed shows another beginning than before. Nobody but the
    server knows whether two seeds share a content; `training_split` and `held_out_split` keep them apart where it has
    OpenEnv's task API: each seed is a task of its side.
    A server that is away, or has no free session, is asked again `retries` times when an episode begins, and then the
    run ends; one that is lost during an episode, or does not answer within `timeout` seconds, ends that episode.
    """

    hidden_state = True  # only the server knows what differs between seeds
    source = "an OpenEnv server"
    licence = "its server's"
    packages = {"websockets": "openenv"}  # noqa: RUF012  TextEnv declares it so
    _seen: dict[tuple[str, str, int], int] = {}  # noqa: RUF012  shared: url, arguments, seed → hash of the beginning
    _unseeded: set[str] = set()  # noqa: RUF012  shared: the urls that were warned of
    _lock = threading.Lock()

    def __init__(
        self,
        url: str = "http://localhost:8000",
        max_turns: PositiveInt = 16,
        action_field: str | None = None,
        observation_template: str | None = None,
        system_prompt: str | None = None,
        success_by: Literal["last_reward", "return"] = "last_reward",
        success_reward: FiniteFloat = 1.0,
        ends_at_success: bool = False,
        reset: dict[str, Any] | None = None,
        training_split: str | None = None,
        held_out_split: str | None = None,
        timeout: PositiveFloat = 60.0,
        retries: NonNegativeInt = 5,
    ) -> None:
        super().__init__()
        if success_by not in ("last_reward", "return"):
            raise unknown_name("success_by", str(success_by), ("last_reward", "return"))
        self.url, self.max_turns, self.retries = check_url(url), max_turns, retries
        self._template = None if observation_template is None else parse_template(observation_template)
        self._by_return, self._success_reward = success_by == "return", success_reward
        self._ends_at_success, self._arguments = ends_at_success, dict(reset or {})
        description = describe(self.url, timeout, retries)
        self._reader: Reader = reader_of(description, action_field)
        slots = {"description": description.text, "instructions": self._reader.instructions}
        prompt = PromptTemplate(SYSTEM_PROMPT if system_prompt is None else system_prompt, [slots], key="system_prompt")
        self.system_prompt = prompt.render(**slots).strip() or None
        self._splits = (training_split, held_out_split)
        if training_split is not None or held_out_split is not None:
            self.training_episodes, self.held_out_episodes = self._episodes(timeout)
        self._session = Session(self.url, timeout)
        weakref.finalize(self, self._session.close)  # also of one that an abandoned episode leaves open

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode in a session of its own; `options` is not used.

        Raises:
            ConfigError: naming `url`, if the server stays away or has no free session.
            EnvError: if the environment cannot begin this episode.
        """
        super().reset(seed=seed)
        seed = self.episode_seed(seed)
        self._turn, self._return = 0, 0.0
        message = {**self._arguments, **self._task(seed), "seed": seed}
        try:
            answer, self._new_retries = retry(lambda: self._begin(message), self.url, self.retries)
        except Refused as error:
            raise EnvError(f"{self.url} cannot begin the episode of seed {seed} ({error.code}): {error}.") from error
        self._check_seed(seed, answer)
        return self._text(answer), {"metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the action that the text holds.

        Raises:
            EnvError: if the server is lost or does not answer; its session, and the episode with it, is over.
        """
        self._turn += 1
        reward, ended, reached = 0.0, False, False
        parsed, admissible = True, False
        try:
            answer = self._session.ask("step", self._reader.read(action))
        except UnparsableError as error:
            parsed = False
            text = f"{error} {self._how_to_act()}"
        except InadmissibleError as error:
            text = str(error)
        except Refused as error:
            if error.code not in ("VALIDATION_ERROR", "EXECUTION_ERROR"):  # the latter is how environments refuse
                raise EnvError(f"{self.url} refuses to go on ({error.code}): {error}.") from error
            text = f"That is not possible here: {error}"
        except Unavailable as error:
            raise EnvError(f"{self.url} (`url`) was lost in the middle of an episode: {error}.") from error
        else:
            text, reward, ended = self._text(answer), float(answer.get("reward") or 0.0), bool(answer.get("done"))
            admissible = not _tool_refused(answer)
            self._return += reward
            reached = (self._return if self._by_return else reward) >= self._success_reward
        terminated = ended or (reached and self._ends_at_success)
        truncated = not terminated and self._turn >= self.max_turns
        counts = action_counts(parsed=parsed, admissible=admissible)
        info: dict[str, Any] = {"metrics": {**counts, "server_retries": float(self._new_retries)}}
        self._new_retries = 0  # they were before this episode began
        if terminated or truncated:
            info["success"] = terminated and reached
            self._session.close()  # another episode may wait for it
        return cut(text), reward, terminated, truncated, info

    def close(self) -> None:
        """End the session."""
        self._session.close()

    @classmethod
    def about(cls, **arguments: Any) -> About:
        """The server is not asked."""
        return replace(super().about(**arguments), slow="asks its server, and again while there is none")

    def _begin(self, message: dict[str, Any]) -> dict[str, Any]:
        self._session.close()  # of an episode that was cut
        self._session.open()
        return self._session.ask("reset", message)

    def _how_to_act(self) -> str:
        return self._reader.instructions.splitlines()[-1]

    def _text(self, answer: dict[str, Any]) -> str:
        observation = answer.get("observation")
        if not isinstance(observation, dict):
            raise EnvError(f"Expected {self.url} to answer with an observation, but got {str(answer)[:200]!r}.")
        metadata = answer.get("metadata") or observation.get("metadata") or {}
        if self._template is None:
            return default_text(observation, metadata)
        reward = float(answer.get("reward") or 0.0)
        return cut(self._template.render(observation=observation, metadata=metadata, reward=reward, turn=self._turn))

    def _episodes(self, timeout: float) -> tuple[int, int]:
        """The numbers of training and held-out tasks."""
        training, held_out = self._splits
        if held_out is None or training == held_out:
            expected = "a split of its own, of which nothing is trained on"
            raise ConfigError.wrong("held_out_split", expected=expected, got=held_out)
        counts = {
            key: 0 if split is None else number_of_tasks(self.url, split, key, timeout, self.retries)
            for key, split in (("training_split", training), ("held_out_split", held_out))
        }
        return counts["training_split"], counts["held_out_split"]

    def _task(self, seed: int) -> dict[str, Any]:
        """The task of a seed, as the task API names it."""
        held_out = seed >= FIRST_HELD_OUT_SEED
        split = self._splits[held_out]
        count = self.held_out_episodes if held_out else self.training_episodes
        return (
            {}
            if split is None or not count
            else {"split": split, "index": (seed - held_out * FIRST_HELD_OUT_SEED) % count}
        )

    def _check_seed(self, seed: int, answer: dict[str, Any]) -> None:
        """Warn once of a server whose episode of a seed begins in another way than before."""
        key, first = (self.url, repr(self._arguments), seed), hash(repr(answer.get("observation")))
        with self._lock:
            before = self._seen.setdefault(key, first)
            while len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            if before == first or self.url in self._unseeded:
                return
            self._unseeded.add(self.url)
        log.warning(
            "%s began the episode of seed %d in two ways: its environment does not obey the seed. Runs cannot be "
            "repeated, the attempts of a group are at different episodes, and held-out ones may have been trained on.",
            self.url,
            seed,
        )


def _tool_refused(answer: dict[str, Any]) -> bool:
    error = answer["observation"].get("error")
    return isinstance(error, dict) and error.get("error_type") in _TOOL_REFUSALS
