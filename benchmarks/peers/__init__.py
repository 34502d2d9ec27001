# SPDX-License-Identifier: Apache-2.0
"""The tools that we measure ourselves against, each driven by one file."""
