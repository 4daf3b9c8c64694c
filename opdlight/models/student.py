"""The trained model."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers.core_model_loading import revert_weight_conversion

from opdlight.errors import CheckpointError, ConfigError
from opdlight.models.attention import use_attention
from opdlight.models.backbone import check_head, checkpoint_layers, divide, head_of, hidden_at
from opdlight.models.lm_head import LMHead
from opdlight.models.loading import DTYPES, check_compute_dtype, contradiction, load_model, load_tokenizer, save_model
from opdlight.models.lora import add_lora, lora_layers, merged_weights
from opdlight.models.randomness import check_no_dropout
from opdlight.system.distributed import full_tensor, rank
from opdlight.system.files import replacing_folder
from opdlight.types import TokenBatch


class Student(nn.Module):
    """Any Hugging Face causal LM, trained in full or through LoRA.

    It stays in eval mode while it trains, so that it computes what the engine samples from. Dropout is refused.

    Args:
        model: folder, `lab/<name>` or Hub name.
        dtype: storage of what is trained, "float32" or "bfloat16"; adapters are float32 whatever it is.
        compute_dtype: of the forward pass; None: as `dtype`. bfloat16 beside float32 weights is autocast, or FSDP2's
            mixed precision; weights that are frozen under adapters are stored in it.
        lora: arguments of `peft.LoraConfig` (at least `r`); None trains every weight.
        gradient_checkpointing: recompute each layer in the backward pass, for less memory.
        chat_template: arguments of the chat template beside the messages, such as `enable_thinking`.
        trust_remote_code: run the code that the model brings with it (`auto_map`).
        attn_implementation: of transformers, such as "flash_attention_2" or "flex_attention"; None: its own choice.

    Raises:
        ConfigError, CheckpointError: naming what is wrong.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        chat_template: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        stored = dtype if lora is None else compute_dtype or dtype
        self.model = load_model(model, stored, trust_remote_code=trust_remote_code)
        check_compute_dtype(stored, compute_dtype)
        self.autocast = DTYPES[compute_dtype] if compute_dtype not in (None, stored) else None
        use_attention(self.model, attn_implementation, compute_dtype or stored)
        check_no_dropout(self.model, model)
        self.base = model
        self.chat_template = dict(chat_template or {})
        self.has_adapter = lora is not None
        if lora is not None:
            add_lora(self.model, lora)
        check_head(self.model)
        if gradient_checkpointing:
            checkpoint_layers(self.model)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer gets: everything, or the adapters."""
        return [p for p in self.parameters() if p.requires_grad]

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the weights over the ranks of `mesh`. Each share stays as it is stored, float32 master weights.

        What is gathered for a forward pass has the compute dtype; adapters are gathered in float32.

        Raises:
            ConfigError: with DoRA, whose norms are those of whole weights.
        """
        if isinstance(self, FSDPModule):
            return
        config: Any = getattr(self.model, "peft_config", {}).get("default")
        if getattr(config, "use_dora", False):
            raise ConfigError.wrong("model.student.lora.use_dora", expected="false beside trainer=fsdp", got=True)
        divide(self, self.model, mesh, MixedPrecisionPolicy(param_dtype=self.autocast, reduce_dtype=torch.float32))

    def free_gathered(self) -> None:
        """Free what FSDP keeps gathered of embedding and head after a forward pass that no backward pass followed."""
        if isinstance(self, FSDPModule):
            self.reshard()

    def forward(self, batch: TokenBatch) -> Tensor:
        """See `hidden`. FSDP gathers the weights around this call, in the compute dtype."""
        if self.autocast is None or isinstance(self, FSDPModule):
            return hidden_at(self.model, batch)
        # no cache of casted weights: it would survive neither the optimizer nor recomputed layers, and saves nothing,
        # because each weight is used once in a forward pass
        with torch.autocast(batch.input_ids.device.type, self.autocast, cache_enabled=False):
            return hidden_at(self.model, batch).to(self.autocast)

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Final hidden states [N, d] at the loss positions, with gradient; in the compute dtype."""
        found: Tensor = self(batch)
        return found

    def head(self) -> LMHead:
        """The LM head as it is now, in the compute dtype."""
        return head_of(self.model, None if isinstance(self, FSDPModule) else self.autocast)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face checkpoint name; tied weights come once. Detached.

        Where adapters are merged the weights are float32, whatever the base is.
        Those of a sharded student are still sharded: `system.distributed.full_tensor` gathers one.
        """
        yield from revert_weight_conversion(self.model, self._merged()).items()

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder (merged weights, config, tokenizer); written atomically.

        With adapters all of it is float32: rounded to bfloat16 the saved model would not be the trained one.
        Every rank must call it; the first one writes.
        """
        first = rank() == 0
        weights = {}
        for name, weight in self._merged().items():
            full = full_tensor(weight)
            if first:
                full = full.float() if self.has_adapter else full
                weights[name] = full if full is weight else full.cpu()
        if not first:
            return
        with replacing_folder(Path(folder)) as temporary:
            save_model(self.model, self.tokenizer, temporary, weights)
            if self.has_adapter:
                config = copy.deepcopy(self.model.config)
                config.dtype = torch.float32
                config.save_pretrained(temporary)

    def check_saving(self) -> None:
        """Write everything but the weights to a temporary folder, so that nothing about it fails after the training.

        Raises:
            CheckpointError: if transformers cannot write the model's files.
        """
        if (why := contradiction(self.model)) and rank() == 0:
            print(f"The generation config of {self.base} is kept as it is, though transformers says: {why}")
        try:
            with tempfile.TemporaryDirectory(prefix="opdlight-") as folder:
                save_model(self.model, self.tokenizer, Path(folder), {})
        except Exception as error:  # whatever it is, it would come again at the end
            raise CheckpointError(f"A student made of {self.base!r} could not be saved: {error}") from error

    def save_adapter(self, folder: str | Path) -> None:
        """Write the LoRA adapter alone in peft's format: a few MB that name `base`; written atomically.

        Every rank must call it; the first one writes.
        """
        from peft import get_peft_model_state_dict

        config: Any = copy.copy(self.model.peft_config["default"])
        config.base_model_name_or_path, config.inference_mode = self.base, True
        for name in ("target_modules", "exclude_modules"):  # of a set the order would change from run to run
            if isinstance(chosen := getattr(config, name), set):
                setattr(config, name, sorted(chosen))
        found = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        weights = {name: full_tensor(weight) for name, weight in found.items()}
        if rank() != 0:
            return
        with replacing_folder(Path(folder)) as temporary:
            config.save_pretrained(temporary)
            # peft saves under the names of its wrapper, which an injected adapter has not
            named = {f"base_model.model.{name}": weight.contiguous() for name, weight in weights.items()}
            save_file(named, temporary / "adapter_model.safetensors")

    @torch.no_grad()
    def _merged(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        seen: set[int] = set()
        layers = lora_layers(self.model)
        for name, weight in self.model.state_dict(keep_vars=True).items():
            if id(weight) not in seen and not any(name.startswith(f"{layer}.") for layer in layers):
                seen.add(id(weight))
                weights[name] = weight.detach()
        for layer, module in layers.items():
            weights |= {f"{layer}.{name}": weight for name, weight in merged_weights(module).items()}
        return weights
