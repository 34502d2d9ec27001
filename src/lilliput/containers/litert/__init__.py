# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite): one .tflite file for phones, from the same translation of the Program as ONNX."""
