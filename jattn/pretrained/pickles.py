"""Pickles read as data: containers, numbers, text, and the names of what would be called. Nothing is ever called."""

import pickletools
from collections.abc import Collection
from typing import Any, NamedTuple

LARGEST_PICKLE = 4 << 20
"""Bytes of a pickle, each of which can take up to about a hundred in memory."""


class Global(NamedTuple):
    """The name of an object of a Python module."""

    module: str
    name: str


class Call(NamedTuple):
    """A function that the pickle would call, and with what."""

    function: Global
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """Something that is kept outside the pickle."""

    identity: Any


ORDERED_DICT = Global("collections", "OrderedDict")
MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(content: bytes, allowed: Collection[Global]) -> Any:
    """What a pickle of protocol 2 holds.

    Ordered dictionaries come as dictionaries, without attributes; any other call comes as a `Call`. It takes time and
    memory in proportion to the pickle, whose dictionaries may have themselves as values.

    Args:
      allowed: the globals that it may name, besides collections.OrderedDict.

    Raises:
      ValueError: it is damaged or too large, names another global, or uses an opcode that plain data needs not.
    """
    if len(content) > LARGEST_PICKLE:
        raise ValueError(f"a pickle must have at most {LARGEST_PICKLE} bytes; got {len(content)}")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, position in pickletools.genops(content):
        try:
            if opcode.name == "STOP":
                if len(stack) != 1:
                    raise ValueError(f"must find one object; found {len(stack)}")
                return _top(stack)
            _step(opcode.name, argument, stack, memo, allowed)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"opcode {opcode.name} at byte {position} of the pickle: {error}") from None
    raise ValueError("the pickle ends without an opcode STOP")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any], allowed: Collection[Global]) -> None:
    if name == "PROTO":
        if argument != 2:
            raise ValueError(f"the protocol must be 2; got {argument}")
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in LITERALS:
        stack.append(argument)
    elif name == "MARK":
        stack.append(MARK)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in TUPLES:
        stack.append(tuple(reversed([_pop(stack) for _ in range(TUPLES[name])])))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = _top(stack)
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "APPEND":
        item = _pop(stack)
        _expect(_top(stack), list).append(item)
    elif name == "APPENDS":
        items = _since_mark(stack)
        _expect(_top(stack), list).extend(items)
    elif name == "SETITEM":
        value, key = _pop(stack), _pop(stack)
        _set_items(_top(stack), [key, value])
    elif name == "SETITEMS":
        items = _since_mark(stack)
        _set_items(_top(stack), items)
    elif name == "GLOBAL":
        found = Global(*argument.split(" ", 1))
        if found != ORDERED_DICT and found not in allowed:
            raise ValueError(f"{found.module}.{found.name} is not allowed: only tensors and plain data are read")
        stack.append(found)
    elif name == "REDUCE":
        arguments, function = _expect(_pop(stack), tuple), _expect(_pop(stack), Global)
        if function == ORDERED_DICT and arguments:
            raise ValueError("an ordered dictionary must begin empty")
        stack.append({} if function == ORDERED_DICT else Call(function, arguments))
    elif name == "BUILD":  # attributes of an ordered dictionary: torch keeps versions of modules there
        _pop(stack)
        _expect(_top(stack), dict)
    elif name == "BINPERSID":
        stack.append(Persistent(_pop(stack)))
    else:
        raise ValueError("is not read")


def _pop(stack: list[Any]) -> Any:
    value = _top(stack)
    stack.pop()
    return value


def _top(stack: list[Any]) -> Any:
    if stack[-1] is MARK:
        raise ValueError("a mark is no value")
    return stack[-1]


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while stack[-1] is not MARK:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"must find a {kind.__name__}; found a {type(value).__name__}")
    return value


def _set_items(table: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key has no value")
    for key in items[::2]:
        if not isinstance(key, str | int):  # hashing nested tuples can take for ever
            raise ValueError(f"keys must be text or whole numbers; got a {type(key).__name__}")
    _expect(table, dict).update(zip(items[::2], items[1::2], strict=True))
