"""How much memory a captioning system takes, measured in a process of its own: loading it and captioning twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from fastcap.tools.systems import Spec, build


def peak_mb(spec: Spec, image: str, threads: int) -> float:
    """Measure the high-water mark of a fresh process's resident memory, everything it imports included.

    Args:
        spec: The system.
        image: An image file.
        threads: Threads of the system.

    Returns:
        Megabytes (1e6 bytes); NaN where the system does not tell (other than Linux).

    Raises:
        RuntimeError: If the process fails, with the last line of what it said.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    arguments = [json.dumps(asdict(spec)), image, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "fastcap.tools.footprint", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"measuring memory of {spec.label} failed: {said[-1]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Build the system named on the command line, caption twice, print the peak."""
    spec, image, threads = Spec(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    system, _ = build(spec, threads)
    for _ in range(2):
        system.caption(image)
    try:
        with open("/proc/self/status") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        print("nan")
        return
    print(kilobytes * 1024 / 1e6)


if __name__ == "__main__":
    main()
