# SPDX-License-Identifier: Apache-2.0
"""Records in, one HTML page, a model card or JSON out. Nothing is computed here."""
