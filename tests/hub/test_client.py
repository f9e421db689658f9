"""Pushing and loading one checkpoint, by the Hub's real client against a server on this machine."""

import json
from hashlib import sha256

import numpy as np
import pytest

PUSH = """
import sys
from icrl_agents import push_to_hub
print(push_to_hub(sys.argv[1], "org/agent", private=True))
"""
LOAD = """
import numpy as np
from icrl_agents import InContextAgent
agent = InContextAgent.from_pretrained("org/agent", device="cpu")
print(agent.act(np.ones(8)).tolist())
"""
ATTEMPTS = """
from icrl_agents import InContextAgent, push_to_hub
from icrl_agents.errors import IcrlError
def attempt(call, *arguments, **options):
    try:
        call(*arguments, **options)
        print("done")
    except IcrlError as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


@pytest.fixture
def mine(make_agent, tmp_path):
    """A checkpoint with a picture, and something beside it that is no part of it."""
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "secret.txt").write_text("no part of a checkpoint")
    make_agent().save_pretrained(directory)
    (directory / "curve.png").write_bytes(b"a picture")
    return directory


def test_push_then_load_by_id_and_by_pinned_name(server, client, make_agent, mine):
    address = client(PUSH, str(mine))
    repository = server.repositories["org/agent"]
    assert address.endswith(f"/org/agent/commit/{repository.head}")
    assert repository.private
    assert sorted(repository.files) == ["README.md", "config.json", "curve.png", "model.safetensors"]
    card = repository.files["README.md"].decode()
    assert 'from_pretrained("org/agent")' in card  # runs for whoever reads it there
    assert 'from_pretrained("tiny-mamba")' in (mine / "README.md").read_text()

    repository.files["huge.bin"] = b"0" * 1000  # somebody else's file, not to be downloaded
    action = json.loads(client(LOAD))
    np.testing.assert_array_equal(np.float32(action), make_agent().act(np.ones(8)))
    assert not any("huge.bin" in path for path in server.log)

    digest = sha256((mine / "model.safetensors").read_bytes()).hexdigest()
    pinned = """
import json, sys
from icrl_agents import InContextAgent, hub
from icrl_agents.errors import CheckpointError
entry = {"repo": "org/agent", "revision": sys.argv[1], "sha256": sys.argv[2]}
hub.index = lambda: {"pinned": hub.IndexEntry(**entry)}
try:
    print(InContextAgent.from_pretrained("pinned").config.name)
except CheckpointError as error:
    print(error)
"""
    assert client(pinned, repository.head, digest) == "tiny-mamba"
    assert f"has SHA-256 {digest}, expected 000000" in client(pinned, repository.head, "0" * 64)
    # and without a network, from the cache
    assert client(pinned, repository.head, digest, HF_HUB_OFFLINE="1") == "tiny-mamba"
    server.log.clear()
    assert json.loads(client(LOAD, HF_HUB_OFFLINE="1")) == action
    assert server.log == []


def test_a_pushed_checkpoint_leaves_nothing_of_an_earlier_one(server, client, make_agent, mine):
    client(PUSH, str(mine))
    files = server.repositories["org/agent"].files
    files["notes.md"] = b"theirs"
    make_agent(seed=1).save_pretrained(mine)  # its picture is of other weights, and gone
    client(PUSH, str(mine))
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "notes.md"]


def test_what_is_to_be_private_never_goes_to_a_public_repository(server, client, mine):
    client(PUSH.replace(", private=True", ""), str(mine))
    repository = server.repositories["org/agent"]
    assert not repository.private  # as the owner has it, who said nothing
    (mine / "curve.png").write_bytes(b"for nobody else")
    before = dict(repository.files)
    attempt = ATTEMPTS + 'import sys\nattempt(push_to_hub, sys.argv[1], "org/agent", private=True)'
    assert client(attempt, str(mine)).startswith("ConfigError 'org/agent' is on the Hub, for everybody to see")
    assert repository.files == before


def test_a_private_repository_needs_a_token(server, client, mine):
    client(PUSH, str(mine))
    code = ATTEMPTS + 'attempt(InContextAgent.from_pretrained, "org/agent"{})'
    without = client(code.format(""), home="another", HF_TOKEN="")
    assert without.startswith("CheckpointError no checkpoint 'org/agent' on the Hub, or a private one and no token")
    assert client(code.format(', token="hf_test"'), home="another", HF_TOKEN="") == "done"
    push = ATTEMPTS + f'attempt(push_to_hub, {str(mine)!r}, "org/agent"{{}})'
    refused = client(push.format(""), HF_TOKEN="")
    assert refused.startswith("CheckpointError the repository 'org/agent' could not be made or found on the Hub: ")
    assert "401" in refused
    assert client(push.format(', token="hf_test"'), HF_TOKEN="") == "done"


def test_a_branch_is_a_revision(server, client, mine):
    code = (
        ATTEMPTS
        + f"""
attempt(push_to_hub, {str(mine)!r}, "org/agent", revision="v2")
attempt(InContextAgent.from_pretrained, "org/agent", revision="v2")
attempt(InContextAgent.from_pretrained, "org/agent", revision="v9")
"""
    )
    pushed, loaded, missing = client(code).splitlines()
    assert (pushed, loaded) == ("done", "done")
    assert missing.startswith("CheckpointError no checkpoint 'org/agent' at revision 'v9' on the Hub")


def test_what_the_hub_does_not_have(client):
    code = (
        ATTEMPTS
        + """
for name, revision in (("org/agent", None), ("org/agent", "v9"), ("org/nothing", None)):
    attempt(InContextAgent.from_pretrained, name, revision=revision)
"""
    )
    lines = client(code).splitlines()
    assert len(lines) == 3
    assert all("no checkpoint 'org/" in line and "reacher-goal-mamba" in line for line in lines)
    lines = client(code, HF_HUB_OFFLINE="1").splitlines()
    assert len(lines) == 3
    assert all("the local cache does not have it" in line and "no directory 'org/" in line for line in lines)


def test_files_that_change_on_the_way_are_refused(server, client, mine):
    client(PUSH, str(mine))
    weights = server.repositories["org/agent"].files["model.safetensors"]
    server.tamper["model.safetensors"] = weights[:-4]
    assert "CheckpointError" in client(ATTEMPTS + 'attempt(InContextAgent.from_pretrained, "org/agent")')


def test_no_network_is_an_error_of_ours_that_says_what_failed(client, mine):
    code = (
        ATTEMPTS
        + f"""
attempt(push_to_hub, {str(mine)!r}, "org/agent")
attempt(push_to_hub, {str(mine)!r}, "no/such/name")
attempt(InContextAgent.from_pretrained, "org/agent")
attempt(InContextAgent.from_pretrained, "reacher-goal-mamba")
"""
    )
    made, named, read, bundled = client(code, HF_ENDPOINT="http://127.0.0.1:1").splitlines()
    assert "the repository 'org/agent' could not be made or found on the Hub: " in made
    assert "'no/such/name'" in named
    assert "no directory 'org/agent' here, the local cache does not have it, and the Hub cannot be reached" in read
    assert bundled == "done"  # needs no network


def test_bundled_names_ask_nobody(server, client):
    code = 'from icrl_agents import InContextAgent; InContextAgent.from_pretrained("reacher-goal-mamba")'
    assert client(code) == ""
    assert server.log == []
