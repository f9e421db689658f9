"""An agent to look at while it learns, on a page of your own machine.

:mod:`~icrl_agents.watch.simulation` is the loop, which knows of no page; :mod:`~icrl_agents.watch.shapes` turns what
MuJoCo simulates into triangles; :mod:`~icrl_agents.watch.page` shows both in a browser, by viser.
"""
