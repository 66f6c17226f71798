"""The runs of evidence.py in one small archive, for version control: what was trained, and what came out of it.

    python examples/evidence/keep.py runs/evidence/emoji docs/results/emoji.tar.xz
    mkdir -p runs/evidence && tar -xf docs/results/emoji.tar.xz -C runs/evidence

Unpacked it is the folder again, without weights, predictions and metrics: `steppe report` reads its stores, and
evidence.py, given the same --settings and --out, trains only what is not there: more algorithms, domains or seeds. The
same runs make the same archive.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

KEPT = ("config.json", "result.json", "failure.json", "sweep.json", "chosen.toml")


def pack(folder: Path, archive: Path) -> int:
    """Write the archive, and return how many runs are in it."""
    files = sorted(path for name in KEPT for path in folder.rglob(name))
    over = {path.parent for path in files if path.name in ("result.json", "failure.json")}
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as packed:
        for path in files:
            if path.name != "config.json" or path.parent in over:  # of a run that was broken off nothing is kept
                content = path.read_bytes()
                member = tarfile.TarInfo(str(Path(folder.resolve().name) / path.relative_to(folder)))
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return len(over)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("archive", type=Path)
    given = parser.parse_args()
    runs = pack(given.folder, given.archive)
    print(f"{given.archive}: {runs} runs, {given.archive.stat().st_size / 1000:.0f} kB")
