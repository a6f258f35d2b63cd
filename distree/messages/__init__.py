"""Messages: every field declared once, as an attribute of its record, with type, limit, unit and meaning.

`fields` has what a field can be, a file per family has the messages, and what they are needed for is derived: `codec`
encodes, decodes and checks them, `schema` describes them as JSON Schema. The orchestrator's tables and metrics and the
reference pages walk the same declarations.
"""
