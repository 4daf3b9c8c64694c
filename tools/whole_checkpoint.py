"""Put a checkpoint that several processes have written (trainer=fsdp) together to one of a single process.

python tools/whole_checkpoint.py runs/latest/checkpoints/step-00000020 whole

The new folder holds weights.safetensors with every trained weight, and state.pt; it takes the memory of both. To resume
with another number of processes this is not needed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from opdlight.errors import OpdError
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import verify
from opdlight.system.arguments import argument_parser


def main() -> None:
    """Read, put together, write."""
    parser = argument_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a folder checkpoints/step-… of a run")
    parser.add_argument("folder", type=Path, help="a new folder")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"error: {args.folder} exists")
    if inside := sorted(folder.name for folder in args.checkpoint.glob("step-*")):
        sys.exit(f"error: expected one checkpoint, but {args.checkpoint} holds {', '.join(inside)}")
    try:
        verify(args.checkpoint)
    except OpdError as error:
        sys.exit(f"error: {error}")
    io = CheckpointFolder()
    io.save_checkpoint(io.load_checkpoint(args.checkpoint), args.folder.absolute())
    if not io.wait():
        sys.exit(1)


if __name__ == "__main__":
    main()
