import pytest

from tests.helpers import golden_json
from training.schedule import learning_rate


@pytest.mark.parametrize("kind", ["cos", "step"])
def test_published_run_equals_golden(kind):
    rates = [learning_rate(epoch, base=1e-4, epochs=300, cosine=kind == "cos") for epoch in range(1, 301)]
    assert rates == pytest.approx(golden_json("schedule.json")[kind], rel=0, abs=1e-12)


def test_a_shorter_run_passes_through_the_same_curve():
    short = [learning_rate(epoch, base=1e-4, epochs=30, cosine=True) for epoch in range(1, 31)]
    assert short == [learning_rate(10 * epoch, base=1e-4, epochs=300, cosine=True) for epoch in range(1, 31)]
