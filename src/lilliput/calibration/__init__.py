# SPDX-License-Identifier: Apache-2.0
"""Calibration: text as chunks of tokens, one streaming pass over the float model, statistics in files."""
