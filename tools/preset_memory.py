"""Write the table of memory of the presets into conf/experiment/README.md.

python tools/preset_memory.py

It says what `python -m opdlight.doctor experiment=<preset> plan_gib=80` says, from the public shapes of
the models: neither a GPU nor the Hub is needed. A test compares the README with it.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from opdlight.config import CONF, DoctorConfig, compose
from opdlight.doctor.findings import Verdict
from opdlight.doctor.fitting import judge
from opdlight.doctor.memory import GIB, Part, Plan, estimate, totals
from opdlight.doctor.plan import plan_of_config
from opdlight.system.arguments import argument_parser

README = Path(__file__).resolve().parents[1] / "conf" / "experiment" / "README.md"
BEGIN, END = "<!-- tools/preset_memory.py writes from here -->\n", "<!-- to here -->\n"
GPU = 80  # GiB
# the public config.json of Qwen2.5-<name>-Instruct, and of the teachers that were trained from it
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "1.5B": {
        "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip


def config(name: str) -> Qwen2Config:
    """The config of a Qwen2.5 of this size."""
    return Qwen2Config(**SHAPES[name], max_position_embeddings=32768, architectures=["Qwen2ForCausalLM"])


def presets() -> list[str]:
    """Their names: the paper's first."""
    names = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    return sorted(names, key=lambda name: not name.startswith("paper_"))


def plan_of_preset(name: str, folder: Path) -> Plan:
    """The plan of a preset whose models' configs are in `folder`."""
    cfg = compose("doctor", DoctorConfig, [f"experiment={name}", f"plan_gib={GPU}"])
    cfg.model.student.model = str(folder / next(size for size in SHAPES if f"-{size}-" in cfg.model.student.model))
    for task in cfg.model.teachers:
        cfg.model.teachers[task] = str(folder / task)  # of their own, or two tasks would share one
    return plan_of_config(cfg)


def table(names: Sequence[str], folder: Path) -> str:
    """One row a preset: the parts of a process while the student trains, in GiB, and the sums.

    `folder` gets the configs of the models.
    """
    for size in SHAPES:
        config(size).save_pretrained(folder / size)
    for task in ("math", "alfworld", "webshop"):
        config("7B").save_pretrained(folder / task)
    plans = {name: plan_of_preset(name, folder) for name in names}
    parts = {name: estimate(plan) for name, plan in plans.items()}
    shown = [part.name for part in next(iter(parts.values())) if part.name != "loading"]
    ends = ["**training**", "**rollout**", f"fits {GPU} GiB", "the machine's CPU memory"]
    rows = [["preset", *shown, *ends], ["---"] * (len(shown) + len(ends) + 1)]
    for name, plan in plans.items():
        by_name, total = {part.name: part for part in parts[name]}, totals(parts[name])
        verdict = judge(plan, GPU * GIB).verdict
        sums = [f"**{size / GIB:.1f}**" for size in (total.training, total.rollout)]
        last = ["yes" if verdict is Verdict.PASS else str(verdict), f"{plan.layout.processes * total.cpu / GIB:.0f}"]
        rows.append([f"`{name}`", *(_cell(by_name[part]) for part in shown), *sums, *last])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(part: Part) -> str:
    """Bytes while the student trains; an engine that sleeps then shows what it has while it is awake."""
    asleep = f" (awake {part.rollout / GIB:.1f})" if part.rollout > part.training else ""
    return f"{part.training / GIB:.1f}{asleep}"


def main() -> None:
    """Replace what stands between the two marks of the README."""
    argument_parser(__doc__).parse_args()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with tempfile.TemporaryDirectory() as folder:
        README.write_text(f"{before}{BEGIN}{table(presets(), Path(folder))}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
