"""openenv_games.py is for a server's process; collecting it for doctests would import the server's packages here."""

collect_ignore = ["openenv_games.py"]
