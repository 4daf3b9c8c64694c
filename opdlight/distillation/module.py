"""The training step of on-policy distillation: roll out, flatten, score, compare, step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from opdlight.batch.collate import Collate, count_unshared, without_tokens
from opdlight.batch.split import halved, in_parts, with_global_tokens
from opdlight.distillation.hooks import WatchesRollouts, WatchesTokens
from opdlight.distillation.out_of_memory import is_out_of_memory
from opdlight.distillation.state import add_state, restore_state
from opdlight.errors import TrainingError
from opdlight.losses import Loss, Needs, Remembers
from opdlight.losses.reduce import token_mean
from opdlight.metrics.success import HeldOutOutcomes, Result
from opdlight.models.probe import Reader, Reading, read
from opdlight.models.student import Student
from opdlight.models.teachers import Teachers
from opdlight.rollout.collector import Collector
from opdlight.rollout.engines.base import Sampling
from opdlight.rollout.prefetch import Ahead
from opdlight.system.console import progress
from opdlight.system.distributed import all_gather, full_tensor
from opdlight.system.preemption import Preemption
from opdlight.system.timer import Timer
from opdlight.types import RolloutRequest, SupportScores, TeacherScores, TokenBatch, Trajectory

OfGroup = TypeVar("OfGroup", RolloutRequest, Trajectory)


class OnPolicyDistillation(L.LightningModule):
    """Owns the student, the frozen teachers and the loss; everything that only watches is a Callback.

    Args:
        student: the trained model.
        teachers: the frozen models, routed by task.
        loss: per-token objective; declares what it needs of the two models.
        collector: makes environments × engine, once the processes have found each other.
        collate: trajectories → micro-batches.
        optimizer: parameters → optimizer.
        schedule: update number → factor on the learning rate.
        sampling: the rollout policy; its temperature also divides the logits of both models (PAPER Eq. 8).
        evaluation: the policy of the validation loop.
        max_grad_norm: gradients are clipped to this 2-norm.
        reader: where the watching callbacks look.
        max_not_finite: so many updates whose loss or gradient is not finite end the run; each is skipped.
        mini_batches: updates a rollout; each takes its share of the groups.
        reference: the student as it was at the start, for losses that look at it.
        teacher_placement: where a strategy divides the student: each process has the teachers whole (`replicated`), a
            share of them (`sharded`), or a share in the CPU's memory (`offloaded`).
        staleness: 1 rolls the next batch out in a thread while this one trains, by a student that is one update older.
        seed: makes the sampling seeds of the rollouts.
    """

    def __init__(
        self,
        *,
        student: Student,
        teachers: Teachers,
        loss: Loss,
        collector: Callable[[], Collector],
        collate: Collate,
        optimizer: Callable[[Any], Optimizer],
        schedule: Callable[[int], float],
        sampling: Sampling,
        evaluation: Sampling,
        max_grad_norm: float,
        seed: int,
        reader: Reader | None = None,
        max_not_finite: int = 5,
        mini_batches: int = 1,
        reference: Teachers | None = None,
        teacher_placement: Literal["replicated", "sharded", "offloaded"] = "replicated",
        staleness: Literal[0, 1] = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = not student.has_adapter  # a checkpoint holds what is trained
        self.student, self.teachers, self.loss = student, teachers, loss
        self.make_collector, self.collate = collector, collate
        self._collector: Collector | None = None
        self.make_optimizer, self.schedule = optimizer, schedule
        self.sampling, self.evaluation = sampling, evaluation
        self.max_grad_norm, self.seed = max_grad_norm, seed
        self.reader = reader or Reader()
        self.mini_batches, self.reference = mini_batches, reference
        self.teacher_placement, self.max_not_finite = teacher_placement, max_not_finite
        self.staleness = staleness
        self.ahead = Ahead()
        self.preemption = Preemption()
        self.not_finite = 0  # updates that were skipped because of it
        self.out_of_memory = 0  # how often `micro_batch_tokens` was halved
        self.held_out = HeldOutOutcomes()
        self.before: dict[str, Result] = {}  # the student as it was at the start, by task
        self.evaluated: dict[str, Result] = {}  # the last validation loop
        self.updates = 0  # the student's version: how often its weights have changed
        self.timer = Timer()
        self.readings: list[Reading] = []  # of this rank in this step
        self.on_progress: Callable[[int, int], None] | None = None  # finished and wanted trajectories

    @property
    def collector(self) -> Collector:
        """Environments × engine."""
        if self._collector is None:
            with progress("starting the engine"):
                self._collector = self.make_collector()
        return self._collector

    def configure_model(self) -> None:
        """Divide the models over the processes, if the strategy has a mesh for it."""
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        self.student.shard(mesh)
        if self.teacher_placement != "replicated":
            for teachers in filter(None, (self.teachers, self.reference)):
                teachers.shard(mesh, offload=self.teacher_placement == "offloaded")

    def setup(self, stage: str) -> None:
        """Start the engine: now the trainer's process group is there, and the engine leaves it alone."""
        _ = self.collector

    def close(self) -> None:
        """Stop the environments and the engine."""
        if self._collector is not None:
            self._collector.cancel()
            self.ahead.rest()
            self._collector.close()
            self._collector.engine.close()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget the figures of the step before: Lightning would log them again for a task that this step lacks."""
        self.trainer.fit_loop._results.reset()
        self.evaluated = {}  # of a student that there will be no more
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = batch_idx  # Lightning miscounts in a run that goes on

    def training_step(self, requests: list[RolloutRequest], batch_idx: int) -> dict[str, Any]:
        """One update. The weights travel to the engine after it, in `publish.PublishWeights`."""
        version, not_finite = self.updates, self.not_finite
        self.timer.seconds, self.readings = {}, []
        trajectories = self.next_trajectories(requests, batch_idx)
        self._show_trajectories(trajectories, "train")
        parts = [self.flatten(part) for part in in_parts(trajectories, self.mini_batches)]
        if self.loss.needs.sampled:  # later updates compare the student with what it was when it rolled out
            parts = [parts[0], *([self.with_rollout_logprobs(b) for b in part] for part in parts[1:])]
        losses = []
        for number, part in enumerate(parts):
            loss, parts[number] = self.learn(part)
            losses.append(loss)
        totals = self.trainer.strategy.reduce(torch.stack(losses), reduce_op="sum")
        finite = totals[torch.isfinite(totals)]  # the others are counted, not averaged
        loss = finite.mean() if len(finite) else totals.new_zeros(())
        if len(finite):
            self.log("loss/train", loss, prog_bar=True)
        shares = [[b.num_tokens / b.global_tokens for b in part] for part in parts]  # of each micro-batch
        tokens = sum(part[0].global_tokens for part in parts if part)
        self.log("rollout/loss_tokens", float(tokens))
        self.log("rollout/unshared_tokens", float(sum(all_gather(count_unshared(trajectories, self.collate.shared)))))
        with self.timer("watch"):
            readings = [reading for rank in all_gather(self.readings) for reading in rank]
        return {
            "loss": loss,
            "trajectories": trajectories,
            "loss_tokens": tokens,
            "shares": shares,
            "readings": readings,
            "version": version,
            "not_finite": self.not_finite - not_finite,
        }

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Give up when too many updates were not finite; the callbacks have recorded the last one.

        Raises:
            TrainingError: when `max_not_finite` updates in all were not finite.
        """
        if self.not_finite >= self.max_not_finite:
            raise TrainingError(
                f"{self.not_finite} updates had a loss or a gradient that is not finite (`max_not_finite`). Each was "
                "skipped, so the weights are sound, and its trajectories are in trajectories.jsonl (see them in "
                "`python -m opdlight.report`). Lower optimizer.lr, or train in model.dtype=float32."
            )

    def next_trajectories(self, requests: Sequence[RolloutRequest], step: int) -> list[Trajectory]:
        """This rank's trajectories of a step; while they train, the next ones are rolled out or prepared."""
        with self.timer("rollout"), self._interruptible(rolling_out=True):
            if self.ahead:
                trajectories = self.ahead.take()
            else:
                trajectories = self.roll_out(self.own(requests), self.sampling, seed=self.seed + 1 + step)
        batches = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        if self.staleness:
            self.publish()
        if step + 1 < len(batches):
            following = self.own(batches[step + 1])
            if self.staleness:
                self.ahead.start(lambda: self.roll_out(following, self.sampling, seed=self.seed + 2 + step))
            else:
                self.collector.prepare(following)  # the environments may build their games
        return trajectories

    def publish(self) -> None:
        """⑤ The engine gets the weights, if they have changed and once no rollout goes on."""
        self.ahead.rest()
        engine = self.collector.engine
        if engine.policy_version != self.updates:
            with self.timer("publish"):
                engine.update_weights(self.student.named_weights(), self.updates)

    def own(self, batch: Sequence[OfGroup]) -> list[OfGroup]:
        """This rank's share of a batch of requests or trajectories, whole groups."""
        groups = list(dict.fromkeys((r.task, r.group) for r in batch))
        mine = set(groups[self.global_rank :: self.trainer.world_size])
        return [r for r in batch if (r.task, r.group) in mine]

    def learn(self, batches: list[TokenBatch]) -> tuple[Tensor, list[TokenBatch]]:
        """One update on micro-batches; returns its loss, and the micro-batches that fitted into memory."""
        read = len(self.readings)
        while True:
            try:
                loss = self.accumulate(batches)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.trainer.world_size > 1:  # the others are waiting in the middle of theirs
                    error.add_note("Lower `micro_batch_tokens`: of several processes none can do it by itself.")
                    raise
            del self.readings[read:]  # only here the tensors are free that the error held
            self.student.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            batches, budget = halved(batches, self.collate.micro_batch_tokens)
            self.collate, self.out_of_memory = replace(self.collate, micro_batch_tokens=budget), self.out_of_memory + 1
            self.print(f"out of memory: micro_batch_tokens is {budget} from now on")
        with self.timer("update"):
            self.update(loss, has_gradient=bool(batches))
        return loss, batches

    def accumulate(self, batches: Sequence[TokenBatch]) -> Tensor:
        """Score, compare and differentiate each micro-batch; returns the loss of all."""
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with self.timer("score"):
                scores, reading = self.score(batch)
            with self.timer("compare"):
                contribution = token_mean(self.loss(scores, batch), batch.global_tokens)
            with self.timer("backward"), self._alone(last=number + 1 == len(batches)):
                self.manual_backward(contribution * self.trainer.world_size)  # DDP averages; the token mean is a sum
            loss += contribution.detach()
            if reading is not None:
                self.readings.append(reading)
        return loss

    def roll_out(self, requests: Sequence[RolloutRequest], sampling: Sampling, seed: int) -> list[Trajectory]:
        """① The student acts. Every turn carries the policy version that produced it."""
        return self.collector.collect(requests, sampling, sampling_seed=seed, progress=self.on_progress)

    def flatten(self, trajectories: Sequence[Trajectory]) -> list[TokenBatch]:
        """② Micro-batches on this device, as many on every rank; `global_tokens` counts the loss positions of all."""
        batches = self.collate(trajectories)
        counts = all_gather((sum(b.num_tokens for b in batches), len(batches)))
        total, most = sum(tokens for tokens, _ in counts), max(number for _, number in counts)
        batches += [without_tokens(self.collate.tasks)] * (most - len(batches))
        return [b.to(self.device) for b in with_global_tokens(batches, total)]

    def score(self, batch: TokenBatch) -> tuple[SupportScores, Reading | None]:
        """③ The teacher scores the support, its own or the student's choice; the student answers. Watchers read."""
        needs, temperature = self.loss.needs, self.sampling.temperature
        shared = self.teachers.shared_vocabulary
        hidden = self.student.hidden(batch)
        chosen = self.student.chosen(hidden, needs, shared=shared)
        ask: dict[str, Any] = {"update": self.updates, "temperature": temperature, "shared": shared}
        look = None
        if any(isinstance(c, WatchesTokens) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            with self.timer("watch"):
                look = self.reader.look(batch, hidden.detach(), self.student.head(), update=self.updates, shared=shared)
        teacher = self.teachers.score(batch, needs=needs, chosen=chosen, temperature=temperature, look=look)
        if needs.reference:
            assert self.reference is not None
            start = self.reference.score(batch, needs=Needs(sampled=True), chosen=None, temperature=temperature)
            teacher = replace(teacher, reference=start.sampled)
        scores = self.student.score(
            hidden,
            batch,
            teacher=teacher,
            needs=needs,
            temperature=temperature,
            top_p=self.sampling.top_p,
        )
        if look is None or teacher.view is None:
            return scores, None
        with self.timer("watch"):
            reading = read(batch, look, teacher.view, hidden.detach(), self.student.head(), **ask)
            return scores, reading.cpu()

    @torch.no_grad()
    def with_rollout_logprobs(self, batch: TokenBatch) -> TokenBatch:
        """The batch with the log-probs of its tokens under the student as it is now."""
        with self.timer("score"):
            now = replace(self.loss.needs, support=None, normaliser=False)
            scores = self.student.score(
                self.student.hidden(batch),
                batch,
                teacher=TeacherScores(),
                needs=now,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
            )
        return replace(batch, rollout_logprobs=scores.student_sampled)

    def update(self, loss: Tensor, *, has_gradient: bool) -> None:
        """⑤ One optimizer step.

        A batch without a single loss position, or with a loss or a gradient that is not finite, changes nothing and is
        counted.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        finite = True
        if has_gradient:
            norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.student.trainable_parameters(), self.max_grad_norm))
            finite = all(all_gather(bool(torch.isfinite(loss) & torch.isfinite(norm))))
        if has_gradient and not finite:
            optimizer.zero_grad(set_to_none=True)
            self.not_finite += 1
        elif has_gradient:
            self.log("optimizer/grad_norm", norm)
            self.log("optimizer/learning_rate", optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler = self.lr_schedulers()
            assert isinstance(scheduler, LRScheduler)
            scheduler.step()
            self.updates += 1
            if isinstance(self.loss, Remembers):
                self.loss.end_update(all_gather)
        self.log("optimizer/skipped", 0.0 if has_gradient else 1.0)
        self.log("optimizer/not_finite", float(self.not_finite))
        self.log("optimizer/out_of_memory", float(self.out_of_memory))

    def validation_step(self, requests: list[RolloutRequest], batch_idx: int) -> None:
        """Roll out the held-out episodes of one task."""
        task = requests[0].task
        with self.timer(f"evaluate {task}"), self._interruptible(rolling_out=False):
            trajectories = self.roll_out(self.own(requests), self.evaluation, seed=0)
        self._show_trajectories(trajectories, "val")
        self.held_out.reset()
        self.held_out.update(trajectories)
        self.evaluated[task] = Result.of_rows(self.held_out.compute())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of every task that was evaluated."""
        for task, result in self.evaluated.items():  # of all ranks already, so Lightning need not reduce them
            self.log(f"val/success/{task}", result.success)
            self.log(f"val/reward/{task}", result.reward)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trained parameters and its schedule by update."""
        optimizer = self.make_optimizer(self.student.trainable_parameters())
        return [optimizer], [LambdaLR(optimizer, self.schedule)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """All that a step depends on."""
        add_state(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        restore_state(self, checkpoint)

    @contextmanager
    def _interruptible(self, *, rolling_out: bool) -> Iterator[None]:
        """Within, nothing is half done: SIGTERM need not wait, unless other processes would."""
        before = self.preemption.busy, self.preemption.rolling_out
        self.preemption.busy, self.preemption.rolling_out = self.trainer.world_size > 1, rolling_out
        try:
            yield
        finally:
            self.preemption.busy, self.preemption.rolling_out = before

    def _alone(self, *, last: bool) -> AbstractContextManager[None]:
        """Within, a backward pass keeps its gradient to itself; the last one of an update adds up those of all."""
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _show_trajectories(self, trajectories: Sequence[Trajectory], stage: Literal["train", "val"]) -> None:
        with self.timer("watch"):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WatchesRollouts):
                    callback.on_trajectories(self, trajectories, stage)
