# SPDX-License-Identifier: Apache-2.0
"""Which tensor gets which format, by measuring: sensitivity, exact allocation, search by real KL, the frontier."""
