"""What the teacher thinks of the student's first greedy answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from transformers import GenerationConfig

from opdlight.batch.collate import Collate
from opdlight.data.requests import episode_seed
from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import PROMPTS, Pair, Patient
from opdlight.doctor.scores import sampled
from opdlight.doctor.special_tokens import THINKING, TOOLS, encode, stop_ids
from opdlight.rollout import ChatRenderer, Collector, Sampling
from opdlight.types import RolloutRequest, Status, Trajectory, Turn

SHOWN = 5
REJECTED = -5.0  # median log-prob in nats of a token that the teacher would not have written
COLD_START = "if it ends badly, first let the student learn the form of the answers: python -m opdlight.sft task="
Play = Callable[[Patient, str], list[Trajectory]]  # task → trajectories


@torch.no_grad()
def first_turns(patient: Patient, task: str) -> list[Trajectory]:
    """The student's greedy answers to the first prompts of a few episodes, by transformers."""
    student, limits = patient.student, patient.tasks[task]
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    stops = [*stop_ids(student.tokenizer, student.model), *patient.stop]
    found = []
    for number, opening in enumerate(patient.openings(task)):
        prompt = renderer.start(opening.system_prompt, opening.observation).prompt_ids
        how = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(1, min(limits.turn_tokens, limits.trajectory_tokens - len(prompt))),
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,
        )
        ids = torch.tensor([prompt], device=student.head().weight.device)
        generate: Any = student.model.generate
        whole = generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        answer = whole[0, len(prompt) :].tolist()
        turn = Turn(
            prompt_ids=prompt,
            completion_ids=answer,
            sampled_logprobs=[0.0] * len(answer),
            finish_reason="stop" if answer and answer[-1] in stops else "length",
            policy_version=0,
            reward=0.0,
        )
        found.append(
            Trajectory(task=task, group=number, seed=number, turns=[turn], reward=0.0, status=Status.TRUNCATED_TURNS)
        )
    return found


def whole_episodes(collector: Collector) -> Play:
    """Greedy episodes to their end, by the configured engine."""

    def play(patient: Patient, task: str) -> list[Trajectory]:
        seeds = [episode_seed("doctor", task, i) for i in range(PROMPTS)]
        requests = [RolloutRequest(task=task, seed=seed, group=i) for i, seed in enumerate(seeds)]
        return collector.collect(requests, Sampling(temperature=0.0, stop=patient.stop))

    return play


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One token of the vocabulary in all answers."""

    token: int
    logprobs: list[float]  # log q(y) at each occurrence
    share: float  # of the answers that hold it

    def shown(self, text: str) -> str:
        """Text, mean and count."""
        return f"{text!r} {fmean(self.logprobs):.1f} ({len(self.logprobs)}×)"


def judge(patient: Patient, pair: Pair, trajectories: Sequence[Trajectory]) -> list[Judged]:
    """Log q of every sampled token that carries loss, gathered by token."""
    collate = Collate(tasks=pair.tasks, shared=pair.shared, micro_batch_tokens=1, loss_mask=patient.mask.loss_mask)
    seen: dict[int, list[float]] = {}
    holders: dict[int, int] = {}
    for trajectory in trajectories:
        here: set[int] = set()
        for batch in collate([trajectory]):
            for token, logprob in zip(
                batch.target_ids.tolist(), sampled(pair.teacher, batch, pair.shared).tolist(), strict=True
            ):
                seen.setdefault(token, []).append(logprob)
                here.add(token)
        for token in here:
            holders[token] = holders.get(token, 0) + 1
    return [Judged(token=t, logprobs=v, share=holders[t] / len(trajectories)) for t, v in seen.items()]


def check_answers(patient: Patient, pair: Pair, play: Play = first_turns) -> list[Finding]:
    """Mean log q per token, and the tokens that the teacher would not have written."""
    trajectories = [t for task in pair.tasks for t in play(patient, task)]
    judged = judge(patient, pair, trajectories)
    turns = [turn for t in trajectories for turn in t.turns]

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="greedy answers", about=pair.name, verdict=verdict, evidence=evidence, repair=repair)]

    if not judged:
        return found(Verdict.FAIL, f"{len(turns)} answers hold no token that carries loss", "mask.tokens=[]")
    logprobs = [x for j in judged for x in j.logprobs]
    mean, uniform = fmean(logprobs), -math.log(pair.teacher.width)
    cut = sum(turn.finish_reason == "length" for turn in turns)
    worst = sorted(judged, key=lambda j: fmean(j.logprobs))[:SHOWN]
    tokenizer = pair.student.tokenizer
    evidence = (
        f"mean log q {mean:.2f} nats a token over {len(logprobs)} tokens of {len(turns)} answers (a guess has "
        f"{uniform:.1f}); {cut} of {len(turns)} were cut; worst tokens: "
        + ", ".join(j.shown(str(tokenizer.decode([j.token]))) for j in worst)
    )
    if mean < uniform / 2:
        return found(Verdict.FAIL, f"the teacher would not answer so: {evidence}", f"{pair.key}=<another model>")
    refused = [j.token for j in judged if j.share >= 0.5 and len(j.logprobs) > 1 and median(j.logprobs) < REJECTED]
    if refused:
        names = [str(t) for t in tokenizer.convert_ids_to_tokens(refused)]
        problem = f"the teacher would not write {' '.join(map(repr, names))} where most answers do"
        if set(refused) <= steering(pair):
            mask = override("mask.tokens", [*patient.mask_tokens, *names])
            return found(Verdict.WARN, f"{problem}: {evidence}", mask)
        return found(Verdict.WARN, f"{problem}: {evidence}", f"{COLD_START}{pair.tasks[0]}")
    if mean < uniform / 4:
        return found(Verdict.WARN, f"the teacher would hardly answer so: {evidence}", f"{COLD_START}{pair.tasks[0]}")
    if cut == len(turns):
        longer = override(f"task.tasks.{pair.tasks[0]}.turn_tokens", 2 * patient.tasks[pair.tasks[0]].turn_tokens)
        return found(Verdict.WARN, f"no answer came to an end: {evidence}", longer)
    return found(Verdict.PASS, evidence)


def steering(pair: Pair) -> set[int]:
    """The student's ids that mark turns, thoughts and ends; in several pieces where it lacks the token."""
    tokenizer = pair.student.tokenizer
    pieces = [i for text in (*THINKING, *TOOLS) for i in encode(tokenizer, text)]
    return {*pieces, *tokenizer.get_added_vocab().values(), *stop_ids(tokenizer, pair.student.model)}
