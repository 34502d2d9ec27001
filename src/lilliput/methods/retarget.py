# SPDX-License-Identifier: Apache-2.0
"""Retargeting: weights that give the float model's outputs from the inputs that the quantized model really has.

Problem   a layer behind quantized ones sees inputs x that differ from the float model's x_f. Rounding W as well as
          possible for x copies W x, and the error that came in stays.
Idea      least squares: the weights T for which T x is nearest to W x_f are T = W E[x_f x^T] H^-1, H = E[x x^T].
          Then any method rounds T instead of W, under the same H.
Paper     the asymmetric calibration of GPTAQ, https://arxiv.org/abs/2504.02692, in the form of Qronos,
          https://arxiv.org/abs/2505.11695
Changes   written as W + share * W (E[x_f x^T] - H) (H + damping)^-1, which is W itself where the inputs agree, whatever
          the damping. With share 1 few tokens overfit.
Cost      a third pass of the text through each block, one Cholesky and one solve per distinct input.
Not when  the tensor is also read in another way (a tied embedding), or the text is short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lilliput.methods.factor import damping_of
from lilliput.methods.torch_threads import torch_threads

if TYPE_CHECKING:
    import torch


def retargeting(hessian: torch.Tensor, cross: torch.Tensor, tokens: int, *, share: float) -> torch.Tensor | None:
    """R such that W + W R is the target for W; None where the Hessian cannot be factorized.

    hessian: mean of x x^T.  cross: mean of x_f x^T.  All [columns, columns] float32; float64 on one thread inside.
    share: of the way to the least-squares target.
    """
    import torch

    wide = hessian.double()
    mean = float(wide.diagonal().mean())
    if not mean > 0.0:
        return None
    damped = wide + torch.eye(len(wide), device=wide.device, dtype=wide.dtype) * (damping_of(len(wide), tokens) * mean)
    with torch_threads(1):
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return None
        solved = torch.cholesky_solve((cross.double() - wide).T.contiguous(), lower)
    return (share * solved.T).float().contiguous()
