"""Operations of a training step by themselves against float64: the head, kernels of attention, AdamW."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.objectives import linear_logprobs


def head_errors(device: torch.device, dtype: str, ids: int) -> dict[str, float]:
    """`linear_logprobs` with bias, scale, cap, temperature and entropy, and its gradients, against float64."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(300, 256), torch.randn(ids, 256) / 16, torch.randn(ids) / 4
    targets = torch.randint(ids, (300,), device=device)
    inputs = [x.to(device).requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype != "float32"):
        options = {"temperature": 0.7, "scale": 1.3, "softcap": 9.0, "entropy": True}
        got = linear_logprobs(*inputs[:2], targets, bias=inputs[2], **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    logits = 9 * (1.3 * (exact[0] @ exact[1].T + exact[2]) / 9).tanh() / 0.7
    log_p = logits.log_softmax(-1)
    want = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    up = torch.randn(300, device=device) / 300
    gradients = torch.autograd.grad((got[0] * up).sum() + (got[1] * up).sum(), inputs)
    wanted = torch.autograd.grad((want[0] * up).sum() + (want[1] * up).sum(), exact)
    values = {
        name: float((g - w).detach().abs().max())
        for name, g, w in zip(("log-probability", "entropy"), got, want, strict=True)
    }
    for name, g, w in zip(("hidden", "weight", "bias"), gradients, wanted, strict=True):
        values[f"gradient of {name}, relative"] = float((g - w).norm() / w.norm())
    return values


def kernel_errors(device: torch.device, size: int) -> dict[str, Any]:
    """Gradients of queries, keys and values by each of torch's kernels in bfloat16, relative to float64, by shape."""
    shapes = {"7 tokens": (7, 7), "100 tokens": (100, 100), "17 of 57, mask": (17, 57)}
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    values: dict[str, Any] = {}
    for shape, (n, m) in shapes.items():
        torch.manual_seed(5)
        draws = [torch.randn(1, 4, tokens, size, device=device) for tokens in (n, m, m, n)]
        mask = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n) if n < m else None
        want = _attention_gradients(draws, mask, torch.float64, SDPBackend.MATH)
        for kernel in kernels:
            try:
                got = _attention_gradients(draws, mask, torch.bfloat16, kernel)
            except RuntimeError as error:  # a kernel that does not take the shape
                values[f"{shape}, {kernel.name}"] = str(error).splitlines()[0][:80]
                continue
            values[f"{shape}, {kernel.name}"] = [
                float((g - w).norm() / w.norm()) for g, w in zip(got, want, strict=True)
            ]
    return values


def _attention_gradients(
    draws: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype, kernel: SDPBackend
) -> list[Tensor]:
    q, k, v, up = (x.to(torch.bfloat16).to(dtype) for x in draws)
    given = [x.requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(kernel):
        out = scaled_dot_product_attention(*given, mask, is_causal=mask is None)
    return [x.double() for x in torch.autograd.grad(out, given, up)]


def adamw_error(device: torch.device) -> dict[str, float]:
    """The fused AdamW beside a plain one in float64."""
    torch.manual_seed(0)
    start, moved = torch.randn(1000, device=device), []
    for fused, dtype in ((True, torch.float32), (False, torch.float64)):
        weight = nn.Parameter(start.to(dtype, copy=True))
        optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1, fused=fused)
        for step in range(10):
            weight.grad = torch.sin(weight.detach() * (step + 1))
            optimizer.step()
        moved.append(weight.detach().double() - start)
    return {"relative": float((moved[0] - moved[1]).norm() / moved[1].norm())}
