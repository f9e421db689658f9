"""Publishing the whole zoo: resumable, told, and nothing updated silently."""

import pytest

from icrl_agents import publishing
from icrl_agents.errors import ConfigError, UnknownNameError

PUBLISH = """
import sys
from pathlib import Path
from icrl_agents import hub, publishing
hub.packaged = publishing.packaged = lambda: Path(sys.argv[1])
from icrl_agents.cli import main
main(["publish", "org", *sys.argv[2:]])
"""


@pytest.fixture
def package(make_agent, tmp_path):
    """A package of two bundled agents and one on the Hub."""
    package = tmp_path / "package"
    for seed, name in enumerate(("first", "second")):
        make_agent(seed=seed).save_pretrained(package / name)
    (package / "index.json").write_text(
        '{"first": {"bundled": "first"}, "second": {"bundled": "second"}, "third": {"repo": "other/third"}}'
    )
    return package


def outcomes(text):
    """Repository -> what was printed of it."""
    return dict(line.split(": ", 1) for line in text.splitlines() if line.startswith("org/"))


def test_all_are_published_once_and_then_left_alone(server, client, package):
    first = outcomes(client(PUBLISH, str(package), "--private"))
    assert set(first) == {"org/first", "org/second"} == set(server.repositories)
    assert all(
        text.startswith(f"created at {server.repositories[name].head} (config.json") for name, text in first.items()
    )
    assert all(repository.private for repository in server.repositories.values())
    commits = [repository.head for repository in server.repositories.values()]
    server.log.clear()
    again = outcomes(client(PUBLISH, str(package)))
    assert again == {name: f"unchanged at {server.repositories[name].head}" for name in first}
    assert [repository.head for repository in server.repositories.values()] == commits
    assert not any(line.startswith("POST") for line in server.log)


def test_nothing_is_private_that_is_there_and_public(server, client, package):
    client(PUBLISH, str(package), "--only", "first")
    for options in ((), ("--dry-run", "--update")):
        client(PUBLISH, str(package), "--only", "first", "--private", *options, rc=2)
    assert set(server.repositories) == {"org/first"}


def test_a_dry_run_writes_nothing(server, client, package):
    told = outcomes(client(PUBLISH, str(package), "--dry-run"))
    assert all(text.startswith("would be created (") for text in told.values())
    assert len(told) == 2
    assert server.repositories == {}
    assert not any(line.startswith("POST") for line in server.log)


def test_what_differs_is_named_and_changed_only_when_asked(server, client, package, make_agent):
    client(PUBLISH, str(package))
    repository = server.repositories["org/first"]
    before = dict(repository.files)
    repository.files["evaluation.json"] = b"{}"  # of weights that were there before
    make_agent(seed=5).save_pretrained(package / "first")
    printed = client(PUBLISH, str(package))
    told = outcomes(printed)
    assert told["org/first"].startswith("differs at ")
    assert told["org/first"].endswith("(model.safetensors, evaluation.json)")
    assert told["org/second"].startswith("unchanged")
    assert "1 left as they are; --update replaces them" in printed
    assert repository.files == before | {"evaluation.json": b"{}"}
    dry = outcomes(client(PUBLISH, str(package), "--update", "--dry-run"))
    assert dry["org/first"].startswith("would be updated")
    assert repository.files == before | {"evaluation.json": b"{}"}
    assert outcomes(client(PUBLISH, str(package), "--update"))["org/first"].startswith("updated at ")
    assert repository.files == before | {"model.safetensors": (package / "first/model.safetensors").read_bytes()}


def test_an_interrupted_run_goes_on_where_it_stopped(server, client, package):
    server.refuse = "/org/second/"
    failed = client(PUBLISH, str(package), rc=2)
    assert "org/first: created" in failed
    assert "error: second could not be uploaded to 'org/second' on the Hub" in failed
    assert server.repositories["org/second"].commits == []  # made, and empty
    server.refuse = "nothing"
    told = outcomes(client(PUBLISH, str(package)))
    assert told["org/first"].startswith("unchanged")
    assert told["org/second"].startswith("created")


def test_some_are_published(server, client, package):
    assert set(outcomes(client(PUBLISH, str(package), "--only", "second"))) == {"org/second"}
    refused = client(PUBLISH, str(package), "--only", "second", "third", rc=2)
    assert "unknown bundled agent 'third'" in refused


def test_nothing_is_begun_with_wrong_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'reacher-goal-mamba'"):
        publishing.publish_bundled("org", names=["reacher-goal-mamba", "reacher-goal-manba"])
    for org in ("", "org/name"):
        with pytest.raises(ConfigError, match="user or organisation"):
            publishing.publish_bundled(org)
