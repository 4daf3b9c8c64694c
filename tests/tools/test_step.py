"""What `tools/bench_step.py` counts and what its table says."""

from dataclasses import replace

from opdlight.models.flops import LayerFlops
from tests.models.architectures import random_batch
from tools.bench_step import WATCHING, needed, table


def test_the_table_divides_flops_by_seconds_and_by_the_peak() -> None:
    seconds = [{"a": 9.0, "b": 9.0, WATCHING: 9.0}, {"a": 3.0, "b": 1.0, WATCHING: 0.5}]
    made = table("sums", seconds, [{"b": 9e9}, {"b": 2e9}], peak=8e9)
    assert str(made.title) == "sums: mean of 1 updates, 4.00 s; the first one 18.00 s"
    rows = [[str(cell) for cell in row] for row in zip(*(column.cells for column in made.columns), strict=True)]
    assert rows == [
        ["a", "9.000", "3.000", "75.0 %", "", "", ""],
        ["b", "9.000", "1.000", "25.0 %", "2.00", "2.0", "25 %"],
        [WATCHING, "9.000", "0.500", "12.5 %", "", "", ""],
    ]


def test_what_rows_begin_with_is_counted_once_but_in_attention() -> None:
    batch = random_batch([3, 2])
    ids = batch.input_ids.clone()
    ids[0, :3] = ids.new_tensor([1, 2, 3])
    ids[1, :2] = ids.new_tensor([1, 4])  # 1 2 3 and 1 4: four distinct tokens
    flops = LayerFlops(per_token=100.0, per_square=1.0)
    assert needed(flops, replace(batch, input_ids=ids)) == 4 * 100 + 3**2 + 2**2
    assert needed(None, batch) == 0
