from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from steppe.benchmark import shared_disk
from steppe.benchmark.shared_disk import Probe, check_shared, local_locks
from steppe.errors import SteppeError
from steppe.training import OutputError

CHECK = """
import sys
from pathlib import Path
from steppe.benchmark.shared_disk import check_shared
check_shared(Path(sys.argv[1]))
"""


def test_another_process_sees_the_file_and_its_lock(tmp_path: Path) -> None:
    probe = Probe(tmp_path / "runs" / "emoji")
    assert subprocess.run([sys.executable, "-c", CHECK, probe.path], check=False).returncode == 0
    probe.remove()
    assert list((tmp_path / "runs" / "emoji").iterdir()) == []


def test_another_disk_and_a_lock_that_does_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match=r"does not see .* as the driver does \(No such file.*--exchange s3://"):
        check_shared(tmp_path / "elsewhere" / ".driver-1")
    probe = Probe(tmp_path)
    fcntl.flock(probe._file, fcntl.LOCK_UN)  # what another machine sees where locks are each machine's own
    with pytest.raises(
        SteppeError, match=r"does not hold on .*: mount that disk with locks that hold between machines"
    ):
        check_shared(probe.path)
    probe.remove()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Probe(tmp_path / "file")


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /scratch rw,relatime - lustre 10.0.0.1@tcp:/fs rw,localflock,lazystatfs
31 22 0:41 / /scratch/good rw,relatime - lustre 10.0.0.1@tcp:/fs rw,flock,lazystatfs
32 22 0:42 / /home rw,relatime shared:7 - nfs4 10.0.0.2:/home rw,vers=4.2,local_lock=none,addr=10.0.0.2
33 22 0:43 / /old\\040home rw,relatime - nfs 10.0.0.2:/old rw,vers=3,nolock,local_lock=all,addr=10.0.0.2
34 22 0:44 / /bee rw,relatime - beegfs beegfs_nodev rw,cfgFile=/etc/beegfs/beegfs-client.conf
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/srv/runs", None),
        ("/scratch/me/runs", "lustre"),
        ("/scratch/good/runs", None),
        ("/scratcher/runs", None),
        ("/home/me/runs", None),
        ("/old home/me/runs", "nfs"),
        ("/bee/runs", "beegfs"),
    ],
)
def test_a_mount_says_what_its_locks_are(
    directory: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(shared_disk, "MOUNTS", tmp_path / "mountinfo")
    warning = local_locks(Path(directory))
    if kind is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(f"{directory} is on {kind}, mounted so that its locks may hold within one machine")


def test_of_this_machine_s_mounts_nothing_is_misread(tmp_path: Path) -> None:
    assert local_locks(tmp_path) is None
