"""Nodes: settings that describe an object. `_target_` names a class or a function, the other keys are its arguments.

The YAML files hold the values, the constructors hold the schema: a node's keys are the keyword-only arguments of
its target, with their types. The program itself passes in the positional arguments.
"""

import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import get_object
from pydantic import BaseModel, ConfigDict, Field, create_model

from blocksparse_rnn.errors import UserError

PACKAGE = "blocksparse_rnn"
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Node(BaseModel):
    """A description of one object; subclasses made by `node_schema` have its arguments as fields."""

    model_config = STRICT

    name: str | None = None
    """The option, where the node was chosen from a group: `adamw` of optimizer=adamw."""
    target: str = Field(alias="_target_")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def build(self, *positional: Any) -> Any:
        """Call the target with its keyword arguments, nodes among them built.

        Raises:
            UserError: the target refuses a value.
        """
        arguments = {key: value for key, value in self if key not in ("name", "target")}
        built = {k: v.build() if isinstance(v, Node) else v for k, v in arguments.items()}
        return find_target(self.target)(*positional, **built)


class Nodes(BaseModel):
    """Several nodes under names of their own, such as the sparsifiers of `sparsifier=glp`; null leaves one out."""

    model_config = STRICT

    name: str | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def nodes(self) -> list[Node]:
        """The nodes in the order of the YAML file."""
        return [value for _, value in self if isinstance(value, Node)]


def is_node(value: Any) -> bool:
    """Whether a plain value describes an object to build."""
    return isinstance(value, dict) and "_target_" in value


def find_target(name: Any) -> Callable:
    """The class or function that a `_target_` names, of this package only: settings must not run other code.

    Raises:
        UserError: there is none, or it is defined elsewhere, even where this package imports it.
    """
    if not str(name).startswith(f"{PACKAGE}."):
        raise UserError(f"_target_={name}: must lie inside {PACKAGE}")
    try:
        found = get_object(name)
    except (ImportError, AttributeError, HydraException, ValueError):
        raise UserError(f"_target_={name}: no such class or function") from None
    # blocksparse_rnn.files.os.system is os.system.
    if not callable(found) or not str(getattr(found, "__module__", "")).startswith(f"{PACKAGE}."):
        raise UserError(f"_target_={name}: must lie inside {PACKAGE}")
    return found


def node_schema(node: dict[str, Any]) -> type[Node]:
    """The class whose fields are the keyword-only arguments of a node's target.

    Raises:
        UserError: the target is not one of this package's.
    """
    target = find_target(node["_target_"])
    constructor = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(constructor, include_extras=True)  # with the ranges of pydantic's types
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind = node_schema(node[name]) if is_node(node.get(name)) else hints[name]
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(target.__name__, __base__=Node, **fields)


def nodes_schema(values: dict[str, Any]) -> type[Nodes]:
    """The class whose fields are the nodes among some values.

    Raises:
        UserError: a target is not one of this package's.
    """
    fields: dict[str, Any] = {
        key: (node_schema(value) if is_node(value) else None, ...)
        for key, value in values.items()
        if key != "name"
    }
    return create_model("Nodes", __base__=Nodes, **fields)


def plain(value: Any) -> Any:
    """Settings as the mappings, lists and values that a YAML file holds."""
    if isinstance(value, BaseModel):
        pairs = (
            (type(value).model_fields[key].alias or key if key in type(value).model_fields else key, v)
            for key, v in value
        )
        return {key: plain(v) for key, v in pairs if not (key == "name" and v is None)}
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
