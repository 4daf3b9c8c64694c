"""One trajectory while it is rolled out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from opdlight.rollout.engines.base import Completion
from opdlight.rollout.rendering import Conversation
from opdlight.types import RolloutRequest, Status, Trajectory, Turn


@dataclass(slots=True)
class Episode:
    """A trajectory while it is rolled out."""

    request: RolloutRequest
    conversation: Conversation | None = None
    completion: Completion | None = None  # the last one; the environment has not answered it yet
    turns: list[Turn] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def end_turn(self, reward: float, metrics: Mapping[str, float]) -> None:
        """Record the last completion as a turn; nothing if there is none yet."""
        if self.completion is None or self.conversation is None:
            return
        turn = Turn(
            prompt_ids=self.conversation.prompt_ids,
            completion_ids=self.completion.token_ids,
            sampled_logprobs=self.completion.logprobs,
            finish_reason=self.completion.finish_reason,
            policy_version=self.completion.policy_version,
            reward=reward,
            metrics=metrics,
        )
        self.turns.append(turn)

    def trajectory(self, status: Status) -> Trajectory:
        """The finished trajectory."""
        return Trajectory(
            task=self.request.task,
            group=self.request.group,
            seed=self.request.seed,
            turns=self.turns,
            reward=sum(turn.reward for turn in self.turns),
            status=status,
            metrics=self.metrics,
            spelled_control_tokens=self.conversation.spelled if self.conversation else 0,
        )


def sampling_seed_of(request: RolloutRequest, turn: int, sampling_seed: int) -> int:
    """The sampling seed of a turn, in [0, 2⁶³); it depends only on the arguments, on every machine alike."""
    parts = (sampling_seed, request.task, request.seed, request.group, request.sample, turn)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1
