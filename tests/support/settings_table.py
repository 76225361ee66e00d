"""The table in docs/settings.md, made from the settings: `python -m tests.support.settings_table` prints it."""

from __future__ import annotations

from enum import Enum

from pydantic import SecretStr

from bcs.config.settings import Settings


def settings_table() -> str:
    """The table in Markdown, one row per setting."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    defaults = Settings.model_construct()
    for name, field in Settings.model_fields.items():
        default = getattr(defaults, name)
        default = default.value if isinstance(default, Enum) else default
        default = default.get_secret_value() if isinstance(default, SecretStr) else default
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `BCS_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(settings_table())  # noqa: T201
