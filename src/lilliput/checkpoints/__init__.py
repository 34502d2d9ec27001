# SPDX-License-Identifier: Apache-2.0
"""Reading models: Hugging Face folders and hub ids, lazily and without torch."""
