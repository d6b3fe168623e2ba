"""The W&B dashboard as code: `fastcap dashboard [--print] [--entity NAME] [--project NAME]`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from fastcap.cli import UserError, one_clear_error
from fastcap.training.log_wandb import default_entity, has_account

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

EPOCH = "epoch"
# What sweeps vary first, and what for.
SWEPT = ("optim.optimizer.lr", "data.batch_size", "decoder.num_experts", "decoder.top_k", "refinement.num_steps")
GOAL = "val/cider.max"
# Title and metrics of the plots over epochs; W&B itself adds one for every other scalar (losses, experts, times).
QUALITY = {
    "CIDEr-D × 100": ["val/cider"],
    "BLEU-4 × 100": ["val/bleu4"],
    "ROUGE-L × 100": ["val/rouge_l"],
    "BLEU-1 to BLEU-4 × 100": [f"val/bleu{order}" for order in (1, 2, 3, 4)],
    "Length: mean error in tokens (DLAG)": ["dlag/mae"],
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap dashboard", description="Build FastCap's dashboard in W&B.")
    parser.add_argument("--entity", help="W&B user or team (default: the account's own)")
    parser.add_argument("--project", default="fastcap", help="W&B project (default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="print the definition as JSON; needs no account")
    return parser.parse_args(arguments)


def build_workspace(entity: str = "", project: str = "fastcap") -> Workspace:
    """Define the dashboard; nothing is sent."""
    import wandb_workspaces.workspaces as ws

    def section(title: str, panels: list[Any]) -> Section:
        layout = ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3))
        return ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout)

    return ws.Workspace(
        entity=entity,
        project=project,
        name="FastCap",
        sections=[section(title, panels) for title, panels in _panels().items()],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, sort_panels_alphabetically=False),
        runset_settings=ws.RunsetSettings(order=[ws.Ordering(ws.Summary(GOAL), ascending=False)]),
        auto_generate_panels=True,
    )


def definition(workspace: Workspace) -> dict[str, Any]:
    """The workspace as it is sent to W&B, as plain data."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def _panels() -> dict[str, list[Any]]:
    """Panels that are not W&B's own, by section."""
    import wandb_workspaces.reports.v2 as wr

    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=key) for key in SWEPT]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(GOAL), display_name="best CIDEr"))
    speed, goal = wr.SummaryMetric("time/images_per_s.mean"), wr.SummaryMetric(GOAL)
    curve = wr.LinePlot(
        title="Quality against speed, by refinement steps",
        x="speed_quality/decode_ms",
        y=["speed_quality/cider"],
        title_x="decoding, ms an image",
        title_y="CIDEr-D × 100",
    )
    return {
        "Quality": [wr.LinePlot(title=title, x=EPOCH, y=list(keys)) for title, keys in QUALITY.items()],
        "Runs and sweeps compared": [
            wr.BarPlot(title="Best CIDEr-D × 100", metrics=[GOAL], orientation="h"),
            wr.ParallelCoordinatesPlot(title="What a sweep varied", columns=columns),
            wr.ParameterImportancePlot(with_respect_to=GOAL),
            wr.ScatterPlot(title="Best CIDEr against training speed", x=speed, y=goal),
            wr.RunComparer(diff_only="split"),
        ],
        "Captions and refinement": [
            curve,
            wr.MediaBrowser(title="Captions", media_keys=["val/samples"]),
            wr.MediaBrowser(title="Refinement, step by step", media_keys=["val/refinement"], num_columns=1),
            wr.WeavePanelSummaryTable(table_name="val/captions"),
        ],
        "Experts": [
            wr.LinePlot(
                title="Share of the images, each expert", x="trainer/global_step", metric_regex=r"moe/load_e\d+"
            )
        ],
    }


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    import wandb_workspaces  # noqa: F401  # where it is missing, the command names its extra

    if options.print:
        workspace = build_workspace(options.entity or "", options.project)
        print(json.dumps(definition(workspace), indent=1, ensure_ascii=False))
        return
    if not has_account():
        raise UserError(
            "no W&B account is set up: run `wandb login` (or set WANDB_API_KEY) and try again; "
            "`fastcap dashboard --print` prints the definition without one"
        )
    try:
        workspace = build_workspace(options.entity or default_entity() or "", options.project)
        workspace.save()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"W&B did not take the dashboard: {reason}") from error
    print(f"Dashboard   {workspace.url}")


if __name__ == "__main__":
    main()
