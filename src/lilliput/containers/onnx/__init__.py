# SPDX-License-Identifier: Apache-2.0
"""ONNX: the Program of a model translated to a graph, its weights in the operators' own quantized layouts."""
