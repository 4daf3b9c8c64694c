"""The one test of this folder that is collected everywhere."""

import pytest
import torch

from opdlight.models.flops import peak_flops


@pytest.mark.skipif(not torch.cuda.is_available(), reason="tests/gpu needs a CUDA GPU")
def test_what_the_card_can_do_is_known_for_mfu() -> None:
    assert peak_flops(torch.device("cuda"), torch.bfloat16)
