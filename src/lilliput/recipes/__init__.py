# SPDX-License-Identifier: Apache-2.0
"""What the user wants (recipe), what will happen (plan), what happened (ledger)."""
