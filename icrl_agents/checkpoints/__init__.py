"""The agents that come with the package: ``index.json`` maps a name to a directory or a Hub repository."""
