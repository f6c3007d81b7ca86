"""What the autograd graph says about order: which biases lie behind a tap, and how many paths pass it."""

from __future__ import annotations

from collections.abc import Sequence

from torch.autograd.graph import Node


def towards_input(root: Node) -> list[Node]:
    """Every node reachable from `root`, each after all the nodes that its gradient flows to."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(_next(root)))]
    while stack:
        node, following = stack[-1]
        for successor in following:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(_next(successor))))
                break
        else:
            stack.pop()
            order.append(node)
    return order


def behind(order: Sequence[Node], taps: Sequence[Node], sites: Sequence[Node]) -> tuple[tuple[bool, ...], ...]:
    """behind[tap][site]: the site's value is computed from the tap's, so that its bias enters behind the tap."""
    own = _bits(taps)
    before: dict[Node, int] = {}
    for node in order:
        reached = 0
        for successor in _next(node):
            reached |= before[successor] | own.get(successor, 0)
        before[node] = reached
    return tuple(tuple(bool(before.get(site, 0) >> index & 1) for site in sites) for index in range(len(taps)))


def paths_to(order: Sequence[Node], source: Node) -> dict[Node, int]:
    """How many paths lead from each node to `source`; 0 where its value does not depend on it."""
    paths: dict[Node, int] = {}
    for node in order:
        paths[node] = 1 if node is source else sum(paths[successor] for successor in _next(node))
    return paths


def paths_from(order: Sequence[Node]) -> dict[Node, int]:
    """How many paths lead from the score, the last of `order`, to each node."""
    paths = dict.fromkeys(order, 0)
    paths[order[-1]] = 1
    for node in reversed(order):
        for successor in _next(node):
            paths[successor] += paths[node]
    return paths


def _next(node: Node) -> list[Node]:
    return [successor for successor, _ in node.next_functions if successor is not None]


def _bits(nodes: Sequence[Node]) -> dict[Node, int]:
    bits: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        bits[node] = bits.get(node, 0) | 1 << index
    return bits
