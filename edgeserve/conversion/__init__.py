"""From a source model to a bundle: planning, converters, tool environments, proof."""
