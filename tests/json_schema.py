"""JSON Schema (draft-07) as far as CycloneDX's schemas use it: a validator for tests.

The library's own validator needs packages that the project has no other use for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cyclonedx.schema

FOLDER = Path(cyclonedx.schema.__file__).parent / "_res"
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    *("$schema", "$id", "$comment", "title", "description", "examples", "default", "comment"),
    *("definitions", "format", "contentEncoding", "contentMediaType", "meta:enum", "deprecated"),
    *("$ref", "type", "enum", "const", "required", "properties", "additionalProperties"),
    *("patternProperties", "items", "uniqueItems", "minItems", "maxItems", "additionalItems"),
    *("pattern", "minLength", "maxLength", "minimum", "maximum", "oneOf", "anyOf", "allOf", "not"),
    *("if", "then", "else", "dependencies", "propertyNames"),
}


@lru_cache(maxsize=8)
def schema(name: str) -> dict[str, Any]:
    """Return one of the schemas that cyclonedx-python-lib brings, such as `bom-1.6`."""
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.SNAPSHOT.schema.json").read_text())
    return data


def errors(value: object, name: str) -> list[str]:
    """Return what is wrong with `value`, as `path: rule`; nothing for a valid one."""
    return list(_errors(value, schema(name), name, "$"))


def _errors(value: Any, rule: Any, file: str, at: str) -> Iterator[str]:
    if rule is True:
        return
    if rule is False:
        yield f"{at}: not allowed"
        return
    if unknown := rule.keys() - _KNOWN:
        raise NotImplementedError(f"{file}: {unknown}")
    if "$ref" in rule:
        other, _, pointer = rule["$ref"].partition("#")
        target_file = other.removesuffix(".SNAPSHOT.schema.json").removesuffix(".schema.json")
        target_file = target_file or file
        target: Any = schema(target_file)
        for key in [k for k in pointer.split("/") if k]:
            target = target[key]
        yield from _errors(value, target, target_file, at)
        return  # draft-07 ignores what stands beside $ref
    yield from _plain(value, rule, at)
    yield from _combined(value, rule, file, at)
    if isinstance(value, dict):
        yield from _object(value, rule, file, at)
    if isinstance(value, list):
        yield from _array(value, rule, file, at)


def _plain(value: Any, rule: Any, at: str) -> Iterator[str]:
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_bool = isinstance(value, bool)
    if kinds and not any(
        isinstance(value, _TYPES[k]) and (not is_bool or k == "boolean") for k in kinds
    ):
        yield f"{at}: type {kinds}"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{at}: {value!r} is not in the enum"
    if "const" in rule and value != rule["const"]:
        yield f"{at}: const"
    if isinstance(value, str):
        if "pattern" in rule and not re.search(rule["pattern"], value):
            yield f"{at}: {value!r} does not match {rule['pattern']}"
        if not rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", 1 << 30):
            yield f"{at}: length"
    number = isinstance(value, int | float) and not is_bool
    if number and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        yield f"{at}: range"


def _combined(value: Any, rule: Any, file: str, at: str) -> Iterator[str]:
    def fits(other: Any) -> bool:
        return not any(True for _ in _errors(value, other, file, at))

    for other in rule.get("allOf", ()):
        yield from _errors(value, other, file, at)
    if "anyOf" in rule and not any(fits(other) for other in rule["anyOf"]):
        yield f"{at}: none of anyOf"
    if "oneOf" in rule and (n := sum(fits(other) for other in rule["oneOf"])) != 1:
        yield f"{at}: {n} of oneOf"
    if "not" in rule and fits(rule["not"]):
        yield f"{at}: not"
    if "if" in rule:
        branch = rule.get("then" if fits(rule["if"]) else "else", True)
        yield from _errors(value, branch, file, at)


def _object(value: dict[str, Any], rule: Any, file: str, at: str) -> Iterator[str]:
    for name in rule.get("required", ()):
        if name not in value:
            yield f"{at}: {name} is required"
    properties, patterns = rule.get("properties", {}), rule.get("patternProperties", {})
    for name, item in value.items():
        rules = [properties[name]] if name in properties else []
        rules += [r for pattern, r in patterns.items() if re.search(pattern, name)]
        for one in rules or [rule.get("additionalProperties", True)]:
            yield from _errors(item, one, file, f"{at}.{name}")


def _array(value: list[Any], rule: Any, file: str, at: str) -> Iterator[str]:
    if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", 1 << 30):
        yield f"{at}: number of items"
    if rule.get("uniqueItems"):
        texts = [json.dumps(item, sort_keys=True) for item in value]
        if len(set(texts)) != len(texts):
            yield f"{at}: items are not unique"
    items = rule.get("items", True)
    for number, item in enumerate(value):
        one = items[number] if isinstance(items, list) and number < len(items) else items
        yield from _errors(
            item, one if not isinstance(one, list) else True, file, f"{at}[{number}]"
        )
