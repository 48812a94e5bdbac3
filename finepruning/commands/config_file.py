"""Reading the YAML file of `finepruning compress --config FILE`."""

from __future__ import annotations

import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from finepruning.commands.options import near
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.units import parse_bytes


def read_config(path: Path) -> dict[str, Any]:
    """Fields of `CompressConfig` set in the YAML file ``path``, checked by name and type.

    A run's own ``config.yaml`` is such a file. Names may be written with dashes, as on the command line.

    Raises:
        ArgumentError: the file is missing, is no YAML mapping, or holds an unknown name or a wrong type.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {path}: not valid YAML ({error})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ArgumentError(f"--config {path}: must hold 'name: value' lines, such as 'target_density: 0.1'")
    hints = get_type_hints(CompressConfig)
    known = [field.name for field in fields(CompressConfig)]
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ArgumentError(f"--config {path}: unknown option {key!r}{near(name, known)}")
        if name == "target_bytes" and isinstance(value, str):
            value = parse_bytes(value)
        values[name] = _typed(value, hints[name], f"--config {path}: {key}")
    return values


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the field's type; YAML reads ``1e-3`` as a string and ``1`` as an int."""
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(value) in allowed or (value is None and type(None) in allowed):
        return value
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    names = " or ".join("nothing" if t is type(None) else t.__name__ for t in allowed)
    raise ArgumentError(f"{where}: {value!r} is not of type {names}")
