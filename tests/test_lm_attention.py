"""Attention on processors: the values and gradients of PyTorch's own, with every kind of mask, and less rounded in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_gym.lm import attention, precision
from rlhf_gym.lm.attention import attend

ROWS, HEADS, TOKENS, WIDTH = 3, 4, 7, 8


class Layer(torch.nn.Module):
    """What an attention function reads of its layer."""

    def __init__(self, groups: int = 1, causal: bool = True) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, causal


def tensors(heads: int = HEADS, keys: int = TOKENS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(ROWS, HEADS, TOKENS, WIDTH), (ROWS, heads, keys, WIDTH), (ROWS, heads, keys, WIDTH)]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


def lower(keys: int = TOKENS) -> Tensor:
    return torch.ones(TOKENS, keys).tril(keys - TOKENS).bool().expand(ROWS, 1, TOKENS, keys)


def left_padded() -> Tensor:
    mask = lower().clone()
    mask[1, :, :, :2] = False
    return mask


CASES: dict[str, tuple[Layer, dict[str, Any], Tensor | None, dict[str, Any]]] = {
    "causal": (Layer(), {}, None, {"scaling": 0.3}),
    "its own scale": (Layer(), {}, None, {}),
    "both ways": (Layer(causal=False), {}, None, {"scaling": 0.3}),
    "both ways, said by the layer's call": (Layer(), {}, None, {"scaling": 0.3, "is_causal": False}),
    "true where it looks": (Layer(), {}, lower(), {"scaling": 0.3}),
    "behind what is cached": (Layer(), {"keys": 11}, lower(11), {"scaling": 0.3}),
    "added": (Layer(), {}, torch.zeros(1, 1, TOKENS, TOKENS).masked_fill(~lower()[:1], -1e9), {"scaling": 0.3}),
    "shared keys": (Layer(groups=2), {"heads": 2}, lower(), {"scaling": 0.3}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_fused_attention(case: str) -> None:
    layer, sizes, mask, given = CASES[case]
    inputs = tensors(**sizes)
    (ours, _), (theirs, _) = (
        attend(layer, *inputs, mask, **given),
        sdpa_attention_forward(layer, *inputs, mask, **given),
    )
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.autograd.grad((ours * weight).sum(), inputs), torch.autograd.grad((theirs * weight).sum(), inputs)
    )


def test_a_row_of_padding_that_may_look_at_nothing_is_finite_and_changes_no_other() -> None:
    inputs = tensors()
    out, _ = attend(Layer(), *inputs, left_padded())
    expected, _ = sdpa_attention_forward(Layer(), *inputs, left_padded())
    assert out.isfinite().all()
    own = left_padded()[:, 0].any(-1)  # [ROWS, TOKENS]
    assert (~own).sum() == 2
    torch.testing.assert_close(out[own], expected[own])
    for gradient in torch.autograd.grad(out[own].sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("given", "keys"),
    [({"position_bias": torch.zeros(1, HEADS, TOKENS, TOKENS)}, TOKENS), ({"dropout": 0.5}, TOKENS), ({}, TOKENS + 1)],
)
def test_what_a_layer_gives_besides_reaches_fused_attention(given: dict[str, Any], keys: int) -> None:
    inputs = tensors(keys=keys)
    torch.manual_seed(0)
    ours, _ = attend(Layer(), *inputs, None, **given)
    torch.manual_seed(0)
    theirs, _ = sdpa_attention_forward(Layer(), *inputs, None, **given)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_it_is_computed_in_float32_and_rounded_once(autocast: bool) -> None:
    inputs = [tensor.detach().bfloat16() for tensor in tensors()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # Under autocast, keys that were turned by their positions are float32, values are not.
        out, _ = attend(Layer(), *([inputs[0].float(), inputs[1].float(), inputs[2]] if autocast else inputs), lower())
    exact, _ = sdpa_attention_forward(Layer(), *(tensor.float() for tensor in inputs), lower())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16()) or (out.float() - exact).abs().max() < 2**-8 * exact.abs().max()
    fused, _ = sdpa_attention_forward(Layer(), *inputs, lower())
    assert (out.float() - exact).norm() <= (fused.float() - exact).norm()


def test_float64_stays_float64() -> None:
    inputs = [tensor.detach().double() for tensor in tensors()]
    added = torch.zeros(1, 1, TOKENS, TOKENS, dtype=torch.float64).masked_fill(~lower()[:1], -1e9)
    for mask in (lower(), added):
        out, _ = attend(Layer(), *inputs, mask)
        expected, _ = sdpa_attention_forward(Layer(), *inputs, mask)
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


def test_its_products_alone_are_not_by_onednn_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS multiplies inside of attention and of its gradient, oneDNN before, between and after."""
    seen: list[str] = []
    monkeypatch.setattr(attention, "multiply_by_onednn", lambda on: seen.append("oneDNN" if on else "BLAS"))
    monkeypatch.setattr(precision, "multiply_by_onednn", lambda on: seen.append("oneDNN" if on else "BLAS"))

    def note(name: str) -> Any:
        return lambda *_: seen.append(name)

    query, key, value = tensors()
    turned = query * 2
    turned.register_hook(note("gradient of the query"))
    monkeypatch.setattr(attention, "sdpa_attention_forward", noting(seen))
    out, _ = attend(Layer(), turned, key, value, lower())
    product = out @ torch.ones(WIDTH, 1)
    product.register_hook(note("gradient of the output"))
    product.sum().backward()
    assert seen == ["BLAS", "attention", "oneDNN", "gradient of the output", "BLAS", "oneDNN", "gradient of the query"]


def noting(seen: list[str]) -> Any:
    def forward(*args: Any, **given: Any) -> Any:
        seen.append("attention")
        return sdpa_attention_forward(*args, **given)

    return forward


def test_what_multiplies_is_restored() -> None:
    if not precision.use_fast_float32():
        pytest.skip("this processor's oneDNN rounds to bfloat16, or this torch has no setting for it")
    products = torch.backends.mkldnn.matmul
    with precision.multiplying_by_blas():
        assert products.fp32_precision == "none"
        assert precision.product_error() < 1e-6
    assert products.fp32_precision == "bf16"
    inputs = tensors()
    attend(Layer(), *inputs, lower())[0].sum().backward()
    assert products.fp32_precision == "bf16"
