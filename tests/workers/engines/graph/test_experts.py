"""The experts' kernels on a GPU, at shapes that nothing was tuned for; on a CPU they are interpreted (`interpreted.py`)."""

from dataclasses import replace

import pytest
import torch

from workers.engines.graph.kernels.experts import down, experts, gate_up, mix_plain, route
from workers.engines.graph.kernels.norm import norm_plain
from workers.engines.graph.kernels.residual import WIDTH, Residual
from workers.engines.graph.weights import Experts, Linear, Norm, Routing

#: hidden, intermediate, experts, chosen; as gpt-oss stores them (inputs outermost, biases, a clamp)
SHAPES = (
    (96, 80, 5, 3, True),
    (200, 72, 9, 1, False),
    (1000, 328, 17, 5, False),
    (2048, 768, 128, 8, False),
    (2880, 2880, 32, 4, True),
    (4096, 14336, 8, 2, False),
    (512, 256, 256, 8, False),
)
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda") * shape[-1] ** -0.5


def drawn(E: int, inner: int, X: int, top: int, oss: bool, dtype: torch.dtype) -> Experts:
    return Experts(
        router=Linear(draw(X, E).to(dtype) * 4, draw(X).to(dtype) if oss else None),
        top=top,
        gate_up_XOE=draw(X, E, 2 * inner).to(dtype).mT if oss else draw(X, 2 * inner, E).to(dtype),
        down_XEI=draw(X, inner, E).to(dtype).mT if oss else draw(X, E, inner).to(dtype),
        gate_up_bias_XO=draw(X, 2 * inner).to(dtype) if oss else None,
        down_bias_XE=draw(X, E).to(dtype) if oss else None,
        routing=Routing(over_all=not oss and X % 2 == 1),
        interleaved=oss,
        clamp=(1.702, 2.0) if oss else None,
    )


def in_float64(found: Experts) -> Experts:
    router = found.router
    tensors = ("gate_up_XOE", "down_XEI", "gate_up_bias_XO", "down_bias_XE")
    wide = {name: value.double() for name in tensors if (value := getattr(found, name)) is not None}
    return replace(
        found,
        router=Linear(router.weight_OI.double(), None if router.bias_O is None else router.bias_O.double()),
        **wide,
    )


def moments(x_NE: torch.Tensor) -> torch.Tensor:
    """`residual.Residual`'s, of each WIDTH numbers."""
    parts = [part.float() for part in x_NE.split(WIDTH, dim=1)]
    means = torch.stack([part.mean(1) for part in parts], 1)
    squares = torch.stack([(part - part.mean(1, keepdim=True)).square().sum(1) for part in parts], 1)
    return torch.stack([means, squares], 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_their_twins_and_a_row_is_alone(
    shape: tuple[int, int, int, int, bool], dtype: torch.dtype
) -> None:
    """At equal scores, which choose equal experts; then a row of five against the row alone, bit for bit."""
    torch.manual_seed(0)
    mixture, norm = drawn(*shape, dtype), Norm(1 + draw(shape[0]).to(dtype), None, 1e-6, "rms")
    x_NE = (torch.randn(5, shape[0], device="cuda") * 0.1).to(dtype)  # little beside what experts add
    x = Residual(x_NE, moments(x_NE))
    scores_NX = route(x, norm, mixture)
    found = down(x, mixture, scores_NX, gate_up(x, norm, mixture, "silu", scores_NX))
    wide_norm = replace(norm, weight_E=norm.weight_E.double())
    wide = Residual(x_NE.double())
    normed_NE, wide_mixture = norm_plain(wide.x_NE, wide_norm), in_float64(mixture)
    wide_router = wide_mixture.router
    exact_scores_NX = torch.nn.functional.linear(normed_NE, wide_router.weight_OI, wide_router.bias_O)
    torch.testing.assert_close(
        scores_NX.double(), exact_scores_NX, rtol=LIMITS[dtype], atol=4 * LIMITS[dtype]
    )
    expected = mix_plain(wide, normed_NE, wide_mixture, "silu", scores_NX.double()).x_NE
    added_NE, exact_NE = found.x_NE.double() - x_NE.double(), expected - x_NE.double()
    assert float((added_NE - exact_NE).norm() / exact_NE.norm()) < LIMITS[dtype]
    assert found.moments_N2T is not None
    torch.testing.assert_close(found.moments_N2T, moments(found.x_NE), rtol=1e-4, atol=1e-4)
    together = experts(x, norm, mixture, "silu")
    assert x.moments_N2T is not None
    for row in range(5):  # copies: a row in the middle of a tensor is not aligned as the engine's are
        alone = Residual(x.x_NE[row : row + 1].clone(), x.moments_N2T[row : row + 1].clone())
        assert torch.equal(experts(alone, norm, mixture, "silu").x_NE[0], together.x_NE[row])
