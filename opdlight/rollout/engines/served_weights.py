"""The weights of a student behind `vllm serve`: written to a folder, loaded by the server, and labelled there."""

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

REFUSED = "collective_rpc method failed"  # vLLM's message after an error in its worker, which ends the server


class ServedWeights:
    """The current weights of the server, and how they are sent to it.

    vLLM reports the label of its weights with every completion; when it has just started, they have none.

    Args:
        server: a server in development mode, in which it can load weights.
        model: folder or Hub name; gives names and shapes of the weights.
        folder: folder for the weights; the server must see it under the same path.
        trust_remote_code: run the code that the model brings with it (`auto_map`).
    """

    def __init__(self, server: VLLMServer, model: str, folder: str, *, trust_remote_code: bool = False) -> None:
        self._server, self._folder = server, Path(folder).absolute()
        self._shapes = checkpoint_shapes(model, trust_remote_code=trust_remote_code)
        self._run = f"opdlight-{secrets.token_hex(4)}"  # labels of different runs differ
        self._current: Path | None = None
        self.label = ""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> int:
        """Write the weights, named as in a checkpoint, and push them; returns their size in bytes.

        The first weights are written, too, instead of loaded from the model's folder, which has a tied head under one
        name only: vLLM on a CPU would not update its copy of the head.

        Raises:
            EngineError: if they do not fit the model; nothing is written then.
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
        return sum(weight.numel() * weight.element_size() for weight in copies.values())

    def push(self) -> None:
        """Let the server load and label the written weights; it must not be answering requests.

        If the server is restarted meanwhile, this begins again.

        Raises:
            ServerError: if the server cannot be reached.
            EngineError: if it cannot load weights, or refuses these.
        """
        self._server.retry(self._push_once)

    def _push_once(self) -> None:
        loading = f"{self.label}-loading"  # lost in a restart, which `/weight_info` shows below
        try:
            self._server.attempt("POST", "/update_weight_version", {"new_version": loading})
        except ServerError as error:
            if error.status != 404:
                raise
            raise EngineError(
                f"{error} Start the server with VLLM_SERVER_DEV_MODE=1: otherwise it cannot load weights."
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
        """Delete the written weights; the server keeps those that it has loaded."""
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            with suppress(OSError):  # not empty: it holds weights of another run
                self._folder.rmdir()
