# SPDX-License-Identifier: Apache-2.0
"""Llama, and Mistral and SmolLM-like models that share its layout (arXiv 2302.13971, 2307.09288, 2310.06825)."""
