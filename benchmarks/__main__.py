"""All benchmarks by one command, with one page and one JSON file of all tables.

    python -m benchmarks                    # lists the benchmarks
    python -m benchmarks all --quick        # runs all of them; minutes on one core
    python -m benchmarks all --only step criterion --out FOLDER
    python -m benchmarks step --groups 1 3  # runs one of them, with the options of its script
    python -m benchmarks tables             # writes measured tables into the README files

``all`` writes FOLDER/benchmarks.json and FOLDER/benchmarks.html after every part. A part that
cannot run is named there with the reason, and the others run. With ``--only``, the other parts that
FOLDER has already are kept.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The benchmarks are scripts that import each other by their own names, and the tests of parity.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import parts


def list_benchmarks() -> None:
    print(__doc__)
    for part in parts.PARTS:
        print(f"  {part.name:22} {part.title}")
    for script, reason in parts.OTHERS.items():
        print(f"  {script:22} not part of all: it {reason}")


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        list_benchmarks()
    elif arguments[0] == "all":
        import runner
        import tyro

        runner.run_all(tyro.cli(runner.Options, args=arguments[1:]))
    elif arguments[0] == "tables":
        import tables

        tables.write_all()
    else:
        script = parts.FOLDER / parts.part_of(arguments[0]).script
        sys.exit(subprocess.run([sys.executable, str(script), *arguments[1:]]).returncode)


if __name__ == "__main__":
    main()
