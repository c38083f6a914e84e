"""Hidden states survive the wire bit by bit, and arrive as one block of rows."""

from __future__ import annotations

import pytest
import torch

from swarmd.core.frames import DType
from swarmd.engine import codec


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_payloads_keep_every_bit(dtype: torch.dtype) -> None:
    hidden = torch.randn(5, 16).to(dtype)
    payloads = [codec.to_payload(hidden[:2]), codec.to_payload(hidden[2:])]
    assert [p.nbytes for p in payloads] == [2 * 16 * dtype.itemsize, 3 * 16 * dtype.itemsize]
    assert torch.equal(codec.gather(payloads, dtype), hidden)


def test_a_payload_of_another_precision_is_converted() -> None:
    hidden = torch.randn(3, 8)
    payload = codec.to_payload(hidden.bfloat16())
    assert payload.dtype is DType.BFLOAT16
    assert torch.equal(codec.gather([payload], torch.float32), hidden.bfloat16().float())


def test_a_payload_does_not_keep_its_batch_alive() -> None:
    batch = torch.randn(64, 8)
    payload = codec.to_payload(batch[:1])
    batch.zero_()
    assert isinstance(payload.data, bytes)
    assert any(payload.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_is_what_gather_gives_and_is_made_once(dtype: torch.dtype) -> None:
    one, places = codec.OneRow(dtype), set()
    for width in (64, 64, 64, 32):
        payload = codec.to_payload(torch.randn(1, width).to(dtype))
        row = one.hidden(payload)
        assert torch.equal(row, codec.gather([payload], dtype))
        places.add((width, row.data_ptr()))
    assert len(places) == 2, "one for each width"
    other = torch.float16 if dtype is torch.float32 else torch.float32
    payload = codec.to_payload(torch.randn(1, 8).to(other))
    assert torch.equal(one.hidden(payload), codec.gather([payload], dtype))
    assert [one.token(n).tolist() for n in (5, (1 << 31) - 1, 0)] == [[5], [(1 << 31) - 1], [0]]
    assert one.token(1).data_ptr() == one.token(2).data_ptr()


def test_a_row_that_goes_out_is_copied_wherever_it_lies() -> None:
    one, place = codec.OneRow(torch.float32), torch.zeros(1, 8)
    sent = []
    for number in range(3):
        place.fill_(number)
        sent.append(one.payload(place))
    for width in (8, 4, 16):
        row = torch.randn(3, width)[1:2]
        assert one.payload(row) == codec.to_payload(row)
    assert sent == [codec.to_payload(torch.full((1, 8), float(number))) for number in range(3)]
    half = torch.randn(1, 4).bfloat16()
    assert one.payload(half) == codec.to_payload(half)
