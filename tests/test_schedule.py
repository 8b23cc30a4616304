import pytest

from tests.helpers import golden_json
from training.schedule import learning_rate, note_on_length


@pytest.mark.parametrize("kind", ["cos", "step"])
def test_published_run_equals_golden(kind):
    rates = [learning_rate(epoch, base=1e-4, epochs=300, cosine=kind == "cos") for epoch in range(1, 301)]
    assert rates == pytest.approx(golden_json("schedule.json")[kind], rel=0, abs=1e-12)


def test_a_shorter_run_passes_through_the_same_curve():
    short = [learning_rate(epoch, base=1e-4, epochs=30, cosine=True) for epoch in range(1, 31)]
    assert short == [learning_rate(10 * epoch, base=1e-4, epochs=300, cosine=True) for epoch in range(1, 31)]


@pytest.mark.parametrize("cosine, last, raised", [(True, "5.13e-06", "0.00195"), (False, "1.25e-05", "0.0008")])
def test_a_run_that_never_leaves_the_lowest_rate_is_told(cosine, last, raised):
    note = note_on_length(base=1e-4, epochs=1, cosine=cosine)
    assert last in note and f"MODEL.LR from 0.0001 to {raised}," in note and "NUM_EPOCHS" in note
    assert learning_rate(1, base=float(raised), epochs=1, cosine=cosine) == pytest.approx(1e-4, rel=0.02)
    assert [note_on_length(base=1e-4, epochs=epochs, cosine=cosine) for epochs in (2, 10, 300)] == [None] * 3
