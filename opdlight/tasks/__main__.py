"""List, show, play and write tasks: `python -m opdlight.tasks [<task> | play <task> | new <name>]`."""

import sys

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.errors import OpdError
from opdlight.system.arguments import argument_parser
from opdlight.system.console import progress, say, show
from opdlight.system.pipes import may_be_cut
from opdlight.tasks import new, play
from opdlight.tasks.detail import detail
from opdlight.tasks.found import add_config_dir, find_option, find_tasks, own_folder, task_files
from opdlight.tasks.table import LEGEND, environment_table, task_table

HELP = """List the tasks there are, opdlight's and your own; show one in full; play it; write one.

python -m opdlight.tasks
python -m opdlight.tasks alfworld
python -m opdlight.tasks play alfworld --expert
python -m opdlight.tasks new maze --turns many

`play --help` and `new --help` say more. A task named `play` or `new` cannot be shown.
"""


def main() -> None:
    """Run the command; a mistake is one message on stderr and exit code 2."""
    try:
        match sys.argv[1:]:
            case ["new", *arguments]:
                new.main(arguments)
            case ["play", *arguments]:
                sys.exit(play.main(arguments))
            case arguments:
                _list(arguments)
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _list(arguments: list[str]) -> None:
    """`python -m opdlight.tasks` and `python -m opdlight.tasks <task>`."""
    parser = argument_parser(HELP, "python -m opdlight.tasks")
    parser.add_argument("task", nargs="?", help="the one to show in full (with a dot one of several: agent_math.sums)")
    add_config_dir(parser)
    options = parser.parse_args(arguments)
    own = own_folder(options.config_dir)
    if options.task is not None:
        option, tasks = find_tasks(options.task, own)
        with may_be_cut():
            for line in detail(option, tasks, own):
                print(line, flush=True)
        return
    with progress("reading the tasks", log=False):
        found = task_table(find_option(name, own) for name in task_files(own))
    with may_be_cut():
        for part in (found, environment_table(), LEGEND):
            show(part)
            say("")


if __name__ == "__main__":
    main()
