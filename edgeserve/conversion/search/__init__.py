"""From a graph to the variants that are worth shipping: built, proven, timed, chosen."""
