"""JSON schemas of contracts, of those too whose fields JSON Schema has no word for."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

__all__ = ["schema_of"]


class _Lenient(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        # Not error_info: it may hold an address, another one in each process.
        cls = schema.get("cls")
        what = f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else schema["type"]
        return {"description": f"not described: {what}"}


def schema_of(model: type[BaseModel], *, written: bool = False) -> dict[str, Any]:
    """The JSON schema of a request or response, the same in each process.

    A field of a type that only its own validator knows, such as an array's, accepts anything there.

    Args:
        model: The request or response.
        written: Of what is written of it; otherwise of what it is read from.
    """
    if not written:
        return model.model_json_schema(schema_generator=_Lenient)
    return model.model_json_schema(
        by_alias=bool(model.model_config.get("serialize_by_alias")),
        schema_generator=_Lenient,
        mode="serialization",
    )
