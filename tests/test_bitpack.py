"""Packing integers of b bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq.export.bitpack import pack, unpack


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 2**31))
def test_round_trip_without_gaps(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count)
    packed = pack(codes, bits)
    assert (packed.dtype, packed.size) == (np.uint8, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=12))
def test_layout_is_one_long_number_least_significant_bit_first(bits, values):
    codes = [value % 2**bits for value in values]
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    assert pack(np.array(codes, dtype=int), bits).tobytes() == number.to_bytes(-(-len(codes) * bits // 8), "little")


def test_any_shape_is_packed_in_memory_order():
    codes = np.arange(8).reshape(2, 2, 2)
    np.testing.assert_array_equal(unpack(pack(codes, 3), 3, 8), np.arange(8))


@pytest.mark.parametrize("codes", [[4], [0, 255]])
def test_codes_that_do_not_fit_are_refused(codes):
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        pack(np.array(codes), 2)


def test_too_few_bytes_are_refused():
    with pytest.raises(ValueError, match="2 bytes hold fewer than 6 integers of 3 bits"):
        unpack(np.zeros(2, dtype=np.uint8), 3, 6)
