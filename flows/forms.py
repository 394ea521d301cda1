"""The forms that Prefect's UI makes of a flow's parameters: a stage's own settings come first, the others are short.

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
"""Default of a required parameter that stands behind such a one."""
Schema = dict[str, Any]


class Form:
    """Annotation of a flow's configuration: how the form shows its sections.

    A section that is named nowhere is shown as JSON of the values that are set, which takes a few lines. Whatever is
    shown, everything is checked.

    Args:
        own: Names of the sections that come first, in this order, with all their fields.
        brief: Names of the sections that come next, without the fields that say how a stage is run and not what it
            makes.
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
        """Describe a section as the form is to show it; a single value stays as it is."""
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
    """Return a section's schema that gives no field to what is operational, and still checks it."""
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
