"""YAML 1.1, but only numbers that everybody reads alike are numbers.

PyYAML reads 1:30 as 90, in base 60, and 017 as 15, in base 8. It reads 1_ as 1 and 2024-01-01 as a date. Here
they are text. A key for text takes them as they are, and a key for a number refuses them.
"""

from __future__ import annotations

import re

import yaml

TAG = "tag:yaml.org,2002:"
DECIMAL = r"(0|[1-9][0-9]*(_[0-9]+)*)"
INTEGER = re.compile(rf"[-+]?({DECIMAL}|0x[0-9a-fA-F]+|0b[01]+)\Z")
# A float has a point, as in YAML 1.1. Otherwise 12e4567, which begins many commit hashes, would be infinite.
FLOAT = re.compile(
    rf"([-+]?({DECIMAL}\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer forms of numbers, and no dates.

    Raises:
        ValueError: a value with an explicit tag, such as `!!int 1:30`, does not have the form of its tag.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(_checked(node, INTEGER), 0)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(_checked(node, FLOAT).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _checked(node: yaml.ScalarNode, form: re.Pattern[str]) -> str:
    if not form.match(node.value):
        raise ValueError(f"{node.value:.60} is not a plain {node.tag.removeprefix(TAG)}")
    text: str = node.value
    return text


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (f"{TAG}int", f"{TAG}float", f"{TAG}timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(f"{TAG}int", INTEGER, list("-+0123456789"))
Loader.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+0123456789."))
Loader.add_constructor(f"{TAG}int", Loader.construct_yaml_int)
Loader.add_constructor(f"{TAG}float", Loader.construct_yaml_float)
