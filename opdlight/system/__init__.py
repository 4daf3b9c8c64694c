"""What a run asks of the machine it runs on."""
