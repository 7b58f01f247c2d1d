"""A loop in the manner of pystone: objects with attributes, calls, lists, strings, dictionaries."""

import sys


class Record:
    def __init__(self, name: str, kind: int, number: int) -> None:
        self.name, self.kind, self.number = name, kind, number

    def copy(self) -> "Record":
        return Record(self.name, self.kind, self.number)


def exchange(record: Record, table: dict[int, int], key: int) -> Record:
    other = record.copy()
    other.number = table.get(key, 0) + record.number % 7
    table[key] = other.number
    return other


def text_order(left: str, right: str) -> int:
    return len([a for a, b in zip(left, right) if a > b])


def main(loops: int) -> None:
    table: dict[int, int] = {}
    numbers, record = list(range(50)), Record("", 1, 5)
    for turn in range(loops):
        record = exchange(record, table, turn & 31)
        numbers[turn % 50] = record.number + numbers[(turn + 7) % 50] & 0xFFFF
        if turn % 8 == 0:
            record.kind = text_order("DHRYSTONE PROGRAM, 1ST", "DHRYSTONE PROGRAM, 2ND") + max(numbers)
    print(sum(numbers), len(table), record.kind)


main(int(sys.argv[1]))
