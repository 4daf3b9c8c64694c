"""One line that tells the author of a task whether it keeps the rules: `check_text_env(lambda: MyEnv())`."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium
from gymnasium.utils.env_checker import check_env

from opdlight.envs.actions import ADMISSIBLE, INADMISSIBLE, INEFFECTIVE, UNPARSABLE
from opdlight.envs.base import FIRST_HELD_OUT_SEED, TextEnv, UnicodeText
from opdlight.envs.wrapped import text_env
from opdlight.errors import ConfigError, EnvError, NoExpertError

SEEDS = (0, 1, FIRST_HELD_OUT_SEED, 2 * 10**9)
BAD_ACTIONS = (
    "",
    " \n\t ",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{1",
    "<think>never closed",
    "</think>",
    "<action></action>",
    "<action>go",
    "%s {0} \\1 ünïcödé 中→🙂 \x00",
    "word " * 2000,
)
Policy = Callable[[TextEnv, int], str]  # env, turn -> action
Transcript = list[tuple[Any, ...]]


def check_text_env(make_env: Callable[[], gymnasium.Env[str, str]], *, seeds_differ: bool = True) -> None:
    """Raise EnvError naming the rule that the env breaks; return None if it keeps them all.

    `make_env` makes a fresh env each time, in its wrappers or without. A game whose first observation tells nothing of
    the seed (guess a number) has the class attribute `hidden_state = True`; `seeds_differ=False` is for a game that
    always starts, and goes on, the same way.
    The rules: gymnasium, spaces, text, reward, flags, metrics, actions, success, bad-action, max-turns, determinism,
    reuse, prepare, seeds, rows, expert; each check below states its own.
    """
    make_env = _check_gymnasium(make_env)
    policies = _policies(make_env)
    used = make_env()  # plays every episode, one after another
    first_observations = set()
    for (name, policy), seed in itertools.product(policies.items(), SEEDS):
        where = f"seed {seed}, {name}"
        expected, repeated, prepared = (
            _play_anew(make_env, seed, policy, where, hint) for hint in (False, False, True)
        )
        reused = play(used, seed, policy, where)
        _compare("determinism", "the same seed and actions gave another transcript", where, expected, repeated)
        _compare("reuse", "an env that had played before gave another transcript", where, expected, reused)
        _compare("prepare", "the transcript changed after prepare(seed)", where, expected, prepared)
        first_observations.add(expected[0])
    _check_rows(used)
    used.close()
    if seeds_differ and not used.hidden_state and len(first_observations) < 2:
        what = f"seeds {SEEDS} all start with the same observation"
        hidden = (
            "if what differs is not seen at first, as when a number is to be guessed, declare `hidden_state = True`"
        )
        _broken(
            "seeds", f"{what}: {hidden} in the class; if all episodes are the same, pass seeds_differ=False", "reset()"
        )


def _check_rows(env: TextEnv) -> None:
    sides = {"training_episodes": (env.training_episodes, 0)}
    sides["held_out_episodes"] = (env.held_out_episodes, FIRST_HELD_OUT_SEED)
    for name, (count, first) in sides.items():
        if count is not None and (type(count) is not int or count < 0):
            _broken("rows", f"{name} must be None or an int from 0 on, but is {count!r}", "make_env()")
        if count and env.reset(seed=first)[0] != env.reset(seed=first + count)[0]:
            _broken("rows", f"{name} is {count}, so that many seeds later the same episode must come again", "reset()")


def play(env: TextEnv, seed: int, policy: Policy, where: str) -> Transcript:
    """Play one episode, checking every value that the env returns."""
    observation, info = env.reset(seed=seed)
    _check_text(observation, f"reset(), {where}")
    transcript: Transcript = [(observation,)]
    counted = set()
    for turn in range(1, env.max_turns + 1):
        here = f"step {turn}, {where}"
        action = policy(env, turn)
        try:
            observation, reward, terminated, truncated, info = env.step(action)
        except Exception as error:
            raise EnvError(
                f"Rule `bad-action` broken ({here}): step() must never raise on an action, but {action[:40]!r} "
                f"raised {error!r}."
            ) from error
        _check_text(observation, here)
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            _broken("reward", f"the reward must be a finite float, but is {reward!r}", here)
        _check_end(env, turn, terminated, truncated, info, here)
        counted.add(ADMISSIBLE in info["metrics"])
        if len(counted) > 1:
            _broken("actions", "an env that counts actions counts each, but at some steps none is counted", here)
        transcript.append((action, observation, reward, terminated, truncated, info["metrics"], info.get("success")))
        if terminated or truncated:
            return transcript
    return _broken(
        "max-turns", f"the episode went on after max_turns = {env.max_turns} steps (truncate, or set it)", where
    )


def _check_end(env: TextEnv, turn: int, terminated: object, truncated: object, info: Any, here: str) -> None:
    if type(terminated) is not bool or type(truncated) is not bool:
        _broken("flags", f"terminated and truncated must be bool, but are {terminated!r} and {truncated!r}", here)
    if terminated and truncated:
        _broken(
            "flags", "an episode is either terminated (the task ended) or truncated (a limit cut it), not both", here
        )
    if truncated and turn != env.max_turns:
        _broken("max-turns", f"truncated after {turn} steps, but max_turns is {env.max_turns}", here)
    metrics = info.get("metrics") if isinstance(info, dict) else None
    if not isinstance(metrics, dict):
        _broken("metrics", f"info['metrics'] must be a dict at every step, but info is {info!r}", here)
    for name, value in metrics.items():
        if not isinstance(name, str) or type(value) not in (int, float) or not math.isfinite(value):
            _broken("metrics", f"info['metrics'] must map str to finite float, but has {name!r}: {value!r}", here)
    _check_actions(metrics, here)
    success = info.get("success")
    if (terminated or truncated) and type(success) is not bool:
        _broken("success", f"info['success'] must be a bool when the episode ends, but is {success!r}", here)
    if success and not terminated:
        _broken("success", "info['success'] may be true only when the task itself ended (terminated)", here)


def _check_actions(metrics: dict[str, float], here: str) -> None:
    kinds = {name: metrics[name] for name in (ADMISSIBLE, INADMISSIBLE, UNPARSABLE) if name in metrics}
    if not kinds and INEFFECTIVE not in metrics:
        return
    if sorted(kinds.values()) != [0, 0, 1]:
        what = f"an env that counts actions counts each as exactly one of {ADMISSIBLE}, {INADMISSIBLE}, {UNPARSABLE}"
        _broken("actions", f"{what} (opdlight.envs.actions.action_counts does), but info['metrics'] is {metrics}", here)
    if metrics.get(INEFFECTIVE, 0) not in (0, metrics[ADMISSIBLE]):
        _broken("actions", f"{INEFFECTIVE} is counted of admissible actions only, but is {metrics[INEFFECTIVE]}", here)


def _check_gymnasium(made: Callable[[], gymnasium.Env[str, str]]) -> Callable[[], TextEnv]:
    """The rules of a fresh env; returns what makes another, with everything that a TextEnv has around its wrappers."""

    def make_env() -> TextEnv:
        return text_env(made())

    try:
        env = make_env()
    except ConfigError as error:
        _broken("gymnasium", str(error).rstrip("."), "make_env()")
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), UnicodeText):
            _broken("spaces", f"{name} must be a UnicodeText (call super().__init__())", "make_env()")
    if env.system_prompt is not None:
        _check_text(env.system_prompt, "system_prompt")
    if type(env.max_turns) is not int or env.max_turns < 1:
        _broken("max-turns", f"max_turns must be a positive int, but is {env.max_turns!r}", "make_env()")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's advice on renderers and specs is not for text
            env.action_space.seed(0)
            check_env(env, skip_render_check=True)
    except Exception as error:
        raise EnvError(f"Rule `gymnasium` broken (gymnasium.utils.env_checker.check_env): {error!r}") from error
    env.close()
    return make_env


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str) or not text.strip() or not UnicodeText().contains(text):
        _broken("text", f"observations and prompts are non-empty Unicode strings, but this one is {text!r:.120}", where)


def _policies(make_env: Callable[[], TextEnv]) -> dict[str, Policy]:
    env = make_env()
    policies: dict[str, Policy] = {"random text": _random_text}
    for start in range(0, len(BAD_ACTIONS), env.max_turns):  # a short episode cannot hold them all
        policies[f"bad actions from number {start}"] = functools.partial(_bad_action, start)
    if _has_expert(env):
        policies["the expert"] = lambda env, turn: _expert_action(env)
    env.close()
    return policies


def _play_anew(make_env: Callable[[], TextEnv], seed: int, policy: Policy, where: str, hint: bool) -> Transcript:
    env = make_env()
    if hint:
        env.prepare(seed)
        env.prepare(seed + 1)
    transcript = play(env, seed, policy, where)
    env.close()
    return transcript


def _bad_action(start: int, env: TextEnv, turn: int) -> str:
    return BAD_ACTIONS[(start + turn - 1) % len(BAD_ACTIONS)]


def _random_text(env: TextEnv, turn: int) -> str:
    env.action_space.seed(turn)
    return env.action_space.sample()


def _has_expert(env: TextEnv) -> bool:
    if type(env).expert_action is TextEnv.expert_action:
        return False
    env.reset(seed=SEEDS[0])
    try:
        env.expert_action()
    except NoExpertError:
        return False
    return True


def _expert_action(env: TextEnv) -> str:
    action = env.expert_action()
    if not env.action_space.contains(action):
        _broken(
            "expert", f"expert_action() must return a text of the action space, but gave {action!r:.120}", repr(env)
        )
    return action


def _compare(rule: str, meaning: str, where: str, expected: Transcript, got: Transcript) -> None:
    for turn, (one, other) in enumerate(itertools.zip_longest(expected, got)):
        if one != other:
            _broken(rule, f"{meaning}; first difference at step {turn}: {one!r:.200} and {other!r:.200}", where)


def _broken(rule: str, what: str, where: str) -> NoReturn:
    raise EnvError(f"Rule `{rule}` broken ({where}): {what}.")
