# SPDX-License-Identifier: Apache-2.0
"""How a quantized model differs from its original, measured on the same tokens."""
