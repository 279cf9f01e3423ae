"""YAML as nodes, in which values stay as they are written: what a file holds, found and changed before it is parsed."""

from collections.abc import Iterator

import yaml

MAP, MERGE, NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "merge", "null"))


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
        root = yaml.MappingNode(MAP, [(scalar(key), root)])
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


def entries(node: yaml.Node | None, *way: str) -> dict[str, yaml.Node]:
    """The entries by key of a mapping, or of the one under these keys in it; empty where there is none."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    held = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    return entries(held.get(way[0]), *way[1:]) if way else held


def scalar_in(node: yaml.Node | None) -> str:
    """The text of a value; empty where it is a mapping, a list or nothing."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def put(mapping: yaml.Node, name: str, value: yaml.Node) -> None:
    """Let a key of a mapping have this value, in the place of another or of none."""
    mapping.value = [(key, held) for key, held in mapping.value if key.value != name] + [(scalar(name), value)]


def scalar(text: str) -> yaml.ScalarNode:
    """A text in YAML."""
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)
