"""The forms that Prefect's UI makes of a flow's parameters: the settings of the stage come first, the others are short.

A form is drawn from the JSON schema of the parameters, which also refuses invalid parameters when a deployment is made
or run. The UI orders fields by `position`, shows what may be null as two tabs, and shows an object that lists no
`properties` as JSON to edit. What an object checks by `patternProperties` alone gets no field and keeps its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

AFTER_THE_OTHERS = 100
SETTINGS: Any = Field(json_schema_extra={"position": AFTER_THE_OTHERS})
"""Default of a flow's parameter `config`: it is required, and the form shows it below the short parameters."""
REQUIRED: Any = Field()
"""Default of a required parameter that follows `config`."""
Schema = dict[str, Any]


class Form:
    """Annotation of a flow's configuration that says how the form shows its sections.

    A section that is not named is shown as a few lines of JSON with the values that are set. Everything is checked,
    whatever is shown.

    Args:
        own: Names of the sections that come first, in this order, with all their fields.
        brief: Names of the sections that come next, without operational fields, which do not change a result.
    """

    def __init__(self, *own: str, brief: Sequence[str] = ()) -> None:
        self.own = own
        self.brief = tuple(brief)

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        """Return a copy of the configuration's schema in this form's order."""
        schema = dict(handler.resolve_ref_schema(handler(core_schema)))
        properties = schema["properties"]
        first = [*self.own, *self.brief]
        schema["properties"] = {
            name: {**self._shown(name, properties[name], handler), "position": position}
            for position, name in enumerate([*first, *(name for name in properties if name not in first)])
        }
        return schema

    def _shown(self, name: str, field: Mapping[str, Any], handler: GetJsonSchemaHandler) -> Schema:
        """Return the schema by which the form shows a section; that of a single value stays as it is."""
        section = next((part["$ref"] for part in field.get("anyOf", ()) if "$ref" in part), None)
        if section is None:
            return dict(field)
        title = field["title"]
        if name in self.own:
            return {"title": title, "$ref": section}
        if name in self.brief:
            return {**_brief(handler.resolve_ref_schema({"$ref": section})), "title": title}
        description = f"JSON; the keys are those of `{name}` in docs/reference/configuration.md."
        return {"type": "object", "title": title, "description": description, "if": {}, "then": {"$ref": section}}


def _brief(section: Mapping[str, Any]) -> Schema:
    """Return the schema of a section that shows no operational field, and still checks them."""
    fields = section["properties"]
    hidden = {f"^{name}$": field for name, field in fields.items() if field.get("operational")}
    shown = {name: field for name, field in fields.items() if not field.get("operational")}
    remark = " More settings: the menu at the right, Use JSON Input."
    return {
        **section,
        "description": section.get("description", "") + remark * bool(hidden),
        "properties": shown,
        "patternProperties": hidden,
    }
