"""What every command shares: one line and status 2 for what the user can mend, a quiet end of a closed pipe."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

import fastcap
from fastcap.build import CONFIG_DIR, ConfigError, build_trainer
from fastcap.cli import one_clear_error, readable
from fastcap.eval import main as eval_command
from fastcap.train import main as train_command
from fastcap.training.checkpoints import CheckpointError
from fastcap.training.machine import seed_run
from fastcap.utils.errors import UserError
from fastcap.utils.files import atomic_write
from tests.tiny import tiny_config


def _fail(error, cause=None):
    @one_clear_error
    def command():
        raise error from cause

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("x.ckpt: no such\n checkpoint"), "x.ckpt: no such checkpoint"),
        (MisconfigurationException("No gpu"), "No gpu"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), "runs/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", b"a\xff"), "a\\udcff: Permission denied"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, line, capsys):
    for command in (_fail(error), _fail(RuntimeError("wrapped"), error)):
        with pytest.raises(SystemExit) as stop:
            command()
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"fastcap: error: {line}\n"


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .*x\.png'$"), atomic_write(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_every_error_of_fastcap_says_whose_mistake_it_is():
    """A public error class that is no UserError would end a command with a traceback."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in Path(fastcap.__file__).parent.rglob("*.py"))
    errors = dict(re.findall(r"^class ([A-Z]\w*Error)\((.*)\):", text, re.MULTILINE))
    assert "DataError" in errors
    # RefusedError is the HTTP API's own: its answer has a status.
    assert {name for name, bases in errors.items() if "UserError" not in bases} == {"UserError", "RefusedError"}


@pytest.mark.parametrize(
    "path", ["a/epoch=3-step=400.ckpt", "a/run(1)/best.ckpt", "a/[x]/best.ckpt", "a/it's here/b=c.ckpt", "a/plain.ckpt"]
)
def test_paths_are_read_as_they_stand(path):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        assert compose("eval", overrides=[readable(f"ckpt={path}")]).ckpt == path


def test_eval_takes_keys_of_a_group_and_no_choices(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval", "refinement=beam"])
    with pytest.raises(SystemExit):
        eval_command()
    assert "refinement=beam: the checkpoint has chosen" in capsys.readouterr().err


def test_a_comma_in_an_existing_path_is_no_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.ckpt").touch()
    assert readable("ckpt=a,b.ckpt") == "ckpt='a,b.ckpt'"
    assert readable("ckpt=a,c.ckpt") == "ckpt=a,c.ckpt"


@pytest.mark.parametrize("argument", ["optim.optimizer.betas=[0.9", "name=a=b", "++logger=null"])
def test_what_hydra_cannot_read_is_named(argument):
    with pytest.raises(UserError) as caught:
        readable(argument)
    assert argument in str(caught.value)


def test_lightnings_refusals_name_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"seed = -1: .*bounds"):
        seed_run(-1)
    cfg = OmegaConf.merge(tiny_config(), {"trainer": {"accelerator": "abacus"}})
    with pytest.raises(ConfigError, match=r"lightning\.Trainer: .*abacus"):
        build_trainer(cfg, tmp_path)


def test_a_closed_pipe_or_stream_is_no_error():
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(CONFIG_DIR)}
    command = [sys.executable, "-m", "fastcap.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() in (0, 141)
    for stream in ("<&-", ">&-", "2>&-"):
        shell = ["bash", "-c", f'"$@" {stream}', "bash", *command]
        done = subprocess.run(shell, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr, bool(done.stdout)) == (0, "", stream != ">&-")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("decoder.foo=1", "decoder.foo"),
        ("data=nowhere", "data/nowhere"),
        ("optim.optimizer.lr=abc", "optim.optimizer.lr = abc must be a number, as 0.003 is"),
    ],
)
def test_wrong_overrides_are_one_line(argument, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", argument])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # set by the command: put back afterwards
    with pytest.raises(SystemExit) as stop:
        train_command()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("fastcap: error: ") and message in error and error.count("\n") == 1
