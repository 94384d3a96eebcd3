"""What an OpenAPI document says of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def example_of(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """A value that fits a schema of the document, with no more in it than has to be."""
    if "$ref" in schema:
        name = schema["$ref"].split("/")[-1]
        return example_of(document, document["components"]["schemas"][name])
    if "const" in schema or "enum" in schema:
        return schema.get("const", *schema.get("enum", ())[:1])
    if "anyOf" in schema:
        return example_of(document, schema["anyOf"][0])
    match schema["type"]:
        case "object":
            needed = schema.get("required", ())
            return {name: example_of(document, schema["properties"][name]) for name in needed}
        case "array":
            return [example_of(document, schema["items"])]
        case "integer":
            return int(schema.get("minimum", 1))
        case "boolean":
            return True
        case "string":
            return "A"
        case other:
            raise AssertionError(f"no example of {other}")


def takes_text(document: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether a parameter of this schema may be any text, or a list of them."""
    if "$ref" in schema:
        return takes_text(
            document, document["components"]["schemas"][schema["$ref"].split("/")[-1]]
        )
    if schema.get("type") == "array":
        return takes_text(document, schema["items"])
    if "anyOf" in schema:
        return any(takes_text(document, each) for each in schema["anyOf"])
    return schema.get("type") == "string" and "enum" not in schema and "const" not in schema
