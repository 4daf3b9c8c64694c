"""Two language models that are small enough for exact gradients: Markov chains over V tokens, as tables of logits."""

from dataclasses import replace

import torch
from torch import Tensor

from opdlight.losses import Loss, Needs, Remembers
from opdlight.models import ScoreRequest
from opdlight.models.lm_head import LMHead
from opdlight.models.scorer import student_scores, with_student
from opdlight.models.teacher import teacher_scores
from opdlight.types import SharedVocabulary, SupportScores, TokenBatch


def table_scores(needs: Needs, z: Tensor, q: Tensor, tokens: Tensor) -> SupportScores:
    """The scores that a loss needs, computed from logits with the code of the LM head and the identity as its weight.

    Temperature 1; no reference model. Gradients flow into z, not into q.

    Args:
        needs: of the loss.
        z: student logits [N, V].
        q: teacher logits [N, V].
        tokens: sampled tokens [N].
    """
    head = LMHead(weight=torch.eye(z.shape[1], dtype=z.dtype, device=z.device))
    request = ScoreRequest(needs=needs, shared=SharedVocabulary(z.shape[1]))
    request, _ = with_student(z, head, tokens, request)
    return student_scores(z, head, tokens, request, teacher_scores(q, head, tokens, request))


def table_batch(tokens: Tensor, length: int) -> TokenBatch:
    """A batch of sequences of `length` tokens, which stand one after the other in `tokens` [N]."""
    n = len(tokens)
    zeros, up = torch.zeros(n, dtype=torch.long), torch.arange(n)
    return TokenBatch(
        input_ids=torch.zeros(1, n + 1, dtype=torch.long),
        attention_mask=torch.ones(1, n + 1, dtype=torch.bool),
        position_ids=torch.arange(n + 1).unsqueeze(0),
        row_index=zeros,
        col_index=up,
        target_ids=tokens,
        sampled_logprobs=torch.zeros(n),
        turn_index=zeros,
        token_position=up % length,
        trajectory_index=up // length,
        task_index=zeros,
        group_advantage=torch.zeros(n),
        tasks=("chain",),
        global_tokens=n,
    )


def random_pair(vocabulary: int, gap: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits [V+1, V] of a student, and of a teacher: the student plus noise of size `gap`; row V is the start."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, vocabulary + 1, vocabulary, generator=generator, dtype=torch.float64).unbind()
    return student, student + gap * noise


def sample(student: Tensor, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample `count` sequences: states [count, length], which are the tokens before (V at the start), and tokens."""
    probabilities = student.softmax(-1)
    state = torch.full((count,), student.shape[1])
    states, tokens = [], []
    for _ in range(length):
        states.append(state)
        state = torch.multinomial(probabilities[state], 1, generator=generator).squeeze(1)
        tokens.append(state)
    return torch.stack(states, 1), torch.stack(tokens, 1)


def sequence_gradients(student: Tensor, teacher: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The exact gradients [V+1, V] of KL(student‖teacher) over sequences: the full one, and with d_t detached.

    KL = Σ_t Σ_s d_t(s) KL_s with the distribution d_t of the states at step t. A token-level estimator estimates the
    second gradient.
    """
    theta = student.clone().requires_grad_()
    log_pi = theta.log_softmax(-1)
    local = (log_pi.exp() * (log_pi - teacher.log_softmax(-1))).sum(-1)
    visits = torch.zeros(len(theta), dtype=theta.dtype)
    visits[-1] = 1.0
    total, frozen = torch.zeros((), dtype=theta.dtype), torch.zeros((), dtype=theta.dtype)
    for _ in range(length):
        total = total + (visits * local).sum()
        frozen = frozen + (visits.detach() * local).sum()
        visits = torch.cat([visits @ log_pi.exp(), torch.zeros(1, dtype=theta.dtype)])
    exact = torch.autograd.grad(total, theta, retain_graph=True)[0]
    return exact, torch.autograd.grad(frozen, theta)[0]


def gradients(loss: Loss, student: Tensor, teacher: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    """The estimate Σ_t ∂ℓ_t/∂θ of each sequence, [count, (V+1)·V], in one backward pass.

    The loss of a token depends on θ only through the logits of its state. So one gets the gradients of all sequences
    from the gradient of the sum of all losses in these logits, summed by sequence and state.
    """
    count, length = tokens.shape
    z = student[states.flatten()].requires_grad_()
    scores = table_scores(loss.needs, z, teacher[states.flatten()], tokens.flatten())
    batch = table_batch(tokens.flatten(), length)
    (each,) = torch.autograd.grad(loss(scores, replace(batch, global_tokens=count)).sum(), z)
    place = (torch.arange(count).repeat_interleave(length)) * len(student) + states.flatten()
    found = each.new_zeros(count * len(student), student.shape[1]).index_add_(0, place, each)
    return found.view(count, -1)


def remember(loss: Loss, student: Tensor, teacher: Tensor, length: int, generator: torch.Generator) -> None:
    """Give a loss with a running mean the data of one earlier update, as in training."""
    if isinstance(loss, Remembers):
        gradients(loss, student, teacher, *sample(student, 512, length, generator))
        loss.end_update()
