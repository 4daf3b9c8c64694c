"""What a server is asked about one row, and what its reply must hold before anything is trained on it."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opdlight.types import SharedVocabulary

EPSILON = 1e-3  # rounding: how far a log-prob may lie above 0, and a mass above 1
Wrong = Callable[[str, object], Exception]  # (expected, got) → the error to raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about one row."""

    ids: list[int]  # [T]
    columns: Tensor  # [n] each predicts the token at column + 1
    k: int = 0  # width of the top-K
    named: Tensor | None = None  # [n, C] ids to score, −1 on filler
    full_vocabulary: bool = False  # all V log-probs instead

    def sampling(self) -> dict[str, Any]:
        """The request's sampling parameters: it generates one token, since vLLM takes no fewer; it is not used."""
        found: dict[str, Any] = {"max_tokens": 1, "prompt_logprobs": -1 if self.full_vocabulary else self.k}
        if self.named is not None:
            start = int(self.columns.min())
            rows = torch.full((len(self.ids) - 1 - start, self.named.shape[1]), -1)
            rows[self.columns - start] = self.named
            found |= {"prompt_logprob_start": start, "prompt_logprob_token_ids": rows.tolist()}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says at n positions; log-probs at temperature 1, normalised over its full width."""

    sampled: Tensor  # [n] of the token that follows
    top_ids: Tensor  # [n, k]
    top_logprobs: Tensor  # [n, k]
    named_ids: Tensor | None = None  # [n, C] −1 on filler
    named_logprobs: Tensor | None = None  # [n, C]
    table: Tensor | None = None  # [n, V] instead of the above

    @classmethod
    def join(cls, parts: Sequence["Answer"], order: Tensor, device: torch.device) -> Self:
        """Several rows' answers as one, in `order` [N], on `device`."""
        columns: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(p, field.name) for p in parts]
            columns[field.name] = None if values[0] is None else torch.cat(values)[order].to(device)
        return cls(**columns)

    def pick(self, at: Tensor) -> Self:
        """The answer at the places `at`."""
        return type(self).join([self], at, at.device)

    @classmethod
    def empty(cls, width: int, device: torch.device) -> Self:
        """The answer at no position."""
        table = torch.zeros(0, width, device=device)
        return cls(sampled=table[:, 0], top_ids=table[:, :0].long(), top_logprobs=table[:, :0], table=table)

    def top(self, k: int, shared: SharedVocabulary) -> tuple[Tensor, Tensor]:
        """The `k` best of the shared ids and their log-probs [n, k]; −∞ where fewer are known."""
        if self.table is not None:
            logprobs, ids = shared.only(self.table).topk(k, dim=-1)
            return ids, logprobs
        logprobs, places = self.top_logprobs.masked_fill(~shared.holds(self.top_ids), -torch.inf).topk(k, dim=-1)
        return self.top_ids.gather(1, places), logprobs

    def at(self, ids: Tensor) -> Tensor:
        """Log-probs of `ids` [n, K]; NaN where they are not known."""
        if self.table is not None:
            return self.table.gather(1, ids)
        named = [] if self.named_ids is None else [self.named_ids]
        known, order = torch.cat([self.top_ids, *named], 1).sort(dim=1)
        told = [] if self.named_logprobs is None else [self.named_logprobs]
        logprobs = torch.cat([self.top_logprobs, *told], 1).gather(1, order)
        place = torch.searchsorted(known, ids.contiguous()).clamp(max=known.shape[1] - 1)
        return logprobs.gather(1, place).masked_fill(known.gather(1, place) != ids, torch.nan)

    def difference(self, later: "Answer") -> float:
        """Mean |Δ log q| in nats of the tokens and the better half of the top-K; 1 for an id that is told no more."""
        logprobs, places = self.top_logprobs.topk(self.top_ids.shape[1] // 2, dim=-1)
        moved = later.at(self.top_ids.gather(1, places)) - logprobs
        return float(torch.cat([(later.sampled - self.sampled)[:, None], moved], 1).abs().nan_to_num(1.0).mean())

    def entropy(self) -> Tensor | None:
        """−Σ_v q log q [n] in nats; None without the full vocabulary."""
        return None if self.table is None else -(self.table.exp() * self.table).sum(-1)


def read_answer(reply: dict[str, Any], question: Question, width: int, wrong: Wrong) -> Answer:
    """The answer in a reply, checked: positions, tokens, ids in [0, width), finite log-probs ≤ 0, mass ≤ 1."""
    told, ids = reply.get("prompt_logprobs"), question.ids
    if not isinstance(told, list) or len(told) != len(ids):
        raise wrong(f"prompt log-probs of {len(ids)} tokens", len(told) if isinstance(told, list) else told)
    expected = width if question.full_vocabulary else question.k
    sampled: list[float] = []
    top_ids: list[list[int]] = []
    top: list[list[float]] = []
    for place in (question.columns + 1).tolist():
        token = str(ids[place])
        try:
            here = {i: float(entry["logprob"]) for i, entry in told[place].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise wrong(f"log-probs by id at {place}", told[place]) from error
        if token not in here:
            raise wrong(f"the log-prob of the token {token} that it was sent at {place}", here)
        sampled.append(here[token])
        if len(here) == expected + 1:  # the token stands beside the top-K unless it is one of them
            del here[token]
        if len(here) != expected:
            raise wrong(f"{expected} log-probs at {place}", f"{len(here)} of them")
        top_ids.append([int(i) for i in here])
        top.append(list(here.values()))
    found_ids = torch.tensor(top_ids, dtype=torch.long).view(len(sampled), expected)
    found = torch.tensor(top, dtype=torch.float32).view(len(sampled), expected)
    if expected and not bool(((found_ids >= 0) & (found_ids < width)).all()):
        raise wrong(f"ids of the teacher's vocabulary, 0 to {width - 1}", [int(i) for i in found_ids.aminmax()])
    told_sampled, found = _checked(torch.tensor(sampled), wrong), _checked(found, wrong)
    mass = found.exp().sum(-1)
    if bool((mass > 1 + EPSILON).any()):
        raise wrong("log-probs of one distribution", f"a mass of {float(mass.max()):.4f}")
    if question.full_vocabulary:
        table = torch.empty_like(found).scatter_(1, found_ids, found)
        return Answer(sampled=told_sampled, top_ids=found_ids[:, :0], top_logprobs=found[:, :0], table=table)
    return Answer(
        sampled=told_sampled,
        top_ids=found_ids,
        top_logprobs=found,
        named_ids=question.named,
        named_logprobs=None if question.named is None else _named(reply, question, question.named, wrong),
    )


def _named(reply: dict[str, Any], question: Question, asked: Tensor, wrong: Wrong) -> Tensor:
    """Log-probs [n, C] of the ids that were asked for."""
    told, start = reply.get("prompt_token_id_logprobs"), int(question.columns.min())
    shape = (len(question.ids) - 1 - start, asked.shape[1])
    if not isinstance(told, str):
        raise wrong(f"the log-probs {list(shape)} of the ids it was sent", told)
    try:
        array = np.lib.format.read_array(io.BytesIO(base64.b64decode(told, validate=True)), allow_pickle=False)
    except ValueError as error:
        raise wrong(f"the log-probs {list(shape)} of the ids it was sent", str(error)) from error
    if array.shape != shape or array.dtype.kind != "f":
        raise wrong(f"the log-probs {list(shape)} of the ids it was sent", (array.shape, str(array.dtype)))
    found = torch.from_numpy(array.astype(np.float32))[question.columns - start]
    _checked(found.clamp(min=-1e4), wrong)  # −∞ is an honest log-prob, and that of filler
    return found


def _checked(logprobs: Tensor, wrong: Wrong) -> Tensor:
    good = torch.isfinite(logprobs) & (logprobs <= EPSILON)
    if not bool(good.all()):
        raise wrong("finite log-probs ≤ 0", logprobs[~good][:3].tolist())
    return logprobs
