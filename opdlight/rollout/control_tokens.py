"""Only the chat template writes control tokens: any other text that spells one is encoded as ordinary text."""

import json
import re
import secrets
from collections.abc import Container, Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from opdlight.errors import PlainTextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # control tokens that a model may write itself
CACHED, SHORT = 2048, 1000  # so many texts of at most so many characters are not tokenised again
_FIRST, _LAST = 0x100000, 0x10FFFD  # private-use characters, used as placeholders while a template renders a text
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")


class Placeholders:
    """One character for each text of a conversation that must not be encoded as a control token."""

    def __init__(self) -> None:
        self._character: dict[str, str] = {}

    def of(self, text: str) -> str:
        """The placeholder of `text`: always the same, and a new one for a new text.

        Raises:
            PlainTextError: if there are more texts than private-use characters.
        """
        if len(self._character) > _LAST - _FIRST:
            raise PlainTextError(f"A conversation holds over {_LAST - _FIRST} different characters of private use.")
        return self._character.setdefault(text, chr(_FIRST + len(self._character)))

    def restore(self, text: str) -> str:
        """`text` with every placeholder replaced by the text that it stands for."""
        if not self._character:
            return text
        return text.translate({ord(c): original for original, c in self._character.items()})


class ControlTokens:
    """The control tokens of a tokenizer, and how to encode text that spells one without meaning it.

    Control tokens are the tokenizer's special tokens and, of its other added tokens, those that the chat template
    contains and the marks of thinking and tool calls. Added tokens that abbreviate text (runs of blanks, HTML) are not.

    Before a template renders a text of the environment, `escape` replaces each control token in it by a placeholder;
    after rendering, `encode` encodes the text behind a placeholder with ordinary tokens. Both leave text without a
    control token unchanged.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        self.contents = {
            i: token.content
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in MODEL_MARKS or (token.content.strip() and token.content in template)
        }  # id → text
        # actions and observations come again and again, and each is tokenised twice: alone and in the prompt
        self._cached_ids = lru_cache(CACHED)(self._tokenise)

    def escape(self, text: str, placeholders: Placeholders, *, spared: Container[str] = ()) -> tuple[str, int]:
        """`text` with a placeholder for each control token in it, except those in `spared`, and their number.

        Raises:
            PlainTextError: if the tokenizer does not report the position of a token in the text.
        """
        text = _PRIVATE.sub(lambda found: placeholders.of(found[0]), text)
        count = 0
        while found := [(s, e) for s, e, i in self._spelled(text) if self.contents[i] not in spared]:
            parts, at = [], 0
            for start, end in found:
                parts += [text[at:start], placeholders.of(text[start:end])]
                at = end
            text = "".join([*parts, text[at:]])
            count += len(found)
        return text, count

    def encode(self, text: str, placeholders: Placeholders) -> list[int]:
        """The ids of a rendered text, in which placeholders stand for ordinary text.

        Raises:
            PlainTextError: if the vocabulary has no other way to write the text of a control token.
        """
        if placeholders.restore(text) == text:
            return list(self._ids(text))
        renamed, name_of, id_of = self._renamed
        parts, at = [], 0
        for start, end, i in self._spelled(text):
            parts += [placeholders.restore(text[at:start]), name_of[i]]
            at = end
        joined = "".join([*parts, placeholders.restore(text[at:])])
        ids = []
        for i in renamed.encode(joined, add_special_tokens=False).ids:
            if i not in id_of and i in self.contents and i != self.tokenizer.unk_token_id:
                raise self._unsafe(f"its vocabulary has no other way to write {self.contents[i]!r}")
            ids.append(id_of.get(i, i))
        return ids

    def _ids(self, text: str) -> tuple[int, ...]:
        return self._cached_ids(text) if len(text) <= SHORT else self._tokenise(text)

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _spelled(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Start, end and id of each control token that the tokenizer finds in `text`."""
        if self.contents.keys().isdisjoint(self._ids(text)):
            return
        if not self.tokenizer.is_fast:
            raise self._unsafe("it is not a fast tokenizer (no tokenizer.json)")
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for i, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            unknown = i == self.tokenizer.unk_token_id and text[start:end].strip() != self.contents[i]
            if i in self.contents and not unknown:
                yield start, end, i

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, str], dict[int, int]]:
        """A copy of the tokenizer whose control tokens have names that occur in no text.

        With it go id of a control token → its name, and id in the copy → id in the tokenizer.
        """
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise self._unsafe("it is not a fast tokenizer (no tokenizer.json)")
        core, nonce = json.loads(backend.to_str()), secrets.token_hex(8)
        name_of = {i: f"{chr(_LAST)}{nonce}.{i}{chr(_LAST)}" for i in self.contents}
        plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        core["added_tokens"] = [
            {**t, **plain, "content": name_of[t["id"]]} if t["id"] in name_of else t for t in core["added_tokens"]
        ]
        core["post_processor"] = core["truncation"] = core["padding"] = None
        renamed: Any = Tokenizer.from_str(json.dumps(core))
        id_of = {renamed.token_to_id(t["content"]): t["id"] for t in core["added_tokens"]}
        return renamed, name_of, id_of

    def _unsafe(self, reason: str) -> PlainTextError:
        return PlainTextError(
            f"A text spells a control token of the tokenizer {self.tokenizer.name_or_path!r}, which cannot be encoded "
            f"as ordinary text: {reason}."
        )
