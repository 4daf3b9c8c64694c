"""The weights of a student behind `vllm serve`: brought there by NCCL or through a folder, and labelled there."""

import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from opdlight.errors import EngineError, ServerError
from opdlight.rollout.engines.model_folder import checkpoint_shapes, complete_weights
from opdlight.rollout.engines.nccl import NcclSender
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
        dtype: of the server's weights, to which these are cast.
        nccl: broadcast the weights from this process's GPU to those of the server, which was started with
            `--weight-transfer-config`, instead of writing them to the folder.
        trust_remote_code: run the code that the model brings with it (`auto_map`).
    """

    def __init__(
        self,
        server: VLLMServer,
        model: str,
        folder: str,
        *,
        dtype: torch.dtype,
        nccl: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self._server, self._folder, self._dtype = server, Path(folder).absolute(), dtype
        self._nccl = nccl
        self._sender: NcclSender | None = None  # made when the first weights are sent
        self._shapes = checkpoint_shapes(model, trust_remote_code=trust_remote_code)
        self._run = f"opdlight-{secrets.token_hex(4)}"  # labels of different runs differ
        self._current: Path | None = None
        self.label = ""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> int:
        """Send weights, named as in a checkpoint, to the server; returns their size in bytes.

        The first weights are written, too, instead of loaded from the model's folder, which has a tied head under one
        name only: vLLM on a CPU would not update its copy of the head.

        Raises:
            EngineError: if they do not fit the model; nothing is written then.
        """
        named = complete_weights(weights, self._shapes)
        size = sum(weight.numel() for weight in named.values()) * self._dtype.itemsize
        if self._nccl:
            self.label = f"{self._run}-{version}"
            self._broadcast(named)
            return size
        before, folder = self._current, self._folder / f"{self._run}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        # copies: a file cannot hold one tensor under two names
        copies = {name: full_tensor(w, self._dtype).to("cpu", copy=True).contiguous() for name, w in named.items()}
        with replacing(folder / "model.safetensors") as temporary:
            save_file(copies, temporary, metadata={"format": "pt"})
        self._current, self.label = folder, f"{self._run}-{version}"
        self.push()
        if before is not None and before != folder:
            shutil.rmtree(before)
        return size

    def _broadcast(self, named: Mapping[str, Tensor]) -> None:
        """Send weights over NCCL. They are sent once: whatever fails is an error."""
        try:
            if self._sender is None:
                gpus = int(self._server.get("/get_world_size")["world_size"])
                self._sender = NcclSender(ServerClient(self._server), gpus=gpus, address=self._server.own_address())
            sender = self._sender
            self._load_and_label(lambda: sender.send(named, self._dtype))
        except Unavailable as error:
            raise EngineError(
                f"{self._server.url} failed while it was sent weights over NCCL: {error}. Start it again, and resume "
                "the run; without --weight-transfer-config it gets them through a folder and may fail at any time."
            ) from error

    def push(self) -> None:
        """Let the server load and label the written weights; it must not be answering requests.

        If the server is restarted meanwhile, this begins again.

        Raises:
            ServerError: if the server cannot be reached.
            EngineError: if it cannot load weights, refuses these, or has lost weights that came over NCCL.
        """
        if self._nccl:
            raise EngineError(
                f"{self._server.url} was restarted, and its weights came over NCCL, so no copy is left. Resume the run."
            )
        self._server.retry(lambda: self._load_and_label(self._load_folder))

    def _load_folder(self) -> None:
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

    def _load_and_label(self, load: Callable[[], None]) -> None:
        loading = f"{self.label}-loading"  # lost in a restart, which `/weight_info` shows below
        try:
            self._server.attempt("POST", "/update_weight_version", {"new_version": loading})
        except ServerError as error:
            if error.status != 404:
                raise
            raise EngineError(
                f"{error} Start the server with VLLM_SERVER_DEV_MODE=1: otherwise it cannot load weights."
            ) from error
        load()
        reply = self._server.attempt("POST", "/reset_prefix_cache", {})
        if not (isinstance(reply, dict) and reply.get("success")):
            raise Unavailable("it keeps its prefix cache, since it still answers other requests")
        reply = self._server.attempt("GET", "/weight_info")
        if not (isinstance(reply, dict) and reply.get("weight_version") == loading):
            raise Unavailable(f"it was restarted, or given other weights, while it loaded these: {reply}")
        self._server.attempt("POST", "/update_weight_version", {"new_version": self.label})

    def remove(self) -> None:
        """Delete the written weights, or leave the NCCL group; the server keeps the weights that it has loaded."""
        if self._sender is not None:
            with suppress(Unavailable, ServerError):
                ServerClient(self._server).shutdown_weight_transfer_engine()
            self._sender.close()
            self._sender = None
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            with suppress(OSError):  # not empty: it holds weights of another run
                self._folder.rmdir()


class ServerClient:
    """vLLM's calls of a weight update (`nccl.Client`), made over HTTP and not repeated."""

    def __init__(self, server: VLLMServer) -> None:
        self._server = server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the server join the trainer's NCCL group."""
        self._server.attempt("POST", "/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Let it prepare for weights."""
        self._server.attempt("POST", "/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let it receive and load the weights that this process broadcasts meanwhile."""
        self._server.attempt("POST", "/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All weights have come."""
        self._server.attempt("POST", "/finish_weight_update")

    def shutdown_weight_transfer_engine(self) -> None:
        """Let it leave the group."""
        self._server.attempt("POST", "/shutdown_weight_transfer_engine")
