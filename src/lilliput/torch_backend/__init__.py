# SPDX-License-Identifier: Apache-2.0
"""Linear and embedding modules of PyTorch models on our number formats and kernels; public as `lilliput.torch`."""
