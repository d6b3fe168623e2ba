"""An offline W&B run, read back from its file."""

import json

import pytest

from fastcap.training.log_wandb import ID_FILE, read_picture, wandb_logger
from fastcap.training.loggers import RunInfo
from tests.wandb_file import read_runs

PROMISED = (
    "val/cider val/bleu1 val/bleu2 val/bleu3 val/bleu4 val/rouge_l val/loss val/loss_token val/loss_length "
    "val/loss_alignment val/loss_concept train/loss train/loss_token train/loss_length train/loss_balance "
    "train/loss_alignment train/loss_concept moe/load_e0 moe/load_e1 dlag/mae time/images_per_s "
    "time/eval_images_per_s epoch trainer/global_step speed_quality/cider speed_quality/decode_ms "
    "speed_quality/num_steps val/captions val/samples val/refinement"
)


@pytest.fixture(scope="module")
def offline(multirun):
    folders, _ = multirun
    return [read_runs(folder) for folder in folders]


def test_each_job_of_a_multirun_is_one_run_of_its_own(multirun, offline):
    folders, _ = multirun
    assert [len(runs) for runs in offline] == [1, 1]
    (first,), (second,) = offline
    assert first.run.run_id != second.run.run_id
    for folder, run in zip(folders, (first, second), strict=True):
        assert (folder / ID_FILE).read_text().strip() == run.run.run_id
        assert run.exit_code == 0


def test_runs_are_named_grouped_and_typed(offline):
    for (run,), rate in zip(offline, ("0.001", "0.002"), strict=True):
        assert run.run.run_group == "scenes" and run.run.job_type == "sweep" and run.run.project == "fastcap"
        assert run.run.display_name.startswith(f"lr={rate} ")  # what the sweep varies comes first
        assert len(run.run.display_name) <= 100 and "logger" not in run.run.display_name


def test_every_promised_key_is_there(offline):
    (run,), _ = offline
    assert set(PROMISED.split()) <= run.keys


def test_the_caption_table_holds_what_the_run_wrote(multirun, offline):
    (folder, _), _ = multirun
    (run,), _ = offline
    (entry,) = [row["val/captions"] for row in run.history if "val/captions" in row]
    table = json.loads((run.folder / "files" / entry["path"]).read_text())
    assert table["columns"] == ["epoch", "image_id", "image", "caption", "references", "score", "cider"]
    captions = {str(row["image_id"]): row for row in json.loads((folder / "captions.json").read_text())}
    assert len(table["data"]) == 12
    for _, image_id, image, caption, references, score, cider in table["data"]:
        row = captions[image_id]
        assert (caption, references.split("\n")) == (row["caption"], row["references"])
        assert score == pytest.approx(row["score"], abs=1e-3) and cider >= 0
        assert image == "Image"  # the pictures themselves travel in the table's artifact
    (artifact,) = [artifact for artifact in run.artifacts if artifact.type == "run_table"]
    pictures = [entry.local_path for entry in artifact.manifest.contents if entry.path.endswith(".png")]
    assert len(pictures) == 12 and all(read_picture(path).shape == (32, 32, 3) for path in pictures)


def _logger(run, **options):
    logger = wandb_logger(run, **options)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.close()
    return logger


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    folders = [tmp_path / name for name in ("first", "moved", "branch")]
    for folder in folders:
        folder.mkdir()
    first, moved, branch = folders
    checkpoint = first / "checkpoints" / "last.ckpt"
    _logger(RunInfo(first))
    _logger(RunInfo(first, resume=checkpoint, resumed_step=4))
    old, resumed = read_runs(first)
    assert old.run.run_id == resumed.run.run_id
    assert old.run.display_name == "first"
    _logger(RunInfo(moved, resume=checkpoint))
    assert read_runs(moved)[0].run.run_id == old.run.run_id
    _logger(RunInfo(branch, resume=checkpoint, job_type="sweep"))
    assert read_runs(branch)[0].run.run_id != old.run.run_id
    _logger(RunInfo(first, job_type="eval"))
    started_over = max(read_runs(first), key=lambda run: run.folder.stat().st_ctime)
    assert started_over.run.run_id != old.run.run_id and started_over.run.job_type == "eval"


def test_without_a_network_the_run_goes_on_offline(tmp_path, monkeypatch, caplog):
    import wandb

    from fastcap.training import log_wandb

    start = wandb.init

    def unreachable(**options):
        if options["mode"] == "online":
            raise TimeoutError("no network")
        return start(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setattr(log_wandb, "has_account", lambda: True)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    _logger(RunInfo(tmp_path))
    assert "no network" in caplog.text
    (run,) = read_runs(tmp_path)
    assert run.keys >= {"train/loss"}
    assert (tmp_path / ID_FILE).read_text().strip() == run.run.run_id


def test_a_run_that_fails_is_marked(tmp_path, monkeypatch):
    """W&B's run ends with the job, whatever ends the job."""
    from fastcap.train import train
    from tests.tiny import tiny_config

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("fastcap.train.L.Trainer.fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config("logger=wandb"), tmp_path)
    (run,) = read_runs(tmp_path)
    assert run.exit_code == 1

    import wandb

    assert wandb.run is None


def test_disabled_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_logger(RunInfo(tmp_path)) is None
    assert not list(tmp_path.iterdir())
