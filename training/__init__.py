"""From source algorithms to agents: collect learning histories, cut windows, distil."""
