"""Write a task of one's own: environment, configuration and test, from the files in templates/."""

import keyword
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

from opdlight.config.composition import CONF
from opdlight.errors import ConfigError
from opdlight.system.arguments import argument_parser

HELP = """Write a task of your own that works at once, to be changed into the one you want.

It consists of <name>.py (the environment, with an expert), conf/task/<name>.yaml (its configuration) and test_<name>.py
(whether it keeps the rules, and the expert solves it). Nothing is overwritten.

python -m opdlight.tasks new maze
python -m opdlight.tasks new quiz --turns 1 --folder my_tasks
"""
TEMPLATES = Path(__file__).parent / "templates"
NAMES = re.compile(r"[a-z][a-z0-9_]{,99}")  # file names have a limit
# to YAML or Hydra these are no texts, and the last two are commands
RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "nan", "inf", "new", "play"}
TEST = '''"""The environment keeps the rules of opdlight, and its expert solves it."""

from opdlight.envs.conformance import check_text_env
from template import Template


def test_it_keeps_the_rules():
    check_text_env(Template)


def test_the_expert_solves_it():
    env = Template()
    for seed in range(10):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(env.expert_action())
            over = terminated or truncated
        assert info["success"], f"seed {seed}"
'''


def main(arguments: list[str]) -> None:
    """`python -m opdlight.tasks new …`: write the files and print what to do with them."""
    parser = argument_parser(HELP, "python -m opdlight.tasks new")
    parser.add_argument("name", help="of the task, of its module and of its file in conf/task: such as maze")
    parser.add_argument(
        "--turns", choices=("1", "many"), default="many", help="a question and an answer, or a game (default)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("."), help="where the files go (default: the current folder)"
    )
    options = parser.parse_args(arguments)
    files = write(options.name, options.turns, options.folder)
    print("\n".join(f"wrote {file}" for file in files))
    print("\nThis works now:\n")
    print("\n".join(f"  {command}" for command in next_commands(options.name, options.folder)))


def write(name: str, turns: str, folder: Path) -> list[Path]:
    """Write the three files of the task `name` below `folder`, and return them.

    Args:
        name: of the task.
        turns: "1" or "many".
        folder: it is made if it is not there.

    Raises:
        ConfigError: if the name cannot be one, is in use, or a file is there already or cannot be written.
    """
    check_name(name)
    texts = {folder / file: text for file, text in contents(name, turns).items()}
    if there := [str(file) for file in texts if file.exists()]:
        raise ConfigError.wrong("name", expected=f"that of a new task ({', '.join(there)} is there)", got=name)
    try:
        for file in texts:  # all folders first: what cannot be finished is not begun
            file.parent.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror}: {error.filename})"
        raise ConfigError.wrong("--folder", expected=expected, got=str(folder)) from error
    return list(texts)


def check_name(name: str) -> None:
    """Raise ConfigError if a task, a module or an environment has this name, or none could have it."""
    if not NAMES.fullmatch(name) or keyword.iskeyword(name) or name in RESERVED:
        expected = "a lower-case Python identifier of at most 100 characters and no word of Python or YAML, as my_task"
        raise ConfigError.wrong("name", expected=expected, got=name)
    if (CONF / "task" / f"{name}.yaml").is_file():
        raise ConfigError.wrong("name", expected=f"another name than that of opdlight's task {name!r}", got=name)
    spec = find_spec(name)
    if spec is not None and spec.origin is not None:  # a folder without __init__.py has no origin and is not in the way
        expected = f"another name than that of a module that Python finds ({spec.origin})"
        raise ConfigError.wrong("name", expected=expected, got=name)


def contents(name: str, turns: str) -> dict[str, str]:
    """File below the folder → its text, for the task `name`."""
    stem, used = ("one_turn", "OneTurn") if turns == "1" else ("many_turns", "ManyTurns")
    code, config = ((TEMPLATES / f"{stem}{suffix}").read_text(encoding="utf-8") for suffix in (".py", ".yaml"))
    own = "".join(part.capitalize() for part in name.split("_"))
    if re.search(rf"\b{own}\b", code):  # a name that the template imports, such as Any
        own += "Task"
    files = {f"{name}.py": code, f"conf/task/{name}.yaml": config}
    files = {file: text.replace(stem, name).replace(used, own) for file, text in files.items()}
    return {**files, f"test_{name}.py": TEST.replace("template", name).replace("Template", own)}


def next_commands(name: str, folder: Path) -> list[str]:
    """What to do with a task that was just written."""
    # where opdlight's own configurations lie (in a clone of it) nothing has to be added
    own = "" if (folder / "conf").resolve() == CONF.resolve() else "--config-dir conf "
    there = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    return [
        *there,
        f"python -m pytest test_{name}.py",
        f"python -m opdlight.tasks play {name} --expert",
        f"python -m opdlight.train {own}task={name} trainer.max_steps=2 schedule.warmup=0 rollout.groups=8",
    ]
