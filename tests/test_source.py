"""Which commit a run records: that of this project's files, whatever lies around them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lgm_jax
from lgm_jax import runs

ROOT = Path(__file__).parents[1]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]


def git(folder, *command):
    """What Git answers; variables of an outer repository are left out."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        [*GIT, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit_all(folder):
    """Makes a folder a repository whose only commit has all its files; gives the commit."""
    git(folder, "init", "-q")
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


def copy_project(folder):
    """A project as small as can be: the package's first file, and what names it."""
    (folder / "lgm_jax").mkdir(parents=True)
    shutil.copy(ROOT / "lgm_jax" / "__init__.py", folder / "lgm_jax")
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


@pytest.fixture
def recorded(monkeypatch):
    """What a process records that runs the package of a folder."""

    def of(folder):
        monkeypatch.setattr(lgm_jax, "__file__", str(folder / "lgm_jax" / "__init__.py"))
        return runs.provenance()["commit"]

    return of


def test_a_checkout_is_known_by_its_commit_and_by_changes_to_it(tmp_path, recorded):
    project = copy_project(tmp_path / "project")
    commit = commit_all(project)
    assert recorded(project) == commit
    # A tag may be moved.
    git(project, "tag", "-a", "v9", "-m", "nine")
    assert recorded(project) == commit
    (project / "notes.txt").write_text("mine")
    assert recorded(project) == commit
    (project / "setup.cfg").write_text((project / "setup.cfg").read_text() + "# mine\n")
    assert recorded(project) == f"{commit}-dirty"


def test_a_repository_around_the_source_is_not_its(tmp_path, recorded):
    mine = tmp_path / "mine"
    below = copy_project(mine / "third_party" / "lgm")
    environment = mine / "venv" / "lib" / "site-packages"
    copy_project(environment)
    (environment / "setup.cfg").unlink()
    # Copied beside what is another project's, whatever of it is tracked.
    copy_project(mine)
    (mine / "setup.cfg").write_text("[metadata]\nname = mine\n")
    commit_all(mine)
    assert recorded(below) is recorded(environment) is recorded(mine) is None
    (mine / "setup.cfg").write_text("[metadata\n")
    assert recorded(mine) is None


def test_files_that_are_not_tracked_are_of_no_commit(tmp_path, recorded):
    project = copy_project(tmp_path / "project")
    (project / "README").write_text("mine")
    git(project, "init", "-q")
    git(project, "add", "README", "setup.cfg")
    git(project, "commit", "-q", "-m", "some")
    assert recorded(project) is None


def test_variables_of_another_repository_do_not_matter(tmp_path, recorded, monkeypatch):
    project, other = copy_project(tmp_path / "project"), copy_project(tmp_path / "other")
    (other / "notes.txt").write_text("another tree, and so another commit")
    commit, foreign = commit_all(project), commit_all(other)
    assert commit != foreign
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert recorded(project) == commit


def test_worktrees_submodules_and_links_lead_to_the_source(tmp_path, recorded):
    project = copy_project(tmp_path / "project")
    commit = commit_all(project)
    git(project, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    assert recorded(tmp_path / "tree") == commit
    mine = tmp_path / "mine"
    mine.mkdir()
    git(mine, "init", "-q")
    git(mine, "submodule", "add", "-q", str(project), "lgm")
    git(mine, "commit", "-q", "-m", "mine")
    assert recorded(mine / "lgm") == commit
    (tmp_path / "link").symlink_to(project)
    (mine / "lgm_jax").symlink_to(project / "lgm_jax")
    assert recorded(tmp_path / "link") == recorded(mine) == commit


@pytest.mark.parametrize("answer", [None, "exit 1", "echo nonsense", "printf '\\377\\n'"])
def test_git_that_is_missing_or_refuses_leaves_the_commit_open(
    answer, tmp_path, recorded, monkeypatch
):
    project = copy_project(tmp_path / "project")
    commit_all(project)
    programs = tmp_path / "bin"
    programs.mkdir()
    if answer:
        (programs / "git").write_text(f"#!/bin/sh\n{answer}\n")
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert recorded(project) is None


@pytest.mark.parametrize(
    ("origin", "commit"),
    [
        ({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}, "c" * 40),
        ({"url": "file:///x", "dir_info": {}}, None),
        (None, None),
        ([], None),
    ],
)
def test_an_installation_has_the_commit_that_pip_recorded(origin, commit, tmp_path, recorded):
    site = tmp_path / "site-packages"
    copy_project(site)
    (site / "setup.cfg").unlink()
    info = site / "lgm_jax-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lgm_jax\nVersion: 9\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    sys.path.insert(0, str(site))
    try:
        assert recorded(site) == commit
        # Another copy of the source is not what was installed.
        assert recorded(copy_project(tmp_path / "copy")) is None
    finally:
        sys.path.remove(str(site))
