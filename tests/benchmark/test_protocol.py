from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from steppe.benchmark.presets import DEMO
from steppe.benchmark.protocol import jobs, leave_one_domain_out
from steppe.benchmark.store import Store
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Settings, Trainer
from steppe.training.recipes import parse


def test_every_algorithm_meets_every_domain_and_seed_once(drawings: Path) -> None:
    dataset = open_dataset(drawings)
    configs = leave_one_domain_out(dataset, algorithms=["erm", "sagm+disam"], seeds=2)
    found = [(c.seed, c.held_out, c.algorithm) for c in configs]
    assert found == [(s, d, a) for s in (0, 1) for d in dataset.domains for a in ("erm", "disam+sagm")]
    assert {c.dataset for c in configs} == {str(drawings)}


def test_spellings_of_one_algorithm_count_once(drawings: Path) -> None:
    configs = leave_one_domain_out(
        open_dataset(drawings), algorithms=["SAM", "sam+sam", "sam"], held_out=["line", "line"], seeds=1
    )
    assert [(c.algorithm, c.held_out) for c in configs] == [("sam", "line")]


def test_hyper_parameters_go_where_they_are_taken(drawings: Path) -> None:
    dataset = open_dataset(drawings)
    settings = Settings(lam=0.5)
    configs = leave_one_domain_out(
        dataset, algorithms=["erm", "sam", "disam"], held_out=["line"], seeds=1, settings=settings
    )
    assert [c.lam for c in configs] == [None, None, 0.5]
    with pytest.raises(SteppeError, match=r"lam was given, but none of the algorithms \(erm, sam\) takes it"):
        leave_one_domain_out(dataset, algorithms=["erm", "sam"], settings=settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithms": ["dism"]}, "unknown algorithm 'dism'; did you mean 'disam'"),
        ({"algorithms": ["gsam+sagm"]}, "'gsam' and 'sagm' both fill the slot 'descent'"),
        ({"algorithms": []}, "no algorithm"),
        ({"held_out": ["lines"]}, "unknown domain 'lines' of .*; did you mean 'line'"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_wrong_input_is_named_before_anything_runs(fields: dict[str, object], message: str, drawings: Path) -> None:
    arguments: dict[str, object] = {"algorithms": ["erm"], "held_out": ["line"], "seeds": 1, **fields}
    with pytest.raises(SteppeError, match=message):
        leave_one_domain_out(open_dataset(drawings), **arguments)  # type: ignore[arg-type]


def test_a_job_lies_where_the_trainer_thinks(drawings: Path, tmp_path: Path) -> None:
    dataset = open_dataset(drawings)
    configs = leave_one_domain_out(dataset, algorithms=["disam", "erm"], seeds=2)
    planned = jobs(Store(tmp_path), dataset, configs)
    assert len({job.directory for job in planned}) == len(planned) == 12
    for job in planned:
        trainer = Trainer(job.config, out=job.directory, dataset=dataset)
        assert job.directory == tmp_path / "drawings" / job.config.algorithm / job.config.held_out / trainer.id


def test_a_copy_of_the_pictures_elsewhere_is_the_same_run(drawings: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(drawings, tmp_path / "elsewhere" / "drawings")
    found = []
    for place in (drawings, copy):
        dataset = open_dataset(place)
        configs = leave_one_domain_out(dataset, algorithms=["erm"], held_out=["line"], seeds=1)
        found.append(jobs(Store(tmp_path), dataset, configs)[0].directory)
    assert found[0] == found[1]
    next((copy / "noto" / "face").iterdir()).unlink()
    dataset = open_dataset(copy)
    configs = leave_one_domain_out(dataset, algorithms=["erm"], held_out=["line"], seeds=1)
    assert jobs(Store(tmp_path), dataset, configs)[0].directory != found[0]


def test_the_demo_is_a_valid_comparison() -> None:
    dataset = open_dataset(DEMO.dataset)
    configs = leave_one_domain_out(
        dataset, algorithms=DEMO.algorithms, held_out=DEMO.held_out, seeds=1, settings=DEMO.settings
    )
    assert len(configs) == len(DEMO.algorithms) * len(DEMO.held_out)
    assert all(parse(config.algorithm).name == config.algorithm for config in configs)


def test_a_domain_called_all_is_not_taken_for_all_domains(tmp_path: Path) -> None:
    for domain in ("all", "noto"):
        for name in ("a", "b"):
            (tmp_path / domain / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / domain / name / "0.png")
    dataset = open_dataset(tmp_path)
    with pytest.raises(SteppeError, match=r"a domain of .* is called 'all': rename it"):
        leave_one_domain_out(dataset, algorithms=["erm"])
    (config,) = leave_one_domain_out(dataset, algorithms=["erm"], held_out=["noto"], seeds=1)
    assert config.held_out == "noto"
