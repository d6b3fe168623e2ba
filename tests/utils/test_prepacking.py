import pytest
import torch
from torch import nn

from fastcap.utils.prepacking import PackedConv2d, PackedLinear, pack_layers

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")

ACTIVATIONS = [
    None,
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 0.25),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("groups", [1, 8])
def test_packed_convolution(act, groups):
    torch.manual_seed(1)
    convolution = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 8, 11, 14)
    with torch.no_grad():
        expected = convolution(x) if act is None else act(convolution(x))
        packed = PackedConv2d(convolution, act, x.shape)
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_takes_any_rows(act, bias):
    torch.manual_seed(1)
    linear = nn.Linear(24, 40, bias=bias)
    packed = PackedLinear(linear.weight, linear.bias, act, 12)
    for shape in ((12, 24), (1, 24), (2, 3, 5, 24), (0, 24), (7, 2, 24)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = linear(x) if act is None else act(linear(x))
            torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
            strided = torch.randn(*shape[:-1], 48)[..., ::2]
            torch.testing.assert_close(packed(strided), PackedLinear.forward(packed, strided.contiguous()))


class _Net(nn.Module):
    """Linear layers in every position that packing must tell apart."""

    def __init__(self):
        super().__init__()
        self.rise, self.act, self.fall = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.single = nn.Linear(8, 8)
        self.twice, self.gate = nn.Linear(8, 8), nn.SiLU()
        self.shared = nn.ReLU()

    def forward(self, x):
        x = self.fall(self.act(self.rise(x)))
        x = x + self.single(x.mean(0, keepdim=True))
        x = self.gate(self.twice(x)) + self.twice(x)  # its second output has no activation
        return self.shared(x) + self.shared(self.twice(x))


def test_layers_are_packed_where_it_pays_and_the_function_stays():
    torch.manual_seed(0)
    net = _Net().eval()
    x = torch.randn(12, 8)
    with torch.no_grad():
        expected = net(x)
        assert pack_layers(net, lambda: net(x)) == 3
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(net.rise, PackedLinear) and net.rise.activation[0] == "gelu" and isinstance(net.act, nn.Identity)
    assert net.fall.activation[0] == net.twice.activation[0] == "none"
    assert isinstance(net.gate, nn.SiLU) and isinstance(net.shared, nn.ReLU)
    assert type(net.single) is nn.Linear, "one row is not worth it"
