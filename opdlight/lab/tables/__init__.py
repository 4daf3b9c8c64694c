"""The paper's tables at lab scale: arms × seeds, each an ordinary training run, compared with intervals."""
