"""YAML as nodes, in which values stay as they are written: what a file holds, found and changed before it is parsed."""

from collections.abc import Collection, Iterator

import yaml

MERGE = "tag:yaml.org,2002:merge"


def written_out(text: str, *way: str) -> yaml.Node | None:
    """Settings as they stand in a text, with what `<<` brings into a mapping written there; None where it is no YAML.

    Args:
        text: The YAML.
        way: Keys that it is put under.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        for node in nodes_in(root):
            if isinstance(node, yaml.MappingNode) and any(key.tag == MERGE for key, _ in node.value):
                yaml.constructor.SafeConstructor().flatten_mapping(node)
                node.value = [*{str(key.value): (key, value) for key, value in node.value}.values()]  # its own ones win
    except (yaml.YAMLError, RecursionError):
        return None
    for key in reversed(way):
        root = put(mapping(), key, root)
    return root


def nodes_in(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """All parts of a YAML, each once, those that hold others before these."""
    nodes, seen = [root] if root else [], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias stands for the same node again
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def part(node: yaml.Node | None, *way: str) -> yaml.Node | None:
    """What lies under these keys; None where there is nothing."""
    for name in way:
        node = entries(node).get(name)
    return node


def entries(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """The entries by key of a mapping; empty where it is none."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def take(node: yaml.Node | None, names: Collection[str]) -> dict[str, yaml.Node]:
    """Take the entries of these names out of a mapping; those that there were."""
    taken = {name: value for name, value in entries(node).items() if name in names}
    if node and taken:
        node.value = [(key, value) for key, value in node.value if key.value not in taken]
    return taken


def scalar_in(node: yaml.Node | None) -> str:
    """The text of a value; empty where it is a mapping, a list or nothing."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def mapping() -> yaml.MappingNode:
    """One without entries."""
    return yaml.MappingNode("tag:yaml.org,2002:map", [])


def put(node: yaml.Node, name: str, value: yaml.Node | None) -> yaml.Node:
    """Let a key of a mapping have this value, in the place of another or of none; the mapping."""
    take(node, [name])
    node.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", name), value))
    return node
