"""Every tool runs: its help, its errors, and the smallest case of what it does, in a process of its own."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.forked import script

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
SCRIPTS = sorted(path.name for path in (ROOT / "tools").glob("*.sh"))
LAB = ROOT / "opdlight" / "assets" / "lab"
ENGINE = ["engine._target_=tests.fakes.AnsweringEngine", "rollout.groups=2", "task=sums", "task.tasks.sums.episodes=2"]


def run(tool: str, *arguments: str) -> str:
    """What a person sees who starts the tool; it must end with 0."""
    done = script(ROOT / "tools" / tool, *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def ends(tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code, or message, of the tool in this process: fast, since torch is imported already."""
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), str(ROOT), *sys.path])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    return left.value.code


@pytest.mark.filterwarnings("ignore:.*Overriding environment Faulty-v0")  # soak.py is read more than once here
@pytest.mark.parametrize("tool", TOOLS)
def test_help_says_what_it_is_for(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert ends(tool, ["--help"], monkeypatch) in (0, None)
    out = capsys.readouterr().out
    wide = [line for line in out.splitlines() if len(line) > 70 and "python tools/" not in line]
    assert not wide, "wrapped at the terminal's width, but for commands to copy"
    (purpose,) = [line for line in (ROOT / "tools" / tool).read_text().splitlines() if line.startswith('"""')][:1]
    assert out.startswith(f"usage: {tool}")
    assert purpose.strip('"')[:50] in " ".join(out.split()), "the docstring, with its examples, is the description"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_a_help_and_refuse_what_they_do_not_know(script: str) -> None:
    for argument, code in (("--help", 0), ("--frob", 1)):
        done = subprocess.run(
            [ROOT / "tools" / script, argument], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == code
        assert script in done.stdout or "--frob" in done.stderr, done.stderr


MISTAKES = {  # tool and arguments, what the one error names
    "bench_alfworld.py --games 0": "--games",
    "bench_lm_head.py --k 64 --distinct 32": "--distinct",
    "bench_lm_head.py --repeat 0": "--repeat",
    "bench_overlap.py --pairs 0": "--pairs",
    "bench_envs.py --workers 0": "--workers",
    "bench_growth.py --series k": "--series",
    "bench_growth.py --steps 0": "--steps",
    "bench_growth.py --series K --sizes 1 2 3": "`loss.k`",
    "bench_peers.py --pairs 0": "--pairs",
    "bench_peers.py --work sumz": "--work",
    "bench_peers.py --frob 4": "--frob",
    "bench_peers.py rollout.groups=4 --sides topk_rkl +a.b=1 trl": "'trl'",
    "bench_rollout.py --model nowhere": "'nowhere'",
    "bench_rollout.py --model lab/nowhere": "lab/nowhere",
    "bench_rollout.py --episodes 0": "--episodes",
    "bench_rollout.py --top-p 0": "--top-p",
    "bench_rollout.py --model lab/student --threads 0": "--threads",
    "bench_rollout.py --env opdlight/Chess-v0": "opdlight/Chess-v0",
    "bench_rollout.py --env opdlight/ToyText-v0 --env-args gaem=Taxi-v4": "gaem",
    "bench_sampling.py --top-p 1": "--top-p",
    "bench_sampling.py --threads 0": "--threads",
    "bench_sampling.py --model lab/nowhere": "lab/nowhere",
    "bench_shapes.py --device cpu --updates 2": "--updates",
    "bench_shapes.py --ways padding": "--ways",
    "bench_step.py --updates 0": "--updates",
    "bench_step.py task=sumz": "sumz",
    "bench_step.py task=sums loss.k=1": "`loss.k`",
    "bench_threads.py --turns 0": "--turns",
    "bench_webshop.py --products 20": "--products",
    "bench_webshop.py --products 300 --steps 0": "--steps",
    "build_lab.py tokeniser": "'tokeniser'",
    "build_lab.py --scale 0": "--scale",
    "check_layers.py --fix": "--fix",
    "compare_precision.py --updates 0": "--updates",
    "make_pictures.py nowhere": "'nowhere'",
    "soak.py --minutes 0": "--minutes",
    "update_constraints.py tpu": "'tpu'",
    "whole_checkpoint.py nowhere whole": "nowhere",
}


@pytest.mark.filterwarnings("ignore:.*Overriding environment Faulty-v0")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_error_that_names_it(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, *arguments = line.split()
    code = ends(tool, arguments, monkeypatch)
    said = code if isinstance(code, str) else capsys.readouterr().err  # Python prints a text and exits with 1
    assert code not in (0, None)
    assert MISTAKES[line] in said.splitlines()[-1]
    assert "Traceback" not in said


def test_each_tool_is_run_by_a_test() -> None:
    here = Path(__file__).read_text()
    elsewhere = {
        "bench_growth.py": "tools/test_growth.py",
        "check_layers.py": "tools/test_layers.py",
        "make_pictures.py": "report/test_browser.py",
        "preset_memory.py": "doctor/paper_models.py",
        "update_constraints.py": "tools/test_setup.py",
        "whole_checkpoint.py": "distillation/test_sharded.py",
    }
    for tool in TOOLS:
        text = (ROOT / "tests" / elsewhere[tool]).read_text() if tool in elsewhere else here
        assert f'run("{tool}"' in text or f'"tools" / "{tool}"' in text, tool


def test_the_readme_names_each_tool() -> None:
    readme = (ROOT / "tools" / "README.md").read_text()
    assert [tool for tool in TOOLS + SCRIPTS if tool not in readme] == []


@pytest.mark.alfworld
def test_bench_alfworld() -> None:
    said = run("bench_alfworld.py", "--games", "1", "--resets", "1", "--no-stock")
    assert "small: reset cold" in said and "large: reset cold" in said and "after     1 games" in said


def test_bench_peers() -> None:
    small = ["rollout.groups=2", "task.tasks.sums.turn_tokens=4", "engine._target_=tests.fakes.AnsweringEngine"]
    sides = ["--pairs", "1", "--warm-up", "0", "--sides", "topk_rkl", "transformers"]
    said = run("bench_peers.py", "--work", "sums", *sides, *small)
    ours, theirs, ratio = (line.strip("| ").split(" | ") for line in said.splitlines() if "(" in line and "|" in line)
    assert ours[0] == "opdlight, topk_rkl" and ours[3:5] == ["8 (8–8)", "8 (8–8)"], "two answers of four tokens"
    assert theirs[0] == "TRL, transformers generates" and float(theirs[4].split()[0]) <= 8
    assert ratio[0] == f"{theirs[0]} / {ours[0]}" and all(float(figure.split()[0]) > 0 for figure in ratio[1:])


def test_bench_lm_head() -> None:
    sizes = ["--n", "8", "--k", "4", "--d", "8", "--distinct", "16", "--vocabularies", "64", "--repeat", "1"]
    assert run("bench_lm_head.py", *sizes).count("| 64 |") == 4


def test_bench_shapes() -> None:
    models = ["--student", "lab/student", "--teacher", "lab/teacher-sums", "--ways", "padded"]
    sizes = ["--device", "cpu", "--groups", "2", "--length", "8", "--micro-batch-tokens", "256", "--updates", "3"]
    way, seconds, *_, doctors = run("bench_shapes.py", *models, *sizes).splitlines()[-1].strip("| ").split(" | ")
    assert way == "padded" and float(seconds) > 0 and 0 < float(doctors) < 0.1


def test_compare_precision(tmp_path: Path) -> None:
    case = ["--runs", "mixed", "--processes", "1", "--updates", "1", "--groups", "2", "--episodes", "2"]
    case += ["--folder", str(tmp_path), ENGINE[0], "~callbacks.gradient"]
    name, moved, *_ = run("compare_precision.py", *case).splitlines()[-1].strip("| ").split(" | ")
    assert name == "bfloat16 forward, float32 weights"
    assert (
        float(moved.rstrip(" %")) > 50
    )  # of bfloat16 weights a step this small moves a few: behind FSDP2 they are float32


def test_bench_step() -> None:
    said = run("bench_step.py", "--updates", "2", *ENGINE)
    assert "sums: mean of 1 updates" in said
    stages = {line.split("│")[1].strip() for line in said.splitlines() if line.count("│") == 8}
    assert {"rollout", "watching in all", "publish"} <= stages, stages


def test_bench_overlap() -> None:
    said = run("bench_overlap.py", "--pairs", "1", "--steps", "1", *ENGINE)
    assert "staleness 0 ÷ staleness 1: median" in said


def test_bench_threads() -> None:
    said = run("bench_threads.py", *ENGINE, "--turns", "1", "--steps", "1", "--settings", "one thread")
    assert "1.00 (1.00 to 1.00)" in said


def test_bench_webshop() -> None:
    said = run("bench_webshop.py", "--products", "300", "--words", "2", "--steps", "20", "--prompt", "paper")
    assert "300 products: built in" in said and "steps/CPU s at random" in said


@pytest.mark.vllm
def test_bench_rollout() -> None:
    sizes = ["--episodes", "2", "--repeats", "1", "--turn-tokens", "4", "--trajectory-tokens", "256", "--threads", "1"]
    said = run("bench_rollout.py", "--env", "opdlight/ToyText-v0", "--env-args", "max_turns=2", *sizes)
    said = " ".join(said.split())
    assert said.count("in 1 pairs") == 2 and "continuous / plain vLLM" in said and "continuous / lock-step" in said


@pytest.mark.vllm
def test_bench_sampling() -> None:
    sizes = ["--model", "lab/student", "--sequences", "3", "--tokens", "4", "--turns", "1", "--threads", "1"]
    said = run("bench_sampling.py", *sizes)
    assert "3 of 3 sequences have the same tokens" in said and "in 1 turns" in said


def test_bench_envs() -> None:
    sizes = ["--scripted", "--episodes", "2", "--repeats", "1", "--workers", "1", "--threads", "1"]
    said = run("bench_envs.py", "--env", "opdlight/ToyText-v0", "--env-args", "max_turns=2", *sizes)
    assert "in 1 pairs" in " ".join(said.split()) and "1 processes" in said and "a process takes" in said


@pytest.mark.alfworld
def test_build_lab_shop(tmp_path: Path) -> None:
    run("build_lab_shop.py", "--work", str(tmp_path), "--scale", "0.0005", "demonstrations", "tokenizer")
    wide, plain = (PreTrainedTokenizerFast.from_pretrained(f) for f in (tmp_path / "wide-student", LAB / "student"))
    visit = json.loads((tmp_path / "visits.jsonl").read_text().splitlines()[0])
    game = json.loads((tmp_path / "games.jsonl").read_text().splitlines()[0])
    for step in game["steps"]:  # what the other teachers read stays as it was, to the id
        for text in (step["observation"], step["reply"]):
            assert wide(text)["input_ids"] == plain(text)["input_ids"]
    page = visit["steps"][1]["observation"]
    assert len(wide(page)["input_ids"]) < 0.8 * len(plain(page)["input_ids"])
    assert wide.decode(wide(page)["input_ids"]) == page
    assert wide("<think>")["input_ids"] == plain("<think>")["input_ids"] == [768]
    folders = LAB / "teacher-sums", tmp_path / "wide-teacher-sums"
    before, after = (LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    ids = torch.tensor([wide("<|user|>1 + 2<|end|><|assistant|>")["input_ids"]])
    old, new = before(ids).logits, after(ids).logits
    torch.testing.assert_close(new[..., :770], old)
    assert new.softmax(-1)[..., 770:].sum(-1).max() < 1e-2  # a teacher that was only widened never asks for new tokens


@pytest.mark.alfworld
def test_build_lab(tmp_path: Path) -> None:
    run("build_lab.py", "--work", str(tmp_path), "--scale", "0.0005", "demonstrations", "tokenizer", "teacher-sums")
    first = json.loads((tmp_path / "documents.jsonl").read_text().splitlines()[0])
    assert first["whole"] and len(first["steps"]) > 1
    config = json.loads((tmp_path / "teacher-sums-2" / "student" / "config.json").read_text())
    assert config["hidden_size"] == 128
    assert (tmp_path / "bad-replies.jsonl").stat().st_size > 0


def test_soak(tmp_path: Path) -> None:
    folder = tmp_path / "soak"
    said = run("soak.py", "--minutes", "10", "--updates", "2", "--folder", str(folder), "engine=vllm", *ENGINE[:2])
    figures = json.loads(Path(f"{folder}.json").read_text())
    assert [figures[key] for key in ("steps", "exit codes", "processes left")] == [2, [0], []]
    assert "steps lost or done twice" in said
