"""The agents that come with the package: ``index.json`` maps a name to a directory here or to a Hub repository."""
