"""Runs all benchmarks, each in a process of its own, and writes results.json and the tables in README.md.

python benchmarks [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import markdown

HERE = Path(__file__).parent
ALL = ("capture", "memory", "knockout", "sweeps", "stages")
BEGIN = "<!-- what follows is written by `make bench` -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds each: shows that all runs; writes nothing")
    quick = parser.parse_args().quick
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ALL:
            file = Path(folder) / f"{name}.json"
            command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(file), *(["--rounds", "2"] if quick else [])]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"{name}.py failed: nothing was written")
            results[name] = json.loads(file.read_text())
    if quick:
        return
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    told = (HERE / "README.md").read_text().split(BEGIN)[0]
    machine = ", ".join(f"{key} {value}" for key, value in results["capture"]["machine"].items() if value is not None)
    parts = [f"Measured on: {machine}.\n"]
    parts += [f"## {name}.py\n\n{markdown(result['tables'])}" for name, result in results.items()]
    (HERE / "README.md").write_text(told + BEGIN + "\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
