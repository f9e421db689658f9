"""The command that shows an agent on a web page."""

import os
import sys
import webbrowser
from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional

console = Console(markup=False)  # what is printed has paths and names in it


@dataclass(frozen=True)
class Watch:
    """Watch an agent learn on a web page of your own machine. Ctrl-C ends it.

    The page shows the live simulation and the return per episode, moves the hidden task and makes the agent forget.
    """

    agent: Positional[str] = "reacher-goal-mamba"
    """Bundled name, directory, or Hub id."""
    port: int = 8080
    """Port of the page; where it is taken, the next free one."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it."""
    open: bool = True
    """Open the page in a browser, where there is a display."""
    seed: int = 0
    """Of the first task and of initial states."""

    def run(self) -> None:
        """Serve the page until interrupted."""
        from icrl_agents.agent import InContextAgent
        from icrl_agents.watch.page import WatchPage
        from icrl_agents.watch.simulation import LiveSimulation, Simulation

        simulation = Simulation(InContextAgent.from_pretrained(self.agent), seed=self.seed)
        with LiveSimulation(simulation) as live, WatchPage(live, self.host, self.port) as page:
            console.print(f"{simulation.agent.config.name} lives at {page.url}; Ctrl-C ends it", soft_wrap=True)
            if self.open and _has_display():
                webbrowser.open(page.url)
            try:
                page.serve()
            except KeyboardInterrupt:
                console.print("ended")


def _has_display() -> bool:
    """Whether a browser would open a window, not take over the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
