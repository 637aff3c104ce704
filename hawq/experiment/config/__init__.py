"""From a command line to the settings of a run: options, building, names, explanations of what is wrong."""
