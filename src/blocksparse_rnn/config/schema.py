"""Settings as typed objects, and a check that names every mistake at once."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
)

from blocksparse_rnn.config.nodes import STRICT, Node, Nodes, is_node, node_schema, nodes_schema, plain
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSetting
from blocksparse_rnn.runs.folder import RunFolder


def _step_limit(steps: int) -> int:
    if steps != -1 and steps < 1:
        raise ValueError("must be at least 1, or -1 for as many as the epochs take")
    return steps


def _time_limit(time: str) -> str:
    if not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time):
        raise ValueError("must be days:hours:minutes:seconds, such as 00:07:30:00")
    return time


class TrainerSettings(BaseModel):
    """How long, where and how precisely a model is trained."""

    model_config = STRICT

    max_epochs: PositiveInt
    max_steps: Annotated[int, AfterValidator(_step_limit)]
    """Optimizer steps after which training ends earlier, or -1."""
    max_time: Annotated[str, AfterValidator(_time_limit)] | None
    """Time after which training ends earlier, as days:hours:minutes:seconds."""
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: PositiveInt
    """GPUs or processes of each machine; all share a batch."""
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
    """Lightning's name of it, or `auto`: bf16-mixed on a GPU, 32-true on a CPU."""
    clip: NonNegativeFloat
    """Largest norm of the gradient; 0 for no limit."""
    max_skipped: NonNegativeInt
    """Steps in a row that may be skipped because their gradients are not finite."""
    log_every: PositiveInt
    """Steps between two rows of training metrics."""


class CheckpointSettings(BaseModel):
    """How often a training is saved, besides the end of every epoch."""

    model_config = STRICT

    every_minutes: NonNegativeFloat


class ScaleSettings(BaseModel):
    """Values that other settings refer to; conf/scale/ defines them."""

    model_config = ConfigDict(extra="allow")

    name: str


class Settings(BaseModel):
    """All settings of one training, interpolations filled in. conf/config.yaml says what each is for."""

    model_config = STRICT

    width: PositiveInt
    batch: PositiveInt
    epochs_per_pass: PositiveInt | None
    seed: int = Field(ge=0, lt=2**32)  # numpy takes no larger one
    alphabet: str
    outputs: str
    corpora: str
    workers: NonNegativeInt
    max_rejects: float = Field(ge=0, le=1)
    sweep: str | None
    weights: str | None
    start_from: str | None
    block: BlockSetting
    target_sparsity: float | None
    q: str
    skip_zeros: bool | None
    dry_run: bool
    prunable: dict[str, list[str]]
    scale: ScaleSettings
    features: Node
    model: Node
    data: Node
    text: Node | None
    augment: Nodes | None
    decoder: Node
    optimizer: Node
    sparsifier: Nodes
    schedule: Node
    trainer: TrainerSettings
    checkpoints: CheckpointSettings
    logger: Node
    launcher: Node

    def plain(self) -> dict[str, Any]:
        """The settings as config.yaml holds them."""
        return plain(self)


def typed(values: dict[str, Any]) -> Settings:
    """Typed settings from plain values, as a run's config.yaml holds them.

    Raises:
        UserError: names every value that its type does not allow, and every key that is unknown or missing.
    """
    problems: list[str] = []
    fields: dict[str, Any] = {}
    for key, value in values.items():
        try:
            if is_node(value):
                fields[key] = (node_schema(value), ...)
            elif isinstance(value, dict) and key in ("sparsifier", "augment"):
                fields[key] = (nodes_schema(value), ...)
        except UserError as error:
            problems.append(f"{key}.{error}")
            fields[key] = (Any, ...)
    known = {key: field for key, field in fields.items() if key in Settings.model_fields}
    schema: type[Settings] = create_model("Settings", __base__=Settings, **known)
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        problems += _lines(error, schema)
    # A node that refers to a top-level value would repeat its mistake.
    problems = [p for p in problems if not any(p.endswith(f".{other}") for other in problems)]
    if problems:
        raise UserError("\n".join(problems))
    return settings


def read_settings(run: RunFolder) -> Settings:
    """The settings of a run's folder.

    Raises:
        UserError: names every mistake in its config.yaml, or the file is missing or damaged.
    """
    values = run.settings()
    try:
        return typed(values)
    except UserError as error:
        file = run.path / "config.yaml"
        problems = [
            *str(error).splitlines(),
            "does not fit this version; use the version that wrote it, or train again",
        ]
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems)) from None


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The message for an unknown name: the nearest allowed one, or all of them."""
    allowed = sorted({*allowed} - {"hydra"})
    close = difflib.get_close_matches(name, allowed, n=1)
    if not close:  # the last part may belong to another group: huors -> data.hours
        last = {option.rsplit(".", 1)[-1]: option for option in allowed}
        close = [last[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1)]
    if close:
        return f"unknown; did you mean {close[0]}?"
    top = [option for option in allowed if "." not in option]
    return f"unknown; choose one of {', '.join(top)}"


def _lines(error: ValidationError, schema: type[BaseModel]) -> Iterator[str]:
    for problem in error.errors():
        path = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            fields = _fields(schema, problem["loc"][:-1])
            yield f"{path}: {nearest(str(problem['loc'][-1]), fields) if fields else 'unknown'}"
        elif problem["type"] == "missing":
            yield f"{path}: is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{path}={problem['input']}: {message}"


def _fields(schema: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that a node may have; none for a mapping within a value, whose keys are not the schema's."""
    for part in path:
        field = schema.model_fields.get(str(part))
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        schema = field.annotation
    return [
        field.alias or name for name, field in schema.model_fields.items() if name not in ("name", "target")
    ]
