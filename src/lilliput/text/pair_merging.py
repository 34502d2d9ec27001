# SPDX-License-Identifier: Apache-2.0
"""The loop of byte pair encoding: of all neighbours that may become one, the best do, the leftmost on a tie.

Cost: O(n log n) in the number of symbols.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import pairwise


def merged(symbols: Sequence[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """What is left of `symbols`, none of them empty, when no neighbours may be joined any more.

    rank: of two neighbours, the least is joined first; None where they stay apart.
    """
    found = list(symbols)
    following = [*range(1, len(found)), -1]
    preceding = list(range(-1, len(found) - 1))
    queue = [
        (order, left, left + 1, pair[0] + pair[1])
        for left, pair in enumerate(pairwise(found))
        if (order := rank(*pair)) is not None
    ]
    heapq.heapify(queue)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        # Outdated when either side has since become part of, or grown into, something else.
        if not found[left] or not found[right] or found[left] + found[right] != joined:
            continue
        found[left], found[right] = joined, ""
        after = following[left] = following[right]
        if after >= 0:
            preceding[after] = left
        for first, second in ((preceding[left], left), (left, after)):
            if first >= 0 and second >= 0:
                order = rank(found[first], found[second])
                if order is not None:
                    heapq.heappush(queue, (order, first, second, found[first] + found[second]))
    return list(filter(None, found))
