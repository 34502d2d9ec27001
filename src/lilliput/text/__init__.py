# SPDX-License-Identifier: Apache-2.0
"""Text: tokenizers rebuilt from any container, chat templates, documents."""
