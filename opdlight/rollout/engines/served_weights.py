"""The weights of a student behind `vllm serve`: written to a folder, loaded by the server, labelled with a version."""

import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from opdlight.errors import EngineError, ServerError
from opdlight.rollout.engines.model_folder import checkpoint_shapes, complete_weights
from opdlight.system.distributed import full_tensor
from opdlight.system.files import replacing
from opdlight.system.vllm_http import Unavailable, VLLMServer

REFUSED = "collective_rpc method failed"  # how vLLM words that its worker raised; the server dies of it


class ServedWeights:
    """What the server is to sample with, and how it gets it.

    vLLM reports the label of its weights with every completion, and has none after its start.

    Args:
        server: in development mode, which lets weights be loaded.
        model: folder or Hub name, for names and shapes.
        folder: weights are written here; the server must see it under the same path.
        trust_remote_code: run the code that the model brings with it (`auto_map`).
    """

    def __init__(self, server: VLLMServer, model: str, folder: str, *, trust_remote_code: bool = False) -> None:
        self._server, self._folder = server, Path(folder).absolute()
        self._shapes = checkpoint_shapes(model, trust_remote_code=trust_remote_code)
        self._run = f"opdlight-{secrets.token_hex(4)}"  # another run at the same server has other labels
        self._current: Path | None = None
        self.label = ""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write them by their checkpoint names and push; raises EngineError before that if they do not fit.

        The first weights go this way too, and not from the model's folder: that has a tied head under one name only,
        and then vLLM's CPU head stays as it was.
        """
        named = complete_weights(weights, self._shapes)
        before, folder = self._current, self._folder / f"{self._run}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        # copies: a file cannot hold one tensor under two names
        copies = {name: full_tensor(w).to("cpu", copy=True).contiguous() for name, w in named.items()}
        with replacing(folder / "model.safetensors") as temporary:
            save_file(copies, temporary, metadata={"format": "pt"})
        self._current, self.label = folder, f"{self._run}-{version}"
        self.push()
        if before is not None and before != folder:
            shutil.rmtree(before)

    def push(self) -> None:
        """Let the server load and label them, while it answers no request; a restart on the way begins it anew.

        Raises:
            ServerError: if the server stays away. EngineError: if it does not take weights, or not these.
        """
        self._server.retry(self._push_once)

    def _push_once(self) -> None:
        loading = f"{self.label}-loading"  # a restart would forget it
        try:
            self._server.attempt("POST", "/update_weight_version", {"new_version": loading})
        except ServerError as error:
            if error.status != 404:
                raise
            raise EngineError(
                f"{error} Start the server with VLLM_SERVER_DEV_MODE=1: else it takes no weights."
            ) from error
        try:
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(self._current)}}
            self._server.attempt("POST", "/collective_rpc", body)
        except Unavailable as error:
            if REFUSED not in str(error):
                raise
            raise EngineError(
                f"{self._server.url} could not load {self._current}: does it see this folder under the same path, and "
                f"serve the student's architecture? It said {error}."
            ) from error
        reply = self._server.attempt("POST", "/reset_prefix_cache", {})
        if not (isinstance(reply, dict) and reply.get("success")):
            raise Unavailable("it keeps its prefix cache, since it still answers other requests")
        reply = self._server.attempt("GET", "/weight_info")
        if not (isinstance(reply, dict) and reply.get("weight_version") == loading):
            raise Unavailable(f"it was restarted, or given other weights, while it loaded these: {reply}")
        self._server.attempt("POST", "/update_weight_version", {"new_version": self.label})

    def remove(self) -> None:
        """Delete what was written; the server keeps what it has loaded."""
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            with suppress(OSError):  # another run's weights are there
                self._folder.rmdir()
