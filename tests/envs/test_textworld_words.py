"""Playthroughs in the words of compiled games, against games that TextWorld's compiler makes; and compiled files."""

import random
from pathlib import Path
from typing import Any

import pytest
import textworld
import textworld.challenges
from textworld.generator import compile_game
from textworld.generator.game import Event, Quest

import opdlight.envs  # noqa: F401
from opdlight.envs.textworld import TextWorldEnv, files, generator
from opdlight.envs.textworld.design import Design
from opdlight.envs.textworld.files import CompiledPlay
from opdlight.envs.textworld.wording import Scene, in_words, tidy
from opdlight.envs.textworld.words import KNOWN_RULES, Play
from opdlight.errors import ConfigError, EnvError

# jericho warns of every game that is not in its list of old adventures
pytestmark = [pytest.mark.alfworld, pytest.mark.filterwarnings("ignore:Game .* is not fully supported")]
DESIGNS = {
    "custom": {"world_size": 5, "nb_objects": 14, "quest_length": 5},
    "tw-treasure_hunter": {"level": 1},
}
PLAIN: dict[str, Any] = {
    "world_size": 2, "nb_objects": 2, "quest_length": 1, "level": 1, "rewards": "dense", "objective": "detailed"
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two compiled games."""
    root = tmp_path_factory.mktemp("games")
    for kind, settings in DESIGNS.items():
        options = textworld.GameOptions()
        options.path = str(root / f"{kind}.z8")
        compile_game(generator._make(Design(game=kind, **{**PLAIN, **settings}), 2), options)
    for source in root.glob("*.ni"):
        source.unlink()
    return root


@pytest.mark.parametrize("kind", DESIGNS)
def test_the_words_are_those_of_the_compiled_game(kind: str, folder: Path) -> None:
    game = textworld.Game.load(str(folder / f"{kind}.json"))
    commands, ends = set(), set()
    for episode in range(4):
        choice = random.Random(episode)
        play, compiled = Play(game), CompiledPlay(game, folder / f"{kind}.z8")
        assert play.introduction == compiled.introduction
        for _ in range(150):
            command = play.expert() if choice.random() < 0.05 else choice.choice(play.admissible)
            assert play.step(command) == _without_aside(compiled.step(command)), command
            commands.add(command.split()[0])
            if play.won or play.lost:
                break
        assert (play.won, play.lost, play.points) == (compiled.won, compiled.lost, compiled.points)
        end = "*** The End ***" in compiled._read, "*** You lost! ***" in compiled._read
        assert end == (play.won, play.lost)
        ends.add(end)
    assert commands >= (
        {"open", "close", "put", "insert", "take", "drop", "look", "unlock"} if kind == "custom" else {"go"}
    )
    assert (True, False) in ends or (False, True) in ends


def _without_aside(text: str | None) -> str | None:
    """Without the object that the compiled game's parser says it chose."""
    first, newline, rest = (text or "").partition("\n")
    return rest if newline and first.startswith("(the ") else text


def test_the_possible_commands_are_those_of_textworld(folder: Path) -> None:
    env = textworld.start(str(folder / "custom.z8"), textworld.EnvInfos(admissible_commands=True, policy_commands=True))
    state, play = env.reset(), Play(textworld.Game.load(str(folder / "custom.json")))
    for _ in range(20):
        assert play.admissible == state.admissible_commands
        assert play.expert() == (state.policy_commands or ["look"])[0]
        command = random.Random(len(play.actions)).choice(play.admissible)
        state, points, _ = env.step(command)
        play.step(command)
        assert (play.points, play.won, play.lost) == (points, state.won, state.lost)


def test_challenges_are_those_that_textworld_makes_with_its_compiler() -> None:
    options = textworld.GameOptions()
    options.seeds = 5
    options.grammar.allowed_variables_numbering = True
    settings = {"rewards": "balanced", "goal": "detailed", "test": False}
    _, make, _ = textworld.challenges.CHALLENGES["tw-simple"]
    design = Design(game="tw-simple", **{**PLAIN, "rewards": "balanced"})
    ours, original = generator._make(design, 5), make(settings, options)
    assert original == ours and original.objective == ours.objective
    assert [q.commands for q in original.quests] == [q.commands for q in ours.quests]
    assert textworld.GameMaker is not generator._Maker


def test_files_of_ones_own(folder: Path) -> None:
    env = TextWorldEnv(games=str(folder / "custom.z8"), held_out_games=[str(folder / "tw-treasure_hunter.z8")])
    assert (env.training_episodes, env.held_out_episodes) == (1, 1)
    observation, _ = env.reset(seed=3)
    again, _ = env.reset(seed=4)
    other, _ = env.reset(seed=10**9)
    assert observation == again != other and observation.count("-= ") == 1 and "$" not in observation
    assert env.step("restart")[-1]["metrics"]["inadmissible_actions"] == 1.0
    info: dict[str, Any] = {}
    while "success" not in info:
        observation, _, terminated, _, info = env.step(env.expert_action())
    assert info["success"] and terminated and observation.endswith("turns.")
    whole = TextWorldEnv(games=str(folder), objective="none")
    assert (whole.training_episodes or 0) + (whole.held_out_episodes or 0) == 2


def test_a_json_alone_has_the_same_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.json").write_bytes((folder / "custom.json").read_bytes())
    alone = TextWorldEnv(games=str(tmp_path), held_out_games=str(folder))
    compiled = TextWorldEnv(games=str(folder / "custom.z8"), held_out_games=str(tmp_path))
    assert alone.reset(seed=0) == compiled.reset(seed=0)


def test_a_name_that_the_compiled_game_cannot_tell_apart_costs_a_turn(folder: Path) -> None:
    play = CompiledPlay(textworld.Game.load(str(folder / "custom.json")), folder / "custom.z8")

    class Doubtful:
        def step(self, command: str) -> tuple[str]:
            return (f"\nWhich do you mean by {command}, this or that?\n>   -= Attic =-0/1",)

    play._machine, before = Doubtful(), play.admissible
    assert play.step("look") == "Which do you mean by look, this or that?"
    assert play.admissible == before and play.actions == []


def test_wrong_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.z8").touch()
    (tmp_path / "a.ulx").touch()
    (tmp_path / "b.json").write_text("{}")
    hunt = str(folder / "tw-treasure_hunter.z8")
    for arguments, message in (
        ({"games": [str(tmp_path / "a.ulx")]}, r"games.*\.z8 or \.json"),
        ({"games": [str(tmp_path / "a.z8")]}, r"a\.json beside a\.z8"),
        ({"games": [str(tmp_path / "b.json")]}, "game of TextWorld"),
        ({"games": hunt, "held_out_games": hunt}, "held_out_games.*other files"),
        ({"games": hunt, "objective": "brief"}, "objective.*beside `games`"),
    ):
        with pytest.raises(ConfigError, match=message):
            TextWorldEnv(**arguments)
    env = TextWorldEnv(games=hunt)
    with pytest.raises(ConfigError, match="one in four"):
        [env.reset(seed=seed) for seed in (0, 10**9)]
    monkeypatch.setattr(files, "KNOWN_RULES", KNOWN_RULES - {"open/c"})
    (tmp_path / "c.json").write_bytes((folder / "custom.json").read_bytes())
    with pytest.raises(ConfigError, match=r"c\.z8 beside a game with rules such as 'open/c'"):
        TextWorldEnv(games=str(tmp_path / "c.json"))


def test_descriptions() -> None:
    class Info:
        def __init__(self, name: str, desc: str = "", kind: str = "o") -> None:
            self.name, self.desc, self.type, self.definite, self.indefinite = name, desc, kind, None, None

    desc = "[if c_0 is locked]a locked[else if c_0 is open]an open[otherwise]a closed[end if] box.[if open]Yes[end if]"
    lists = "[if there is something in the c_0]It has [a list of things in the c_0][end if][if c_0 contains nothing]No"
    scene = Scene({"c_0": Info("box", desc, "c"), "r_0": Info("hall", lists), "o_0": Info("apple"), "o_1": Info("key")})
    for state, text in (("locked", "a locked box."), ("open", "an open box.Yes"), ("closed", "a closed box.")):
        scene.states["c_0"] = state
        assert scene.describe("c_0") == text
    assert scene.describe("r_0") == "No"
    scene.contents["c_0"] = ["o_0", "o_1"]
    assert scene.describe("r_0") == "It has an apple and a key"
    for broken in ("[a picture]", "[if it rains]wet"):
        scene.infos["r_0"].desc = broken
        with pytest.raises(EnvError, match="TextWorld's own"):
            scene.describe("r_0")
    assert tidy(" a  b \n\n\n\n c ") == "a b\n\nc" and in_words(12) == "twelve" and in_words(13) == "13"


def test_optional_and_repeatable_quests_and_losing() -> None:
    maker = textworld.GameMaker()
    room = maker.new_room("attic")
    maker.set_player(room)
    ball, key = maker.new(type="o", name="ball"), maker.new(type="k", name="key")
    room.add(ball, key)
    held = [Event(conditions={maker.new_fact("in", thing, maker.inventory)}) for thing in (ball, key)]
    maker.quests = [
        Quest(win_events=[held[0]], reward=2, optional=True, repeatable=True), Quest(win_events=[held[1]]),
        Quest(fail_events=[held[0]], optional=True),
    ]  # fmt: skip
    play = Play(maker.build())
    assert play.score == 0.0 and play.step("take key")
    assert play.won and play.score == 1.0 and play.admissible == [] and play.step("look") is None
    lost = Play(maker.build())
    assert lost.step("take ball") and lost.lost and not lost.won and lost.points == 2 and lost.score == 0.0
