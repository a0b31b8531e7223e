"""The comparison of runs as a W&B workspace."""

from typing import TYPE_CHECKING

from blocksparse_rnn.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_CHOICES = ("model.cell", "width", "sparsifier.name", "block", "seed")
_MEASURED = ("test/cer", "test/wer", "sparsity/prunable", "parameters/nonzero")


def publish(place: str) -> str:
    """Make the workspace in W&B; returns its address.

    Args:
        place: `entity/project`.

    Raises:
        UserError: not of that form, the package isn't installed, or W&B refuses.
    """
    workspace = build_workspace(place)
    try:
        workspace.save()
    except Exception as error:  # W&B's own errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--wandb {place}: W&B refuses ({reason}); `wandb login` sets a key") from error
    return workspace.url


def build_workspace(place: str) -> "Workspace":
    """The workspace as a description, without a network.

    Raises:
        UserError: `place` is not `entity/project`, or the package isn't installed.
    """
    entity, slash, project = place.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"--wandb {place}: must be ENTITY/PROJECT, such as my-team/blocksparse-rnn")
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as panels
    except ModuleNotFoundError as error:
        raise UserError(f"--wandb: {error}; pip install wandb-workspaces") from None

    cer, summary = panels.SummaryMetric("test/cer"), panels.SummaryMetric
    axes: list[panels.Config | panels.SummaryMetric] = [*map(panels.Config, _CHOICES), cer]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Block sparsity",
        sections=[
            ws.Section(
                name="CER against sparsity and size",
                is_open=True,
                panels=[
                    panels.ScatterPlot(
                        title="CER against prunable sparsity", x=summary("sparsity/prunable"), y=cer
                    ),
                    panels.ScatterPlot(
                        title="CER against nonzero parameters",
                        x=summary("parameters/nonzero"),
                        y=cer,
                        log_x=True,
                    ),
                    panels.ParallelCoordinatesPlot(
                        title="Choices",
                        columns=[panels.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes],
                    ),
                ],
            ),
            ws.Section(
                name="Training curves",
                is_open=True,
                panels=[
                    panels.LinePlot(title="dev CER", y=["val/cer"]),
                    panels.LinePlot(title="prunable sparsity", y=["sparsity/prunable"]),
                    panels.LinePlot(title="training loss", y=["train/loss"]),
                    panels.MediaBrowser(title="Masks", media_keys=["masks"]),
                ],
            ),
        ],
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary("test/cer"), ascending=True)], pinned_columns=_columns()
        ),
    )


def _columns() -> list[str]:
    """Columns of the table of runs, as W&B names them: a setting's own value lies under `value`."""
    settings = ("config:{}.value{}{}".format(*name.partition(".")) for name in _CHOICES)
    return [*settings, *(f"summary:{name}" for name in _MEASURED)]
