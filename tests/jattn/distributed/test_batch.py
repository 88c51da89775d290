"""Batches cut over devices train the model that one device trains."""

from processes import reports, start


def test_four_devices_train_as_one() -> None:
    (found,) = reports([start("training.py")])
    assert found["steps"] == 20
    # Means of four parts are summed in another order.
    assert 0 < found["state"] < 2e-5
    assert found["metrics"] < 2e-5
    assert found["resumed"] == 0
    assert found["uneven"] == "the batch must be a multiple of the 4 devices; got 6"
    assert found["too many"] == "devices must be from 1 to the 4 that are there; got 9"
