"""A student that writes some special tokens with other ids than the teacher (arXiv 2603.25562, failure mode 3)."""

import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from opdlight.batch.collate import Collate
from opdlight.config import instantiate, make_trainer
from opdlight.data.requests import episode_seed
from opdlight.data.tasks import Task
from opdlight.distillation.schedules import learning_rate
from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.loading import load_model, save_model
from opdlight.rollout import ChatRenderer
from opdlight.sft.demonstrations import demonstrate, tokens
from opdlight.sft.module import SupervisedFineTuning
from opdlight.sft.run import batches
from opdlight.system.quiet import quiet_libraries
from opdlight.types import SharedVocabulary


def other_tokenizer(tokenizer: PreTrainedTokenizerFast, dropped: Sequence[str], end: str) -> PreTrainedTokenizerFast:
    """The tokenizer without the added tokens `dropped` and with `end` as its end of sequence.

    Only the last ids can be dropped, so that all others keep their meaning and the vocabularies stay comparable. The
    text of a dropped token is then encoded with several tokens of the base vocabulary.

    Raises:
        ConfigError: if a token is not among the last added ones, or `end` is not a token.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    added = sorted(core["added_tokens"], key=lambda t: t["id"])
    rest = added[: len(added) - len(dropped)]
    if {t["content"] for t in added[len(rest) :]} != set(dropped) or added[-1]["id"] != len(tokenizer) - 1:
        raise ConfigError.wrong(
            "special.students.*.dropped", expected="the last added tokens of the student's tokenizer", got=list(dropped)
        )
    core["added_tokens"] = rest
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)),
        eos_token=end,
        pad_token=tokenizer.pad_token,
        clean_up_tokenization_spaces=False,
    )
    if end not in tokenizer.get_vocab():
        raise ConfigError.wrong("special.end", expected="a token of the student's vocabulary", got=end)
    made.chat_template = tokenizer.chat_template
    return made


def write_other_student(cfg: DictConfig, dropped: Sequence[str], folder: Path) -> None:
    """Write the configured student with `other_tokenizer` to `folder`, without the embeddings of dropped tokens."""
    plain: Student = instantiate(cfg.model.student)
    tokenizer = other_tokenizer(plain.tokenizer, dropped, cfg.special.end)  # type: ignore[arg-type]
    model = load_model(cfg.model.student.model, cfg.model.dtype, trust_remote_code=cfg.model.trust_remote_code)
    model.resize_token_embeddings(len(tokenizer))
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_model(model, tokenizer, folder)


def taught_student(cfg: DictConfig, dropped: Sequence[str], name: str, task: Task, folder: Path) -> Student:
    """The student of `write_other_student` after a few supervised updates on demonstrations, saved to `folder`."""
    start = folder.with_name(f"{folder.name}-untaught")
    write_other_student(cfg, dropped, start)
    chat_template = instantiate(cfg.model.student.get("chat_template") or {})
    student = Student(str(start), cfg.model.dtype, cfg.model.compute_dtype, chat_template=chat_template)
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    special = cfg.special
    seeds = [episode_seed(cfg.seed, name, "failure modes", i) for i in range(special.demonstrations)]
    end = student.tokenizer.eos_token_id  # not the end that the template writes
    shown = [tokens(demonstrate(name, task, seed, detours=0.0), renderer, end) for seed in seeds]
    module = SupervisedFineTuning(
        student=student,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=special.learning_rate, weight_decay=0.0),
        schedule=learning_rate("cosine", warmup=5, updates=special.sft_updates),
        max_grad_norm=1.0,
    )
    collate = Collate(
        tasks=(name,),
        shared=SharedVocabulary(student.head().width),
        micro_batch_tokens=cfg.model.micro_batch_tokens,
    )
    data = batches(shown, collate, batch_size=special.batch_size, updates=special.sft_updates, seed=cfg.seed)
    quiet_trainer(cfg, special.sft_updates).fit(module, data)
    student.save(folder)
    return student


def quiet_trainer(cfg: DictConfig, updates: int) -> L.Trainer:
    """The configured trainer without output: no logger, checkpoint or progress bar."""
    quiet_libraries()
    return make_trainer(
        cfg.trainer,
        max_steps=updates,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
