"""Processes, signals, files, the terminal and HTTP: what a run needs of the machine it runs on."""
