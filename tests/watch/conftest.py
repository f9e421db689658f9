"""A headless Chromium, driven over its debugging protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
)


class Chromium:
    """One tab. Use it in ``with``.

    Args:
        path: of the program.
        profile: an empty folder of its own.
        size: of the window in pixels.
    """

    def __init__(self, path: str, profile: Path, size: tuple[int, int] = (1280, 900)) -> None:
        arguments = [path, *OPTIONS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = profile / "DevToolsActivePort"
            self.wait(lambda: port_file.is_file() and port_file.read_text().count("\n") >= 1, "Chromium to start")
            port = int(port_file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
            from websockets.sync.client import connect

            self._socket = connect(tab["webSocketDebuggerUrl"], max_size=None)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._calls = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the debugging protocol."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def go(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, text: str) -> None:
        """Click the button that says ``text``, once it is there."""
        script = f"""(() => {{ const button = [...document.querySelectorAll("button")].find(
            button => button.innerText.trim() === {json.dumps(text)}); button?.click(); return !!button }})()"""
        self.wait(lambda: self.evaluate(script), f"a button {text!r}")

    def screenshot(self, path: Path) -> Path:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def wait(self, until: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait until ``until()`` holds, and what it gave."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := until():
                return found
            time.sleep(0.1)
        raise AssertionError(f"waited {seconds} s for {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here")
    profile = tmp_path / "profile"
    profile.mkdir()
    with Chromium(path, profile) as tab:
        yield tab
