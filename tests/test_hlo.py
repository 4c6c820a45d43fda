"""What is read off the text of a compiled program."""

import pytest

from lgm_jax import hlo


@pytest.mark.parametrize(
    ("line", "kind", "numbers", "num_bytes"),
    [
        ("f32[4]{0} all-gather(f32[2]{0} %x)", "all-gather", 4, 16),
        ("(f32[2]{0}, f32[4]{0}) all-gather-start(f32[2]{0} %x)", "all-gather", 4, 16),
        ("(f32[2]{0}, bf16[3]{0}) all-reduce-start(%x, %y)", "all-reduce", 5, 14),
        (
            "(f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(f32[2]{0} %x)",
            "collective-permute",
            2,
            8,
        ),
    ],
)
def test_a_collective_counts_what_it_returns(line, kind, numbers, num_bytes):
    text = f"ENTRY %main () -> f32[] {{\n  %a = {line}, replica_groups={{{{0,1}}}}\n}}\n"
    assert hlo.read_collectives(text, 2) == [hlo.Collective(kind, numbers, num_bytes, 2, 1.0)]
