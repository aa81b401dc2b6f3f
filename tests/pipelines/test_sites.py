"""Sites: swapped and put back, on a plain object, a module, and diffusers' networks."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from sfumato.pipelines.sites import attention, attention_modules, calls, processors, swap
from torch import nn
from toys import ToyNet


def unet():
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4,
    )  # fmt: skip
    gen = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=gen), torch.randn(2, 5, 12, generator=gen)
    return net.eval(), lambda: net(x, 10, text).sample


def flux():
    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4), guidance_embeds=False,
    )  # fmt: skip
    gen = torch.Generator().manual_seed(1)
    x, text, pooled = (torch.randn(s, generator=gen) for s in ((1, 9, 8), (1, 5, 12), (1, 6)))
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(3.0))
    return net.eval(), lambda: net(
        hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.tensor([0.5]),
        img_ids=ids, txt_ids=torch.zeros(5, 3),
    ).sample  # fmt: skip


NETS = {"unet": unet, "flux": flux}


def trace(net):
    """Everything a patch might have left behind."""
    parts = [
        (n, id(m), sorted(vars(m)), {k: id(v) for k, v in vars(m).items()}) for n, m in net.named_modules()
    ]
    return parts, [(k, v.clone()) for k, v in net.state_dict().items()]


def same(before, after):
    assert before[0] == after[0]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before[1], after[1], strict=True))


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@torch.no_grad()
def test_attention_is_replaced_and_put_back(make):
    net, call = make()
    before, plain = trace(net), call()
    seen = []

    def watch(layer, q, k, v, attend):
        seen.append(layer)
        assert q.ndim == 4 and q.shape[1] == k.shape[1] == v.shape[1]
        return attend(q, k, v)

    with attention(net, watch):
        assert torch.equal(call(), plain), "handing on to the attention that was there changes nothing"
    assert {layer.index: layer.name for layer in seen} == dict(
        enumerate(n for n, _ in attention_modules(net))
    )

    with attention(net, lambda layer, q, k, v, attend: attend(q, k, 2 * v)):
        assert not torch.allclose(call(), plain)
    same(before, trace(net))
    assert torch.equal(call(), plain)

    with pytest.raises(RuntimeError, match="inside"), attention(net, watch):
        raise RuntimeError("inside")

    def broken(layer, q, k, v, attend):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attention(net, broken):
        call()
    same(before, trace(net))


@torch.no_grad()
def test_kinds_of_layers():
    net, call = unet()
    kinds = {}

    def watch(layer, q, k, v, attend):
        kinds[layer.name] = layer.kind
        return attend(q, k, v)

    with attention(net, watch):
        call()
    assert {(name.rsplit(".", 1)[-1], kind) for name, kind in kinds.items()} == {
        ("attn1", "self"),
        ("attn2", "cross"),
    }
    net, call = flux()
    kinds.clear()
    with attention(net, watch):
        call()
    assert set(kinds.values()) == {"joint", "self"}


@torch.no_grad()
def test_two_attention_patches_nest():
    net, call = unet()
    plain = call()
    with attention(net, lambda l, q, k, v, attend: attend(q, k, 2 * v)):  # noqa: E741
        doubled = call()
        with attention(net, lambda l, q, k, v, attend: attend(q, k, v / 2)):  # noqa: E741
            torch.testing.assert_close(call(), plain)
        assert torch.equal(call(), doubled)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@torch.no_grad()
def test_processors_are_replaced_and_put_back(make):
    net, call = make()
    before, plain = trace(net), call()

    class Module(nn.Module):
        """A processor that is itself a module, as IP-Adapter's are."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            out = self.inner(*args, **kwargs)
            return tuple(0 * part for part in out) if isinstance(out, tuple) else 0 * out

    with processors(net, lambda layer, old: old if layer.kind == "cross" else Module(old)):
        assert not torch.allclose(call(), plain)
    same(before, trace(net))
    assert torch.equal(call(), plain)


def test_swap_of_methods_attributes_and_modules():
    net = ToyNet()
    before = dict(vars(net))
    with swap(net, "attention", lambda layer, q, k, v: v):
        assert "attention" in vars(net)
    assert dict(vars(net)) == before
    new, order = nn.Linear(4, 16), list(net._modules)
    old = net.inward
    with swap(net, "inward", new):
        assert net.inward is new
    assert net.inward is old and list(net._modules) == order
    with (
        pytest.raises(ValueError, match="site 'inward' of ToyNet is a module"),
        swap(net, "inward", lambda x: x),
    ):
        pass
    with pytest.raises(ValueError, match="ToyNet has no site 'rope'"), swap(net, "rope", None):
        pass
    with pytest.raises(ValueError, match="ToyNet has no site 'attention'"), attention(net, lambda *_: None):
        pass


def test_calls_are_answered_by_name():
    net, seen = ToyNet(), []
    x, bias = torch.randn(1, 4, 2, 2), torch.zeros(())
    plain = net(x, 0.5, bias, "a")

    def answer(given, compute):
        seen.append((given["noise_level"], given["key"]))
        return 2 * compute() if given["key"] == "a" else given["x"]

    with calls(net, answer):
        assert torch.equal(net(x, 0.5, bias, key="a"), 2 * plain)
        assert net(x, 0.1, bias, "b") is x
    assert seen == [(0.5, "a"), (0.1, "b")]
    assert "forward" not in vars(net) and torch.equal(net(x, 0.5, bias, "a"), plain)
