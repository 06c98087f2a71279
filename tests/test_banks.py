"""The rings: first in first out, quota, and the state that makes a resumed run the same run."""

import pytest
import torch

from semiseg.banks import ClassBank, as_pixels, pixels_at


def test_oldest_entries_leave_first() -> None:
    bank = ClassBank(2, 3, 1)
    for value in range(5):
        bank.push(torch.tensor([[float(value)]]), torch.tensor([1]), quota=1)
    assert sorted(bank[1].flatten().tolist()) == [2, 3, 4]
    assert len(bank[0]) == 0
    vectors, classes = bank.everything()
    assert sorted(vectors.flatten().tolist()) == [2, 3, 4] and classes.tolist() == [1, 1, 1]


def test_quota_and_foreign_labels() -> None:
    bank = ClassBank(2, 8, 1)
    bank.push(torch.arange(20.0)[:, None], torch.tensor([0] * 10 + [255] * 10), quota=4)
    kept = bank[0].flatten()
    assert len(kept) == 4 and len(kept.unique()) == 4 and kept.max() < 10


def test_more_than_a_ring_holds_in_one_push() -> None:
    bank = ClassBank(1, 3, 1)
    bank.push(torch.arange(9.0)[:, None], torch.zeros(9, dtype=torch.long), quota=9)
    assert len(bank[0].unique()) == 3


def test_everything_is_state() -> None:
    bank, other = ClassBank(2, 3, 2), ClassBank(2, 3, 2)
    bank.push(torch.randn(4, 2), torch.tensor([0, 1, 1, 1]), quota=3)
    other.load_state_dict(bank.state_dict())
    for b in (bank, other):
        b.push(torch.ones(1, 2), torch.tensor([1]), quota=1)
    assert all(torch.equal(a, b) for a, b in zip(bank.state_dict().values(), other.state_dict().values(), strict=True))


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="size=0"):
        ClassBank(2, 0, 4)


def test_as_pixels_keeps_order() -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(as_pixels(x)[1 * 20 + 2 * 5 + 3], x[1, :, 2, 3])


def test_append_wraps_around_in_order_and_leaves_other_classes_alone() -> None:
    bank = ClassBank(3, 3, 1)
    bank.append(torch.tensor([[1.0], [2], [10]]), torch.tensor([0, 0, 2]))
    bank.append(torch.tensor([[3.0], [4]]), torch.tensor([0, 0]))
    assert bank.rows[..., 0].tolist() == [[4, 2, 3], [0, 0, 0], [10, 0, 0]]
    assert bank.filled.tolist() == [3, 0, 1] and bank.head.tolist() == [1, 0, 1]
    bank.append(torch.arange(20.0, 25)[:, None], torch.tensor([0, 0, 0, 0, 1]))
    assert sorted(bank[0].flatten().tolist()) == [21, 22, 23], "of more than the size the newest"
    assert bank[1].tolist() == [[24]]
    bank.append(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    assert bank.filled.tolist() == [3, 1, 1]


def test_pixels_at_are_rows_of_as_pixels() -> None:
    x, index = torch.randn(2, 3, 4, 5), torch.tensor([0, 39, 7, 21])
    assert torch.equal(pixels_at(x, index), as_pixels(x)[index])


@pytest.mark.parametrize("uniform", ["entries", "classes"])
def test_draws_are_one_from_the_own_ring_and_others_from_every_other(uniform: str) -> None:
    torch.manual_seed(0)
    bank = ClassBank(8, 4, 1)
    bank.filled.copy_(torch.tensor([1, 4, 0, 0, 2, 0, 0, 3]))
    labels = torch.tensor([1, 0, 7, 4])
    slots = bank.draw(labels, 3000, uniform)
    ring, slot = slots // 4, slots % 4
    assert torch.equal(ring[:, 0], labels)
    assert (slot < bank.filled[ring]).all(), "never an empty slot"
    for own, others in zip(labels, ring[:, 1:], strict=True):
        counts = torch.bincount(others, minlength=8).float()
        want = bank.filled.float() if uniform == "entries" else (bank.filled > 0).float()
        want[own] = 0
        assert counts[own] == 0
        torch.testing.assert_close(counts / 3000, want / want.sum(), atol=0.04, rtol=0)
    assert slot[2, 1:][ring[2, 1:] == 1].unique().tolist() == [0, 1, 2, 3], "any entry of a ring"
    many = bank.draw(torch.full((500,), 1), 1)[:, 0] % 4
    assert many.unique().tolist() == [0, 1, 2, 3], "any entry of the own ring"
