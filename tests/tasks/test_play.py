"""`python -m opdlight.tasks play`: a person or the expert plays any task in the terminal."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import opdlight.envs  # noqa: F401
from opdlight.envs.base import TextEnv
from opdlight.envs.toy_games import GAMES
from opdlight.errors import ConfigError, NoExpertError
from opdlight.tasks.play import main

ROOT = Path(__file__).resolve().parents[2]
OWN = """import gymnasium
from opdlight.envs.base import TextEnv

class Own(TextEnv):
    def __init__(self, word="on"):
        super().__init__()
        self.word = word
    def reset(self, *, seed=None, options=None):
        return "Where to?", {}
    def step(self, action):
        return "There.", 1.0, True, False, {"success": action == self.word, "metrics": {}}

gymnasium.register(id="Own-v0", entry_point=Own)
"""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person types; then the input ends."""
    typed: list[str] = []

    def read(_: str) -> str:
        if not typed:
            raise EOFError
        return typed.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return typed


@pytest.mark.parametrize("game", sorted(GAMES))
def test_the_expert_plays(game: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opdlight/ToyText-v0", f"game={game}", "--seed", "3", "--expert"]) == 0
    printed = capsys.readouterr().out
    assert "\n> move" in printed
    assert "success: reward 1 (" in printed


def test_a_task_is_played_with_its_own_arguments_and_changed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("sums", "agent_math.sums"):
        assert main([task, 'params={"min_terms": 2, "max_terms": 2}', "--expert"]) == 0
        printed = capsys.readouterr().out
        assert printed.count(" = ") == 1 and "success: reward 1" in printed, "a sum of two numbers takes one step"


def test_a_person_plays_and_may_leave(answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    answers += ["dance", "move up"]
    assert main(["opdlight/ToyText-v0", "game=CliffWalking-v1", "max_turns=2"]) == 0
    printed = capsys.readouterr().out
    assert "out of turns: reward 0" in printed and "inadmissible_actions 1" in printed and "game_return -1" in printed
    assert main(["frozen_lake"]) == 1
    assert capsys.readouterr().out.endswith("left the game\n")


def test_ctrl_c_leaves_the_game_and_closes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(_: str) -> str:
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL, "it would end the process here"
        signal.raise_signal(signal.SIGINT)
        return ""

    closed: list[str] = []
    monkeypatch.setattr(TextEnv, "close", lambda env: closed.append("closed"))
    monkeypatch.setattr("builtins.input", press)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the start of a command leaves it
    try:
        assert main(["opdlight/ToyText-v0", "game=CliffWalking-v1"]) == 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    assert closed == ["closed"]
    assert capsys.readouterr().out.endswith("left the game\n")


def test_an_environment_of_one_s_own_is_played(
    answers: list[str], beside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (beside / "own.py").write_text(OWN)
    answers.append("back")
    assert main(["own:Own-v0", "word=back"]) == 0
    assert "success: reward 1" in capsys.readouterr().out


def test_output_that_is_cut_ends_the_game_without_a_word() -> None:
    command = f"{sys.executable} -m opdlight.tasks play frozen_lake --expert | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stderr == ""


MISTAKES: dict[str, tuple[list[str], Any]] = {
    "did you mean 'opdlight/ToyText-v0'": (["opdlight/ToyTxt-v0"], ConfigError),
    "did you mean 'frozen_lake'": (["frozen_lak"], ConfigError),
    r"one task \(agent_math.sums, agent_math.alfworld\)": (["agent_math"], ConfigError),
    "did you mean 'agent_math.sums'": (["agent_math.sum"], ConfigError),
    "Unknown key `env.gme`": (["opdlight/ToyText-v0", "gme=3"], ConfigError),
    "Add `adapter.observation`": (["Taxi-v4"], ConfigError),
    "name=value": (["opdlight/ToyText-v0", "game"], ConfigError),
    "`env.size`": (["opdlight/ToyText-v0", "size=true"], ConfigError),
    "`--seed` to be 0 or more": (["sums", "--seed", "-1"], ConfigError),
    "Without --expert you play": (["own:Own-v0", "--expert"], NoExpertError),
    "shortest path": (["frozen_lake", "is_slippery=true", "--expert"], NoExpertError),
    "`--config-dir` to be a folder that exists": (["sums", "--config-dir", "nowhere"], ConfigError),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_error(message: str, beside: Path) -> None:
    (beside / "own.py").write_text(OWN)
    arguments, kind = MISTAKES[message]
    with pytest.raises(kind, match=message):
        main(arguments)
