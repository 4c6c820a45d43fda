"""Read the collectives of a compiled program from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Collective(NamedTuple):
    """An exchange among groups of `group` devices, executed `times` in a run of the program.

    `kind` is XLA's name, such as `all-reduce`; it leaves so many `numbers` on each device.
    """

    kind: str
    numbers: int
    num_bytes: int
    group: int
    times: float


def read_collectives(text: str, num_devices: int) -> list[Collective]:
    """Returns the collectives of a compiled program; exchanges of one device do not count."""
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if head:
            lines = computations[head[1]] = []
        elif line.startswith(" "):
            lines.append(line)
    (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)

    def walk(name: str, times: float) -> Iterator[Collective]:
        for line in computations[name]:
            match = re.search(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)(-start)?\(", line)
            if match and (group := _read_group(line, num_devices)) > 1:
                arrays = [
                    (math.prod(map(int, filter(None, sides.split(",")))), _num_bytes(dtype))
                    for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", match[1])
                ]
                # An asynchronous one names its operands too.
                if match[3] and match[2] == "all-gather":
                    arrays = arrays[len(arrays) // 2 :]
                elif match[3] and match[2] == "collective-permute":
                    arrays = arrays[1:2]
                numbers = sum(size for size, _ in arrays)
                num_bytes = sum(size * each for size, each in arrays)
                yield Collective(match[2], numbers, num_bytes, group, times)
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            unknown = math.inf if " while(" in line else 1.0
            inner = times * (int(turns[1]) if turns else unknown)
            for callee in set(re.findall(r"%([\w.-]+)", line)) & computations.keys():
                yield from walk(callee, inner)

    return list(walk(entry, 1.0))


def _num_bytes(dtype: str) -> int:
    """Returns the bytes of a number by XLA's name of its type, such as `bf16`."""
    return 1 if dtype == "pred" else int(dtype.lstrip("bfsu")) // 8


def _read_group(line: str, num_devices: int) -> int:
    """Returns the number of devices that exchange with each other."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return num_devices
