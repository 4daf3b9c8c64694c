"""The tokenizer of the lab models that also know WebShop."""

from transformers import PreTrainedTokenizerFast

from opdlight.models.loading import load_tokenizer
from tools.build_lab_shop import extended


def test_new_merges_never_touch_what_is_kept() -> None:
    base = load_tokenizer("lab/student")
    assert isinstance(base, PreTrainedTokenizerFast)
    kept, new = "a zebra", "quokka"
    wider = extended(base, [kept], [kept, new] * 50, len(base) + 3)
    assert len(wider) == len(base) + 3
    assert wider(kept)["input_ids"] == base(kept)["input_ids"]
    assert len(wider(new)["input_ids"]) == len(base(new)["input_ids"]) - 3
