"""Tiny models and tokenizers that tests build themselves: random Llamas of a few thousand parameters."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from opdlight.models import Student

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "what is 1 + 2 ? the answer is 3 .",
    "go to north, then take the red key from the table.",
    "you win. you lose. look",
]


def tiny_tokenizer(chat_template: str | None = CHATML, vocabulary_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's special tokens; end of sequence is `<|im_end|>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(
    seed: int = 0, *, vocabulary_size: int = 320, hidden: int = 64, tied: bool = False, spread: float = 0.3
) -> LlamaForCausalLM:
    """A random 2-layer Llama in float32; `spread` is the standard deviation of its weights (large: peaked outputs)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float().eval()


def save_tiny(folder: Path, seed: int = 0, *, hidden: int = 64, tied: bool = False, spread: float = 0.3) -> Path:
    """Write a tiny model with its tokenizer as a Hugging Face folder; the vocabulary is the tokenizer's."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(seed, vocabulary_size=len(tokenizer), hidden=hidden, tied=tied, spread=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TURNS = "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + '</s>' }}{% endfor %}"  # <u>hi</s><a>go</s>
OPEN = "{% if add_generation_prompt %}<a>{% endif %}"


def character_tokenizer(
    chat_template: str | None = TURNS + OPEN, merges: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids can be written by hand: </s> 0, <s> 1, <u> 2, <a> 3, <think> 4, </think> 5, 'a' 10, …

    The marks are those of `TURNS`: <s> system, <u> user, <a> assistant. Pairs of letters in `merges` are one token
    each, with ids from 40 on, wherever text is tokenised.
    """
    marks = ["</s>", "<s>", "<u>", "<a>", "<think>", "</think>", "<bos>", "<stop>"]
    letters = [chr(ord("a") + i) for i in range(26)] + [" "]
    vocabulary = {t: i for i, t in enumerate(marks)} | {t: 10 + i for i, t in enumerate(letters)}
    vocabulary |= {pair: 40 + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in merges]))
    tokenizer.add_special_tokens(marks)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 6)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<bos>")
    fast.chat_template = chat_template
    return fast


def tiny_adapter(base: Path, folder: Path) -> Student:
    """A LoRA student on `base` whose adapter changes something, also saved to `folder`."""
    adapted = Student(str(base), lora={"r": 2, "lora_alpha": 4})
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_adapter(folder)
    return adapted


QWEN_SPLIT = (  # how Qwen2 cuts text before its merges: digits one by one, a blank with the word behind it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
) + CHATML


def save_tiny_qwen2(folder: Path, seed: int = 0, *, padding: int = 8) -> Path:
    """Write a random Qwen2 of two layers as Qwen2.5-Instruct is: grouped query heads with biases, a context of 32,768.

    Its tokenizer is a byte-level BPE with Qwen's pre-tokenisation, ChatML and a system prompt of its own. The model has
    `padding` more logits than the tokenizer has tokens; models of different sizes have different ones.
    """
    tokenizer = tiny_tokenizer(QWEN_TEMPLATE)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + padding,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).float().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
