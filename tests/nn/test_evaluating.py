import pytest
import torch

from pygpt.nn.evaluating import evaluating


def test_evaluating_puts_back_what_was_training() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].training = False
    with pytest.raises(KeyError), evaluating(model):  # type: ignore[arg-type]
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]
